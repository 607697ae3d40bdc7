"""The storage's clock, bounded by its responses and this process's clock (SPEC 8.4).

Leases and proofs rely on the `Date` of the storage's responses. One wrong `Date` must neither
extend a lease nor date a proof. Each response bounds the storage's clock: its `Date` is no later
than the receipt, and one second after its `Date` is no earlier than the sending. Responses that
contradict those of the last ten minutes, in either direction, are distrusted until they agreed
with each other for two leases and clearly outnumbered the others. Then the clock was set, or the
reference came from one wrong front end, and they become the new reference.

The local clock is CLOCK_BOOTTIME: it cannot be set, and it runs while the machine is suspended.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.process.background import repeat

INTERVAL_S: Final = 240.0
"""Between two observations of an idle process. Well below ten minutes: one request may fail."""

_REFERENCE_S: Final = 600.0
# Bounds are kept per span of time, so that memory and work do not grow with the responses.
_SPAN_S: Final = 10.0
# A `Date` is truncated to the whole second.
_DATE_RESOLUTION_S: Final = 1.0
# One of two front ends may contradict the other at every second response.
_BETWEEN_WARNINGS_S: Final = 60.0
# If one of two front ends is wrong, they must not alternate: a majority must be no coincidence.
_MAJORITY: Final = 2
_MAJORITY_LEAD: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_log = structlog.get_logger()


def boottime_s() -> float:
    """Seconds since this machine booted, including suspensions."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class DateTrust:
    """The permitted uses of one response's `Date`.

    `agrees`: to date a lease. `proves`: also to date a proof.
    """

    agrees: bool
    proves: bool


DISTRUSTED: Final = DateTrust(agrees=False, proves=False)


@dataclass(slots=True)
class _Bounds:
    """The storage's clock minus the local clock, in seconds: at least `low`, at most `high`."""

    since_s: float
    low: float
    high: float

    def narrow(self, low: float, high: float) -> None:
        self.low = max(self.low, low)
        self.high = min(self.high, high)


class _Reference:
    """The combined bounds of the responses of the last ten minutes.

    It has been the reference since `since_s`, by the local clock.
    """

    def __init__(self, since_s: float, first: _Bounds) -> None:
        self.since_s = since_s
        self._spans = deque([first])
        self.bounds = _Bounds(first.since_s, first.low, first.high)

    def agrees_with(self, low: float, high: float, tolerated_s: float) -> bool:
        """Check if a response with these bounds is consistent with the reference."""
        return low <= self.bounds.high + tolerated_s and high >= self.bounds.low - tolerated_s

    def expire(self, now_s: float) -> bool:
        """Drop bounds older than ten minutes; return False if nothing is left."""
        dropped = False
        while self._spans and self._spans[0].since_s < now_s - _REFERENCE_S:
            self._spans.popleft()
            dropped = True
        if dropped and self._spans:
            low, high = max(s.low for s in self._spans), min(s.high for s in self._spans)
            self.bounds = _Bounds(self._spans[0].since_s, low, high)
        return bool(self._spans)

    def add(self, now_s: float, low: float, high: float) -> None:
        # Clamped to the present bounds: a response that differs within the tolerance must not
        # push out the others.
        low, high = min(low, self.bounds.high), max(high, self.bounds.low)
        if now_s - self._spans[-1].since_s >= _SPAN_S:
            self._spans.append(_Bounds(now_s, low, high))
        else:
            self._spans[-1].narrow(low, high)
        self.bounds.narrow(low, high)


class _Candidate(_Reference):
    """Responses that agree with each other, but not with the reference.

    It survives contradicting responses as long as they are fewer. Otherwise a wrong front end
    whose response came first would remain the reference forever.
    """

    def __init__(self, since_s: float, first: _Bounds) -> None:
        super().__init__(since_s, first)
        self._agreeing = 1
        self._contradicting = 0

    def add(self, now_s: float, low: float, high: float) -> None:
        super().add(now_s, low, high)
        self._agreeing += 1

    def contradict(self) -> bool:
        """Count a contradicting response; return False if the candidate has lost its majority."""
        self._contradicting += 1
        return self._contradicting < self._agreeing

    @property
    def has_majority(self) -> bool:
        """True if it had all responses since its first, or clearly more than the others."""
        agreeing, contradicting = self._agreeing, self._contradicting
        return not contradicting or (
            agreeing >= _MAJORITY * contradicting and agreeing - contradicting >= _MAJORITY_LEAD
        )


class StorageClock:
    """The storage's clock, as the responses to one process reveal it.

    Responses may differ by a sixth of `lease_s`. `local_s` is replaced in tests.
    """

    def __init__(self, lease_s: float, local_s: Callable[[], float] = boottime_s) -> None:
        self.local_s = local_s
        self.tolerated_s = lease_s / 6
        """How far correct responses may differ."""
        self._two_leases_s = 2 * lease_s
        self._reference: _Reference | None = None
        self._candidate: _Candidate | None = None
        self._last = DISTRUSTED
        self._contradicted_s = -math.inf
        self._warned_s = -_BETWEEN_WARNINGS_S

    @property
    def max_read_s(self) -> float:
        """The longest that a keyring read or listing may take to yield a lease."""
        return self.tolerated_s

    @property
    def is_known(self) -> bool:
        """True if a refusal may rely on `now`.

        The clock must be known for two leases, and the last response must agree: the first
        response to a process becomes its reference at once, and may be wrong.
        """
        return self._last.proves

    @property
    def is_contradicted(self) -> bool:
        """True if a response of the last ten minutes contradicted the others.

        A front end whose clock lags accepts writes after their lease. One whose clock is fast may
        be the reference of another process; compared with it, the others lag.
        """
        return self.local_s() - self._contradicted_s < _REFERENCE_S

    def observe(self, date: datetime | None, sent_s: float, received_s: float) -> DateTrust:
        """Record one response of the storage.

        `date` is None if it is missing or unreadable. The times are by `local_s`; an earlier
        `sent_s` and a later `received_s` are safe.
        """
        self._last = self._evaluate(date, sent_s, received_s)
        return self._last

    def _evaluate(self, date: datetime | None, sent_s: float, received_s: float) -> DateTrust:
        if date is None:
            return DISTRUSTED
        date_s = (date - _EPOCH).total_seconds()
        low, high = date_s - received_s, date_s + _DATE_RESOLUTION_S - sent_s
        reference = self._reference
        if reference is None or not reference.expire(received_s):
            self._candidate = None
            reference = self._set_reference(received_s, low, high)
        elif not reference.agrees_with(low, high, self.tolerated_s):
            return self._contradiction(received_s, low, high)
        else:
            candidate = self._candidate
            if candidate is not None and not candidate.agrees_with(low, high, self.tolerated_s):
                # The reference holds, unless the candidate keeps the majority.
                self._candidate = candidate if candidate.contradict() else None
            reference.add(received_s, low, high)
        return DateTrust(agrees=True, proves=received_s - reference.since_s >= self._two_leases_s)

    def now(self) -> datetime:
        """Return the storage's time as far as it is known; before that, this machine's."""
        if self._reference is None:
            return datetime.now(UTC)
        bounds = self._reference.bounds
        return _EPOCH + timedelta(seconds=self.local_s() + (bounds.low + bounds.high) / 2)

    def _contradiction(self, received_s: float, low: float, high: float) -> DateTrust:
        self._contradicted_s = received_s
        candidate = self._candidate
        if candidate is not None and candidate.expire(received_s):
            if candidate.agrees_with(low, high, self.tolerated_s):
                candidate.add(received_s, low, high)
                return self._promote(candidate, received_s, low)
            if candidate.contradict():
                return DISTRUSTED
        self._warn(received_s, low)
        self._candidate = _Candidate(received_s, _Bounds(received_s, low, high))
        return DISTRUSTED

    def _promote(self, candidate: _Candidate, received_s: float, low: float) -> DateTrust:
        """Make the candidate the reference, if it has lasted two leases and has the majority."""
        if received_s - candidate.since_s < self._two_leases_s or not candidate.has_majority:
            return DISTRUSTED
        # The clock was set, or the reference was wrong from the start.
        _log.warning("storage clock changed", by_s=round(self._deviation_s(low), 1))
        self._candidate = None
        self._set_reference(received_s, candidate.bounds.low, candidate.bounds.high)
        return DateTrust(agrees=True, proves=False)

    def _set_reference(self, received_s: float, low: float, high: float) -> _Reference:
        self._reference = _Reference(received_s, _Bounds(received_s, low, high))
        return self._reference

    def _warn(self, received_s: float, low: float) -> None:
        if received_s - self._warned_s >= _BETWEEN_WARNINGS_S:
            self._warned_s = received_s
            by_s = round(self._deviation_s(low), 1)
            _log.warning("storage clock contradicts earlier responses", by_s=by_s)

    def _deviation_s(self, low: float) -> float:
        return 0.0 if self._reference is None else low - self._reference.bounds.low


async def keep_clock_known(
    observe: Callable[[], Awaitable[None]], *, interval_s: float = INTERVAL_S
) -> None:
    """Observe the storage's time now, and then at each interval, until canceled.

    A response is a reference for ten minutes, and an inspection proves something only if the clock
    was known for two leases before. A sweep worker that was idle for longer could prove nothing for
    two leases, exactly when a rotation waits for its proof.
    """

    async def observe_once() -> None:
        try:
            await observe()
        except (StorageUnavailableError, StorageResponseError) as exc:
            _log.info("storage time not observed", problem=str(exc))

    await repeat(observe_once, lambda: interval_s)
