"""The file with one project's admin KEKs, from an operator to an auditor (SPEC 2.2, 15.2).

    {"v": 1, "project": "acme", "created": "2026-11-24T10:00:00.000000Z",
     "admin_keks": [{"id": "m1", "kek": "base64 of 32 bytes"},
                    {"id": "m1", "customer_secret_id": "5f0c1a7be2d94386", "kek": "…"}]}

`id` is the id of the master key that the KEK was derived from. An entry with `customer_secret_id`
has the composite KEK of wraps that also need this customer secret (2.6). `keyturn keys
export-project` writes such a file, and `keyturn verify` reads it. It opens every object of the
project, and of no other. Pure.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import is_project, is_short_name, parse_time
from keyturn.messages.json_text import load_json

_VERSION: Final = 1
_KEK_BYTES: Final = 32
_SECRET_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAMES: Final = {"v", "project", "created", "admin_keks"}


@dataclass(frozen=True, slots=True)
class ProjectKeks:
    """One project's admin KEKs, by the id of their master key; `created` is RFC 3339.

    `composites` are by the ids of master key and customer secret.
    """

    project: str
    created: str
    admin_keks: Mapping[str, Secret]
    composites: Mapping[tuple[str, str], Secret] = field(default_factory=dict)


def build_project_keks(keks: ProjectKeks) -> str:
    """Return the text of the file, with a final line break. It contains the keys themselves."""
    document = {
        "v": _VERSION,
        "project": keks.project,
        "created": keks.created,
        "admin_keks": [
            *({"id": name, "kek": _b64(kek)} for name, kek in keks.admin_keks.items()),
            *(
                {"id": name, "customer_secret_id": secret_id, "kek": _b64(kek)}
                for (name, secret_id), kek in keks.composites.items()
            ),
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _b64(kek: Secret) -> str:
    return to_base64(kek.reveal())


def parse_project_keks(text: str) -> ProjectKeks:
    """Return the KEKs in the text of such a file.

    Raises:
        ValueError: the rule that fails, without any value of the text.
    """
    try:
        document = load_json(text.encode())
    except (MalformedRequestError, UnicodeEncodeError):
        raise ValueError("not a file written by `keyturn keys export-project`") from None
    if document.keys() != _NAMES or document["v"] != _VERSION:
        raise ValueError("not a file written by `keyturn keys export-project`")
    project, created = document["project"], document["created"]
    if not isinstance(project, str) or not is_project(project):
        raise ValueError("project is not a project id")
    if not isinstance(created, str):
        raise ValueError("created is not a time")  # noqa: TRY004  # one exception for all rules
    parse_time(created)
    entries = document["admin_keks"]
    if not isinstance(entries, list) or not entries:
        raise ValueError("admin_keks is a list of at least one KEK")
    keks = [_admin_kek(entry) for entry in entries]
    by_ids = dict(keks)
    if len(by_ids) != len(keks):
        raise ValueError("admin_keks names a master key twice")
    return ProjectKeks(
        project,
        created,
        {name: kek for (name, secret_id), kek in by_ids.items() if secret_id is None},
        {
            (name, secret_id): kek
            for (name, secret_id), kek in by_ids.items()
            if secret_id is not None
        },
    )


def _admin_kek(entry: Any) -> tuple[tuple[str, str | None], Secret]:
    match entry:
        case {"id": str(name), "kek": str(encoded), **rest} if is_short_name(name):
            secret_id = rest.pop("customer_secret_id", None)
            kek = from_base64(encoded)
        case _:
            raise ValueError("each entry of admin_keks needs id and kek")
    if rest:
        raise ValueError("each entry of admin_keks has id, kek and perhaps customer_secret_id")
    if secret_id is not None and not (
        isinstance(secret_id, str) and _SECRET_ID.fullmatch(secret_id)
    ):
        raise ValueError("customer_secret_id has 16 hex digits")
    if len(kek) != _KEK_BYTES:
        raise ValueError("a KEK is the base64 of 32 bytes")
    return (name, secret_id), Secret(kek)
