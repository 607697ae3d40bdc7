"""Retries and dead letters: when a failed delivery is retried, and its copy. Pure; no I/O.

A message in a retry or dead-letter queue is a *copy*, confirmed by the broker before the original
is acknowledged. The copy keeps the body and all headers as they were sent (SPEC 12), except for
those that would make the broker act on it again.
"""

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pamqp import encode

from keyturn.crypto import RetryNote, SignatureError, SigningKey
from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    DeletedKeyError,
    MalformedRequestError,
    TooManyRequestsError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time, parse_time
from keyturn.messages import identity, load_json
from keyturn.topology import (
    ALL_DELAYS_S,
    ATTEMPT_HEADER,
    BODY_DROPPED_HEADER,
    CODE_HEADER,
    DEAD_AT_HEADER,
    DETAIL_HEADER,
    NOT_BEFORE_HEADER,
    PUBLISHER_HEADER,
    REQUEST_ID_FIELDS,
    RETRY_DELAYS_S,
    RETRY_MAC_HEADER,
    SIGNATURE_HEADER,
    UNKNOWN_PROJECT_DELAYS_S,
    WORKER_HEADERS,
)

_ATTEMPT: Final = re.compile(r"(?P<code>[a-z_]{1,64}):(?P<count>[0-9]{1,9})")
# The storage's clock, by which not-before times are written and read, counts whole seconds.
_CLOCKS_MAY_DIFFER_S: Final = 1
# The broker's own notes on a message's way; a copy starts without them. CC and BCC would route
# every copy to the queues that they name, and a refused message would come back forever.
_BROKER_HEADERS: Final = ("x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC")
# RabbitMQ accepts headers of at most one frame of 128 KiB; a worker's own are added to these.
_HEADERS_MAX_BYTES: Final = 96 * 1024
_TABLE_LENGTH_BYTES: Final = 4
# Of nested tables and lists: two encodings may start at different depths of the stack.
_SPARE_LEVELS: Final = 50
_DETAIL_MAX_CHARACTERS: Final = 500
# Refused however often they are sent, and whatever is in their bodies.
CODES_WITHOUT_BODY: Final = frozenset(
    error.code for error in (AlreadyExistsError, DeletedKeyError, BodyTooLargeError)
)
SPECIFIED_HEADERS: Final = (PUBLISHER_HEADER, SIGNATURE_HEADER)
_BROKER_PREFIXES: Final = ("x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Retry:
    """A worker's note on a retried message: how many attempts in a row met an error code."""

    code: str
    attempt: int
    not_before: datetime

    def early_s(self, now: datetime) -> float:
        """Seconds until the message is due; 0 if it is due now.

        No retry waits for longer than the longest delay: a later time was noted by a worker whose
        clock was wrong, and must not delay the message.
        """
        left_s = (self.not_before - now).total_seconds()
        longest_s = RETRY_DELAYS_S[-1] + _CLOCKS_MAY_DIFFER_S
        return left_s if _CLOCKS_MAY_DIFFER_S < left_s <= longest_s else 0


class RetryNotes:
    """Writes and reads the notes of retries under the deployment's event keys (SPEC 6.3).

    The first key signs notes; a note under any of the keys is accepted, so that an event key can be
    replaced while messages wait. A message without such a note is a first delivery: anyone with
    write access to the broker can put any header on a copy of a message.
    """

    def __init__(self, deployment: str, keys: Sequence[SigningKey]) -> None:
        self._deployment = deployment
        self._keys = tuple(key.retry_key() for key in keys)

    def headers(self, queue: str, publisher: str, body: bytes, retry: Retry) -> dict[str, str]:
        """The headers of a retry's note; `publisher` is empty for the workers' own messages."""
        note = RetryNote(
            queue=queue,
            publisher=publisher,
            request=hashlib.sha256(body).hexdigest(),
            attempt=retry.attempt,
            code=retry.code,
            not_before=format_time(retry.not_before),
        )
        return {
            ATTEMPT_HEADER: f"{note.code}:{note.attempt}",
            NOT_BEFORE_HEADER: note.not_before,
            RETRY_MAC_HEADER: self._keys[0].mac(self._deployment, note),
        }

    def read(
        self, queue: str, publisher: str, body: bytes, headers: Mapping[str, Any]
    ) -> Retry | None:
        """The note on a message, or None if no holder of an event key made one for it."""
        claimed, not_before = headers.get(ATTEMPT_HEADER), headers.get(NOT_BEFORE_HEADER)
        mac = headers.get(RETRY_MAC_HEADER)
        if not (isinstance(claimed, str) and isinstance(not_before, str) and isinstance(mac, str)):
            return None
        # With more digits than any of our counts has, int() itself would raise.
        match = _ATTEMPT.fullmatch(claimed)
        if match is None:
            return None
        try:
            instant = parse_time(not_before)
        except ValueError:
            return None
        note = RetryNote(
            queue=queue,
            publisher=publisher,
            request=hashlib.sha256(body).hexdigest(),
            attempt=int(match["count"]),
            code=match["code"],
            not_before=not_before,
        )
        for key in self._keys:
            with suppress(SignatureError):
                key.verify(self._deployment, note, mac)
                return Retry(note.code, note.attempt, instant)
        return None


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


def attempts(retry: Retry | None, error: CodedError) -> int:
    """How many times in a row the message was retried for this same code."""
    return retry.attempt if retry is not None and retry.code == error.code else 0


def retry_delay_s(
    error: CodedError, attempt: int, *, requested_at: datetime, max_age: timedelta, now: datetime
) -> int | None:
    """Seconds until the next attempt, or None if the error is final (SPEC 7.5, 12).

    Transient errors are retried up to the longest age of a request, so that the last attempt may
    come after it: that one checks what was completed, and only then is refused as expired.
    """
    if isinstance(error, UnknownProjectError):
        exhausted = attempt >= len(UNKNOWN_PROJECT_DELAYS_S)
        return None if exhausted else UNKNOWN_PROJECT_DELAYS_S[attempt]
    if not error.transient or isinstance(error, TooManyRequestsError):
        return None
    if now > requested_at + max_age:
        return None
    return RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)]


def longest_delay_s(wait_s: float) -> int:
    """The longest delay in seconds that has a queue and is not longer than `wait_s`; 0 for none."""
    return max((delay for delay in ALL_DELAYS_S if delay <= wait_s), default=0)


def dead_letter_of(message: AbstractIncomingMessage, error: CodedError, now: datetime) -> Message:
    """The dead letter of a message: its copy, with the code and the time in headers.

    Of what is refused however often it is sent, only headers and identity are kept: its bodies
    would fill the broker's disk (SPEC 6.9). Such a letter cannot be replayed.
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
    """What is kept of a request: type, id, project, key, time, digest, size. None if unreadable."""
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
    """The message as it was sent, with a worker's headers on top, and another body if given.

    `expiration` is left out, since a copy must not vanish, and so is `user_id`, which the broker
    compares with the user that publishes the copy.
    """
    return Message(
        message.body if body is None else body,
        headers={**_fit_in_frame(sent_headers(message.headers)), **more_headers},
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
        priority=message.priority,
    )


def _fit_in_frame(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers that leave room for a worker's own in one frame.

    All of them, unless they nearly fill the frame: a copy that does not fit would cost the
    connection each time. The largest are dropped first, and those that SPEC 6.3 names last. A
    header that cannot be encoded (nested too deep, for instance) is the only one dropped.
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
        # Nested some levels deeper: what could just be decoded may otherwise be too deep to be
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
