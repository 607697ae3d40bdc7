"""The storage's clock, as its answers bound it by this process's own (SPEC 8.4). Pure; no I/O.

Leases and proofs rest on the `Date` of the storage's answers, and one wrong `Date` must
neither stretch a lease nor date a proof. Each answer bounds the storage's clock: its `Date`
is no later than the receipt, and a second after its `Date` is no earlier than the sending.
Answers that contradict those of the last ten minutes are not believed, whichever way they
differ, until such answers agreed with one another for two leases and clearly outnumbered the
others: then the clock was set, or the reference was one wrong front end's, and they are the
new reference.

The process's own clock is CLOCK_BOOTTIME, which nobody sets and which goes on while the
machine is suspended.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

_REFERENCE_S: Final = 600.0
# Bounds are kept by spans of time, so that memory and work do not grow with the answers.
_SPAN_S: Final = 10.0
# A `Date` is cut to the whole second.
_DATE_RESOLUTION_S: Final = 1.0
# One of several front ends may contradict the others at every second answer.
_BETWEEN_WARNINGS_S: Final = 60.0
# Two front ends of which one is wrong must not take turns: a majority is larger than chance.
_MAJORITY: Final = 2
_MAJORITY_LEAD: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_log = structlog.get_logger()


def boottime_s() -> float:
    """Seconds since this machine was started, its suspensions included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class DateTrust:
    """What one answer's `Date` is good for.

    `agrees`: it may date a lease. `proves`: it may date a proof as well.
    """

    agrees: bool
    proves: bool


DISTRUSTED: Final = DateTrust(agrees=False, proves=False)


@dataclass(slots=True)
class _Bounds:
    """The storage's clock minus the process's own, in seconds: at least `low`, at most `high`."""

    since_s: float
    low: float
    high: float

    def narrow(self, low: float, high: float) -> None:
        self.low = max(self.low, low)
        self.high = min(self.high, high)


class _Reference:
    """What the answers of the last ten minutes say together.

    Args:
        since_s: when it became the reference, by the process's own clock.
        first: the bounds of its first answer.
    """

    def __init__(self, since_s: float, first: _Bounds) -> None:
        self.since_s = since_s
        self._spans = deque([first])
        self.whole = _Bounds(first.since_s, first.low, first.high)

    def allows(self, low: float, high: float, tolerated_s: float) -> bool:
        """Whether an answer with these bounds agrees with these."""
        return low <= self.whole.high + tolerated_s and high >= self.whole.low - tolerated_s

    def forget_until(self, now_s: float) -> bool:
        """Drop what is older than ten minutes; False where nothing is left."""
        dropped = False
        while self._spans and self._spans[0].since_s < now_s - _REFERENCE_S:
            self._spans.popleft()
            dropped = True
        if dropped and self._spans:
            low, high = max(s.low for s in self._spans), min(s.high for s in self._spans)
            self.whole = _Bounds(self._spans[0].since_s, low, high)
        return bool(self._spans)

    def add(self, now_s: float, low: float, high: float) -> None:
        # Of an answer that differs within what is tolerated, as much as the others leave: it
        # must not push out those that it differs from.
        low, high = min(low, self.whole.high), max(high, self.whole.low)
        if now_s - self._spans[-1].since_s >= _SPAN_S:
            self._spans.append(_Bounds(now_s, low, high))
        else:
            self._spans[-1].narrow(low, high)
        self.whole.narrow(low, high)


class _Candidate(_Reference):
    """Answers that agree with one another, and with the reference not.

    It outlives answers that it contradicts for as long as they are fewer: one wrong front end
    that was met first would else remain the reference for ever.
    """

    def __init__(self, since_s: float, first: _Bounds) -> None:
        super().__init__(since_s, first)
        self._agreeing = 1
        self._contradicting = 0

    def add(self, now_s: float, low: float, high: float) -> None:
        super().add(now_s, low, high)
        self._agreeing += 1

    def contradict(self) -> bool:
        """Count an answer that contradicts it; False where it has no majority any more."""
        self._contradicting += 1
        return self._contradicting < self._agreeing

    @property
    def has_majority(self) -> bool:
        """Whether it had all answers since its first, or clearly more than all others."""
        agreeing, contradicting = self._agreeing, self._contradicting
        return not contradicting or (
            agreeing >= _MAJORITY * contradicting and agreeing - contradicting >= _MAJORITY_LEAD
        )


class StorageClock:
    """What the answers to one process say about the storage's clock.

    Args:
        lease_s: the lease, in seconds; a sixth of it is how far answers may differ.
        local_s: the process's own clock, in seconds; another one in tests.
    """

    def __init__(self, lease_s: float, local_s: Callable[[], float] = boottime_s) -> None:
        self.local_s = local_s
        self._tolerated_s = lease_s / 6
        self._two_leases_s = 2 * lease_s
        self._reference: _Reference | None = None
        self._candidate: _Candidate | None = None
        self._last = DISTRUSTED
        self._warned_s = -_BETWEEN_WARNINGS_S

    @property
    def max_read_s(self) -> float:
        """How long a keyring read or listing may take at most to give a lease."""
        return self._tolerated_s

    @property
    def is_known(self) -> bool:
        """Whether `now` may refuse anything: known for two leases, and as the last answer said.

        The first answer that a process gets is its reference at once, and may be a wrong one.
        """
        return self._last.proves

    def observe(self, date: datetime | None, sent_s: float, received_s: float) -> DateTrust:
        """Take in one answer of the storage.

        Args:
            date: its `Date`; None where it has none that can be read.
            sent_s: when its request was sent, by `local_s`; earlier does no harm.
            received_s: when the answer was there, by `local_s`; later does no harm.
        """
        self._last = self._judged(date, sent_s, received_s)
        return self._last

    def _judged(self, date: datetime | None, sent_s: float, received_s: float) -> DateTrust:
        if date is None:
            return DISTRUSTED
        date_s = (date - _EPOCH).total_seconds()
        low, high = date_s - received_s, date_s + _DATE_RESOLUTION_S - sent_s
        reference = self._reference
        if reference is None or not reference.forget_until(received_s):
            self._candidate = None
            reference = self._begin(received_s, low, high)
        elif not reference.allows(low, high, self._tolerated_s):
            return self._contradicted(received_s, low, high)
        else:
            candidate = self._candidate
            if candidate is not None and not candidate.allows(low, high, self._tolerated_s):
                # The reference still holds, unless such answers are the fewer.
                self._candidate = candidate if candidate.contradict() else None
            reference.add(received_s, low, high)
        return DateTrust(agrees=True, proves=received_s - reference.since_s >= self._two_leases_s)

    def now(self) -> datetime:
        """The storage's time as far as its answers tell, else this machine's."""
        if self._reference is None:
            return datetime.now(UTC)
        bounds = self._reference.whole
        return _EPOCH + timedelta(seconds=self.local_s() + (bounds.low + bounds.high) / 2)

    def _contradicted(self, received_s: float, low: float, high: float) -> DateTrust:
        candidate = self._candidate
        if candidate is not None and candidate.forget_until(received_s):
            if candidate.allows(low, high, self._tolerated_s):
                candidate.add(received_s, low, high)
                return self._replaced(candidate, received_s, low)
            if candidate.contradict():
                return DISTRUSTED
        self._warn(received_s, low)
        self._candidate = _Candidate(received_s, _Bounds(received_s, low, high))
        return DISTRUSTED

    def _replaced(self, candidate: _Candidate, received_s: float, low: float) -> DateTrust:
        """Make the candidate the reference, where its time has come."""
        if received_s - candidate.since_s < self._two_leases_s or not candidate.has_majority:
            return DISTRUSTED
        # Such answers for two leases, and few others: it was set, or was wrong from the first.
        _log.warning("the storage's clock was set", by_s=round(self._by(low), 1))
        self._candidate = None
        self._begin(received_s, candidate.whole.low, candidate.whole.high)
        return DateTrust(agrees=True, proves=False)

    def _begin(self, received_s: float, low: float, high: float) -> _Reference:
        self._reference = _Reference(received_s, _Bounds(received_s, low, high))
        return self._reference

    def _warn(self, received_s: float, low: float) -> None:
        if received_s - self._warned_s >= _BETWEEN_WARNINGS_S:
            self._warned_s = received_s
            by_s = round(self._by(low), 1)
            _log.warning("the storage's clock contradicts its earlier answers", by_s=by_s)

    def _by(self, low: float) -> float:
        return 0.0 if self._reference is None else low - self._reference.whole.low
