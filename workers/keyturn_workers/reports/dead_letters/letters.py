"""A dead letter: its claims, its redacted fields, and its copy (SPEC 6.9, 12). Pure.

Nothing in a letter is trusted: anyone with write access to the broker can invent its id, its
headers and its code. A sealed body, or the value of an unknown field, must never be shown.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import MalformedRequestError, RequestExpiredError
from keyturn.identifiers import (
    has_control_characters,
    is_project,
    is_uuid,
    parse_time,
)
from keyturn.messages.codec import claimed_type
from keyturn.messages.fields import CODE_PATTERN
from keyturn.messages.json_text import load_json
from keyturn.messages.requests import UNKNOWN_CODE
from keyturn.topology import (
    BODY_DROPPED_HEADER,
    CODE_HEADER,
    CONTROL_QUEUE,
    DEAD_AT_HEADER,
    DETAIL_HEADER,
    PUBLISHER_HEADER,
    REQUESTS,
    SIGNATURE_HEADER,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    UPLOAD_REQUESTS,
)
from keyturn_workers.process.message_copies import copy_of

Obstacle = Literal["body", "type", "expired"]
"""The reason a letter cannot be replayed: its body was not kept, it names no type of request, or
it is past its age and would be refused again."""

_DIGEST_DIGITS: Final = 16
# More than any request has. Parsing and showing a body of many megabytes blocks the process for
# seconds.
_READ_MAX_BYTES: Final = 512 * 1024
_TOO_LARGE: Final = "larger than any request"
_METADATA_MAX_CHARACTERS: Final = 4096
_ID_MAX_CHARACTERS: Final = 64
_CODE: Final = re.compile(CODE_PATTERN)
# Fields without a secret in a well-formed request; of all others only the length is shown.
_SAFE_FIELDS: Final = frozenset(
    {
        "type",
        "upload_id",
        "request_id",
        "rotation_id",
        "sweep_id",
        "project",
        "key",
        "requested_at",
        "content_type",
        "expected_generation",
        "plaintext",
        "adopt",
        "master_key",
        "encrypt_plaintext",
        "repair",
        "actor",
        "view",
        "limit",
        "action",
        "queue",
        "code",
        "outcome",
    }
)
_SAFE_NESTED_FIELDS: Final = {
    "sealed_key": ("intake_key",),
    "sealed_kek": ("intake_key",),
    "customer_key": ("store", "key"),
    "body": ("staged", "source", "sha256", "bytes"),
}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The claims of a dead letter.

    `digest` identifies it by its body, publisher, signature and code; `request` is the hex SHA-256
    of its body. `code` is the reason of the refusal; None if it has no code.
    """

    queue: str
    message_id: str | None
    digest: str
    request: str
    type: str | None
    project: str | None
    code: str | None
    detail: str | None
    publisher: str | None
    requested_at: str | None
    dead_at: datetime | None
    size_bytes: int
    obstacle: Obstacle | None
    object_key: str | None = None

    @property
    def id(self) -> str:
        """The message id, or the digest if the id is unusable."""
        return self.message_id or self.digest

    def age(self, now: datetime) -> str | None:
        """Return roughly how long ago it was requested, by its own claim."""
        try:
            seconds = int((now - parse_time(self.requested_at or "")).total_seconds())
        except ValueError:
            return None
        for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if abs(seconds) >= length:
                return f"{seconds // length} {unit}"
        return f"{seconds} s"

    def audit_fields(self) -> dict[str, Any]:
        """Return the letter's identity for the audit trail. Its signature is not checked here."""
        return {
            "queue": self.queue,
            "request": self.request,
            "request_type": self.type if self.type in REQUESTS else None,
            "request_id": self.message_id if is_uuid(self.message_id or "") else None,
            "project": self.project if is_project(self.project or "") else None,
        }


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
        request=hashlib.sha256(message.body).hexdigest(),
        type=_text(document.get("type")),
        project=_text(document.get("project")),
        code=code_of(headers),
        detail=_text(headers.get(DETAIL_HEADER)),
        publisher=_text(headers.get(PUBLISHER_HEADER)),
        requested_at=_text(document.get("requested_at")),
        dead_at=dead_at(headers),
        size_bytes=len(message.body),
        obstacle=_obstacle(message, queue),
        object_key=_text(document.get("key")),
    )


def digest_of(message: AbstractIncomingMessage) -> str:
    """Return the digest that distinguishes a letter from all others."""
    hashed = hashlib.sha256(message.body)
    for name in (PUBLISHER_HEADER, SIGNATURE_HEADER, CODE_HEADER):
        hashed.update(b"\0" + str(message.headers.get(name, "")).encode(errors="replace"))
    return f"h-{hashed.hexdigest()[:_DIGEST_DIGITS]}"


def code_of(headers: Mapping[str, Any]) -> str | None:
    """Return a worker's code, or the broker's own reason, such as `delivery_limit`."""
    deaths = _last_death(headers)
    for claimed in (
        headers.get(CODE_HEADER),
        deaths.get("reason"),
        headers.get("x-first-death-reason"),
    ):
        if isinstance(claimed, str) and _CODE.fullmatch(claimed):
            return claimed
    return None


def dead_at(headers: Mapping[str, Any]) -> datetime | None:
    """Return when a message became a dead letter, by its own claim."""
    claimed = headers.get(DEAD_AT_HEADER)
    if isinstance(claimed, str):
        try:
            return parse_time(claimed)
        except ValueError:
            return None
    # The broker's own header: it moved the message here itself.
    moved = _last_death(headers).get("time")
    return moved.replace(tzinfo=UTC) if isinstance(moved, datetime) else None


def is_selected(
    message: AbstractIncomingMessage,
    *,
    code: str | None,
    letters: frozenset[str] | None,
    before: datetime,
) -> bool:
    """Check if a request selects a letter (SPEC 16.1).

    It selects all letters with this `code`, or those whose bodies have the digests in `letters`;
    and only those that died before `before`. A letter without that time counts as older.
    """
    died = dead_at(message.headers)
    if died is not None and died >= before:
        return False
    if letters is not None:
        return hashlib.sha256(message.body).hexdigest() in letters
    return (code_of(message.headers) or UNKNOWN_CODE) == code


def work_queue(body: bytes, dead: str) -> str:
    """Return the work queue that a letter of this dead-letter queue is replayed to.

    For an unsigned message it follows from the type.

    Raises:
        MalformedRequestError: unsigned, and not of a request type.
    """
    if dead != UNSIGNED_DEAD_QUEUE:
        return dead.removesuffix(".dead")
    if len(body) > _READ_MAX_BYTES:
        raise MalformedRequestError(f"it is {_TOO_LARGE}")
    claimed = claimed_type(body)
    if claimed not in REQUESTS:
        raise MalformedRequestError("it has no request type, so there is no queue to replay it to")
    return UPLOAD_QUEUE if claimed in UPLOAD_REQUESTS else CONTROL_QUEUE


def check_body_kept(message: AbstractIncomingMessage) -> None:
    """Check that the letter still has its body.

    Raises:
        MalformedRequestError: the body was dropped (SPEC 6.9).
    """
    if BODY_DROPPED_HEADER in message.headers:
        code = code_of(message.headers)
        raise MalformedRequestError(f"cannot be replayed: with {code} the body is not kept")


def original(message: AbstractIncomingMessage) -> Message:
    """Return a copy of the letter without the headers that workers and the broker added."""
    return copy_of(message, {})


def _obstacle(message: AbstractIncomingMessage, queue: str) -> Obstacle | None:
    try:
        work_queue(message.body, queue)
    except MalformedRequestError:
        return "type"
    if BODY_DROPPED_HEADER in message.headers:
        return "body"
    return "expired" if code_of(message.headers) == RequestExpiredError.code else None


def _document(body: bytes) -> Mapping[str, Any]:
    if len(body) > _READ_MAX_BYTES:
        return {}
    try:
        return load_json(body)
    except MalformedRequestError:
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return deaths[0]
    return {}


def redacted_body(body: bytes) -> dict[str, Any]:
    """Return a request's fields, but only the lengths of sealed and unknown ones."""
    if len(body) > _READ_MAX_BYTES:
        return {"unreadable": _TOO_LARGE, "bytes": len(body)}
    try:
        document = load_json(body)
    except MalformedRequestError as exc:
        return {"unreadable": exc.detail, "bytes": len(body)}
    try:
        return {name: _redact(name, value) for name, value in document.items()}
    except RecursionError:
        return {"unreadable": "nested too deep", "bytes": len(body)}


def _redact(name: str, value: object) -> object:
    if name in _SAFE_FIELDS and not isinstance(value, dict | list):
        return value
    if name == "metadata" and isinstance(value, dict):
        return value if len(json.dumps(value)) <= _METADATA_MAX_CHARACTERS else _elide(value)
    if name in _SAFE_NESTED_FIELDS and isinstance(value, dict):
        safe = _SAFE_NESTED_FIELDS[name]
        return {part: v if part in safe else _elide(v) for part, v in value.items()}
    return _elide(value)


def _elide(value: object) -> str:
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    return f"<{len(json.dumps(value))} characters of JSON>"


def json_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers as JSON values; a header that is nested too deep has only its name."""
    return {name: _json_value(value) for name, value in headers.items()}


def _json_value(value: object) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except (ValueError, TypeError, RecursionError):
        return "<not readable as JSON>"
