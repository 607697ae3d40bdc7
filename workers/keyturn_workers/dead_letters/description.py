"""What a dead letter claims (SPEC 12). Pure.

Nothing in a letter is trusted: anyone with write access to the broker can invent its id, its
headers and its code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import has_control_characters, is_project, is_uuid, parse_time
from keyturn.messages import load_json
from keyturn.topology import (
    CODE_HEADER,
    DETAIL_HEADER,
    PUBLISHER_HEADER,
    REQUESTS,
    SIGNATURE_HEADER,
)

_DIGEST_DIGITS: Final = 16
_ID_MAX_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter claims."""

    queue: str
    message_id: str | None
    digest: str
    type: str | None
    project: str | None
    code: str | None
    detail: str | None
    publisher: str | None
    requested_at: str | None
    size_bytes: int

    @property
    def id(self) -> str:
        """Its message id, or its digest if the id is unusable."""
        return self.message_id or self.digest

    def age(self, now: datetime) -> str | None:
        """Roughly how long ago it was requested, by its own claim."""
        try:
            seconds = int((now - parse_time(self.requested_at or "")).total_seconds())
        except ValueError:
            return None
        for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if abs(seconds) >= length:
                return f"{seconds // length} {unit}"
        return f"{seconds} s"


def describe(message: AbstractIncomingMessage, queue: str) -> DeadLetter:
    """Describe a delivery of this dead-letter queue."""
    document = _document(message.body)
    headers = message.headers
    message_id = message.message_id
    usable = (
        message_id is not None
        and 0 < len(message_id) <= _ID_MAX_CHARACTERS
        and not has_control_characters(message_id)
    )
    return DeadLetter(
        queue=queue,
        message_id=message_id if usable else None,
        digest=digest_of(message),
        type=_text(document.get("type")),
        project=_text(document.get("project")),
        code=_text(headers.get(CODE_HEADER)) or _broker_reason(headers),
        detail=_text(headers.get(DETAIL_HEADER)),
        publisher=_text(headers.get(PUBLISHER_HEADER)),
        requested_at=_text(document.get("requested_at")),
        size_bytes=len(message.body),
    )


def digest_of(message: AbstractIncomingMessage) -> str:
    """What tells a letter apart from all others: of its body, publisher, signature and code."""
    hashed = hashlib.sha256(message.body)
    for name in (PUBLISHER_HEADER, SIGNATURE_HEADER, CODE_HEADER):
        hashed.update(b"\0" + str(message.headers.get(name, "")).encode(errors="replace"))
    return f"h-{hashed.hexdigest()[:_DIGEST_DIGITS]}"


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        return load_json(body)
    except MalformedRequestError:
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _broker_reason(headers: Mapping[str, Any]) -> str | None:
    """Why the broker itself moved a message here, such as `delivery_limit`."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return _text(deaths[0].get("reason"))
    return _text(headers.get("x-first-death-reason"))


def audit_fields(message: AbstractIncomingMessage, queue: str) -> dict[str, Any]:
    """Which letter it is, by its own claim: who signed it is not checked here."""
    letter = describe(message, queue)
    is_known = letter.type in REQUESTS
    return {
        "queue": queue,
        "request": hashlib.sha256(message.body).hexdigest(),
        "request_type": letter.type if is_known else None,
        "request_id": letter.message_id if is_uuid(letter.message_id or "") else None,
        "project": letter.project if is_project(letter.project or "") else None,
    }
