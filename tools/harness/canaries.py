"""Finds secrets, plaintext and sealed bodies in logs, in any usual encoding (SPEC 13)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import orjson

from keyturn.crypto import admin_kek, user_kek

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.harness.deployment import Deployment

MARKER = b"plaintext-canary-5b1d0c7e-do-not-log"
"""Every plaintext of these tests begins with this."""

# Long enough to be unique, short enough to match truncated values.
_SHOWN_BYTES = 24


def encodings(value: bytes) -> set[str]:
    """The encodings of a value's first 24 bytes: raw, hex, base64, and escaped.

    Each one also as it is escaped in a JSON string.
    """
    start = value[:_SHOWN_BYTES]
    # Python escapes an apostrophe only if the value contains both kinds of quotes.
    escaped = repr(start + b"'\"")[2:-1].removesuffix("\\'\"")
    texts = {
        start.decode("latin-1"),
        escaped,
        escaped.replace("\\'", "'"),
        start.hex(),
        start.hex().upper(),
        base64.b64encode(start).decode(),
        base64.urlsafe_b64encode(start).decode(),
    }
    # Workers log with orjson, which does not escape characters that json writes as \u00e9.
    in_json = {text for each in texts for text in (json.dumps(each), orjson.dumps(each).decode())}
    return texts | {text[1:-1] for text in in_json}


def secrets_of_link(name: str, url: str) -> dict[str, bytes]:
    """What opens an object in a link: its token, or the signature of the storage."""
    parameters = parse_qs(urlsplit(url).query)
    found = {
        f"{parameter} of {name}": parameters[parameter][0].encode()
        for parameter in ("token", "X-Amz-Signature")
        if parameter in parameters
    }
    assert found, "not a link"
    return found


@dataclass
class Canaries:
    """Secrets by name, to be searched for in logs."""

    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, deployment: Deployment, *projects: str) -> Canaries:
        """All long-lived secrets of a deployment, and its projects' KEKs."""
        canaries = cls()
        canaries.secrets |= {
            "API key": deployment.api_key.encode(),
            "master key": deployment.master_key,
            "intake seed": deployment.intake_seed,
            "event seed": deployment.event_seed,
            "publisher's seed": deployment.publisher_seed,
            "S3 secret": deployment.s3.secret_access_key.encode(),
            "broker's password": deployment.amqp_url.split("@")[0].rsplit(":", 1)[-1].encode(),
            "plaintext": MARKER,
        }
        for project in projects:
            user = user_kek(deployment.api_key, project)
            admin = admin_kek(deployment.master_key, project)
            canaries.secrets |= {
                f"user KEK of {project}": user.reveal(),
                f"admin KEK of {project}": admin.reveal(),
            }
        return canaries

    def found(self, lines: Iterable[str]) -> list[str]:
        """The names of the secrets that occur in these lines."""
        log = "\n".join(lines)
        return [
            name
            for name, value in self.secrets.items()
            if any(text in log for text in encodings(value))
        ]
