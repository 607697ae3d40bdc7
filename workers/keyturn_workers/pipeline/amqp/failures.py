"""When a failed delivery is retried, and the note that its copy carries (SPEC 6.3, 7.5). Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage

from keyturn.crypto.retry_mac import RetryNote
from keyturn.crypto.signatures import SigningKey
from keyturn.errors import (
    CodedError,
    CustomerKeyUnavailableError,
    SignatureError,
    TooManyRequestsError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time, parse_time
from keyturn.topology import (
    ALL_DELAYS_S,
    ATTEMPT_HEADER,
    DELIVERY_LIMIT,
    NOT_BEFORE_HEADER,
    RETRY_DELAYS_S,
    RETRY_MAC_HEADER,
    UNKNOWN_PROJECT_DELAYS_S,
)
from keyturn_workers.process.message_copies import COUNT_HEADER

_ATTEMPT: Final = re.compile(r"(?P<code>[a-z_]{1,64}):(?P<count>[0-9]{1,9})")
# Not-before times are written and read by the storage's clock, which counts whole seconds.
_CLOCKS_MAY_DIFFER_S: Final = 1
RENEWED_AFTER: Final = DELIVERY_LIMIT - 10
"""Deliveries after which a message is copied, so that it never reaches the limit."""
_HOLD_MIN_S: Final = 10
# A delivery that was put off because a store is slow finds the secret in memory later, unless its
# time is over by then (SPEC 2.6).
_SECRET_ASKED_FOR_S: Final = 30
# Below the time that the broker waits for an acknowledgment (`x-consumer-timeout`).
_HOLD_MAX_S: Final = 5 * 3600


@dataclass(frozen=True, slots=True)
class Retry:
    """A worker's note on a retried message: the attempts in a row that met an error code."""

    code: str
    attempt: int
    not_before: datetime

    def early_s(self, now: datetime) -> float:
        """Seconds until the message is due; 0 if it is due now.

        No retry waits longer than the longest delay: a worker whose clock was wrong noted a later
        time, which must not delay the message.
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
        """The headers of a note; `publisher` is empty for the workers' own messages."""
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
        # The pattern bounds the digits: int() raises on very long numbers.
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


def attempts(retry: Retry | None, error: CodedError) -> int:
    """How many times in a row the message was retried for this same code."""
    return retry.attempt if retry is not None and retry.code == error.code else 0


def retry_delay_s(
    error: CodedError, attempt: int, *, requested_at: datetime, max_age: timedelta, now: datetime
) -> int | None:
    """Seconds until the next attempt, or None if the error is final (SPEC 7.5, 12).

    Transient errors are retried up to the longest age of a request, so the last attempt may come
    after it: that attempt checks if the request was completed, and only then refuses it as expired.
    """
    if isinstance(error, UnknownProjectError):
        exhausted = attempt >= len(UNKNOWN_PROJECT_DELAYS_S)
        return None if exhausted else UNKNOWN_PROJECT_DELAYS_S[attempt]
    if not error.transient or isinstance(error, TooManyRequestsError):
        return None
    if now > requested_at + max_age:
        return None
    last = len(RETRY_DELAYS_S) - 1
    if isinstance(error, CustomerKeyUnavailableError):
        last = RETRY_DELAYS_S.index(_SECRET_ASKED_FOR_S)
    return RETRY_DELAYS_S[min(attempt, last)]


def deliveries_before(message: AbstractIncomingMessage) -> int:
    """The number of earlier deliveries of a message, by the broker's count.

    The broker overwrites the header only in messages that it redelivers.
    """
    count = message.headers.get(COUNT_HEADER) if message.redelivered else 0
    return count if isinstance(count, int) else 1


def hold_s(before: int) -> float:
    """Seconds to hold a delivery that cannot be finished, after `before` other deliveries.

    Short at first, so that another process can try; later so long that the deliveries up to the
    broker's limit outlast the longest age of a request.
    """
    return min(_HOLD_MIN_S * 2.0 ** min(before, 20), _HOLD_MAX_S)


def longest_delay_s(wait_s: float) -> int:
    """The longest delay of a retry queue, in seconds, up to `wait_s`; 0 if there is none."""
    return max((delay for delay in ALL_DELAYS_S if delay <= wait_s), default=0)
