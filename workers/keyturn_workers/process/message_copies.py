"""Copies of messages for retry and dead-letter queues (SPEC 6.9). Pure; no I/O.

A message in such a queue is a *copy*, confirmed by the broker before the original is acknowledged.
The copy keeps all that a replay needs, but no property that would make the broker act on it.
"""

import hashlib
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pamqp import encode

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    DeletedKeyError,
    MalformedRequestError,
    ProjectErasedError,
)
from keyturn.identifiers import format_time
from keyturn.messages.codec import identity
from keyturn.messages.json_text import load_json
from keyturn.topology import (
    BODY_DROPPED_HEADER,
    CODE_HEADER,
    DEAD_AT_HEADER,
    DETAIL_HEADER,
    PUBLISHER_HEADER,
    REQUEST_ID_FIELDS,
    SIGNATURE_HEADER,
    WORKER_HEADERS,
)

COUNT_HEADER: Final = "x-delivery-count"
# Headers in which the broker records a message's path; a copy starts without them. CC and BCC
# would route every copy to the queues that they name, and a refused message would return forever.
_BROKER_HEADERS: Final = ("x-death", COUNT_HEADER, "x-acquired-count", "CC", "BCC")
# RabbitMQ accepts headers of at most one frame of 128 KiB; a worker's own are added to these.
_HEADERS_MAX_BYTES: Final = 96 * 1024
_TABLE_LENGTH_BYTES: Final = 4
_SHORT_MAX_BYTES: Final = 255
# Spare levels of nesting: two encodings may start at different depths of the stack.
_SPARE_LEVELS: Final = 50
_DETAIL_MAX_CHARACTERS: Final = 500
# Codes of messages that are always refused, whatever their bodies.
CODES_WITHOUT_BODY: Final = frozenset(
    error.code
    for error in (AlreadyExistsError, DeletedKeyError, BodyTooLargeError, ProjectErasedError)
)
SPECIFIED_HEADERS: Final = (PUBLISHER_HEADER, SIGNATURE_HEADER)
_BROKER_PREFIXES: Final = ("x-first-death-", "x-last-death-")


def dead_letter_of(message: AbstractIncomingMessage, error: CodedError, now: datetime) -> Message:
    """The dead letter of a message: its copy, with the code and the time in headers.

    Of a message that will always be refused, only headers and identity are kept: the bodies would
    fill the broker's disk (SPEC 6.9). Such a letter cannot be replayed.
    """
    headers = {
        CODE_HEADER: error.code,
        DETAIL_HEADER: error.detail[:_DETAIL_MAX_CHARACTERS],
        DEAD_AT_HEADER: format_time(now),
    }
    body = identity_body(message.body) if error.code in CODES_WITHOUT_BODY else None
    if body is None:
        return copy_of(message, headers)
    headers[BODY_DROPPED_HEADER] = hashlib.sha256(message.body).hexdigest()
    return copy_of(message, headers, body)


def identity_body(body: bytes) -> bytes | None:
    """A request's type, id, project, key, time, digest and size; None if it is unreadable."""
    claimed = identity(body)
    if claimed is None:
        return None
    try:
        document = load_json(body)
    except MalformedRequestError:
        return None
    kept = {
        name: document[name]
        for name in ("type", REQUEST_ID_FIELDS[claimed[0]], "project", "key", "requested_at")
        if name in document
    }
    kept["body"] = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    return orjson.dumps(kept)


def copy_of(
    message: AbstractIncomingMessage,
    more_headers: Mapping[str, str],
    body: bytes | None = None,
) -> Message:
    """Copy the parts that a replay needs, add a worker's headers, and replace the body if given.

    Those are the parts that publishers send (SPEC 6.3). Any other property could make the broker
    refuse the copy (`reply_to`, `user_id`), drop it (`expiration`), or put it before others
    (`priority`).
    """
    return Message(
        message.body if body is None else body,
        headers={**_fit_in_frame(sent_headers(message.headers)), **more_headers},
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type=_if_short(message.content_type),
        message_id=_if_short(message.message_id),
    )


def _if_short(text: str | None) -> str | None:
    """A property; None if it is too long for AMQP 0-9-1, as AMQP 1.0 allows."""
    return text if text is None or len(text.encode()) <= _SHORT_MAX_BYTES else None


def _fit_in_frame(headers: dict[str, Any]) -> dict[str, Any]:
    """Drop headers until a worker's own fit in the same frame.

    A copy that does not fit would cost the connection each time. The largest headers are dropped
    first, and those of SPEC 6.3 last. A header that cannot be encoded (nested too deep, for
    instance) is the only one dropped.
    """
    sizes = {name: _encoded_bytes(name, value) for name, value in headers.items()}
    order = sorted(sizes, key=lambda name: (name not in SPECIFIED_HEADERS, sizes[name]))
    left, kept = float(_HEADERS_MAX_BYTES), set()
    for name in order:
        if sizes[name] <= left:
            left -= sizes[name]
            kept.add(name)
    return {name: value for name, value in headers.items() if name in kept}


def _encoded_bytes(name: str, value: Any) -> float:
    """The bytes that a header takes in a table; infinite if it cannot be encoded."""
    try:
        # Nested some levels deeper: a value that could just be decoded may be too deep to be
        # encoded, which happens further down the stack.
        return len(encode.field_table({name: _deeper(value)})) - _TABLE_LENGTH_BYTES
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error):
        return float("inf")


def _deeper(value: Any) -> Any:
    if isinstance(value, dict | list):
        for _ in range(_SPARE_LEVELS):
            value = [value]
    return value


def sent_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """A message's headers without those of workers and of the broker."""
    return {
        name: value
        for name, value in headers.items()
        if name not in WORKER_HEADERS
        and name not in _BROKER_HEADERS
        and not name.startswith(_BROKER_PREFIXES)
    }
