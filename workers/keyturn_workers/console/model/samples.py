"""How far a sweep was at which moment: thinned samples for a chart and a rate (SPEC 16.2). Pure.

Time is cut into slots of one width, and the newest sample of each slot is kept. Where that makes
too many, the width doubles. So the samples that are kept do not depend on the order of arrival.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from keyturn_workers.console.model.rows import RateSample

MAX_SAMPLES: Final = 600
RATE_WINDOW: Final = timedelta(seconds=60)
_MIN_OF_RATE: Final = 2

_Sample = tuple[float, float, int]  # time, objects done, rewrapped


class Samples:
    """The samples of one sweep.

    Args:
        changed_by: Is called with the change of their number, for a bound over all sweeps.
    """

    __slots__ = ("_changed_by", "_slots", "_width_s")

    def __init__(self, changed_by: Callable[[int], None] = lambda _: None) -> None:
        self._width_s = 1
        self._slots: dict[int, _Sample] = {}
        self._changed_by = changed_by

    def add(self, at: datetime, done: float, rewrapped: int) -> None:
        """Add a sample; a repeated one changes nothing."""
        before = len(self._slots)
        self._put((at.timestamp(), done, rewrapped))
        while len(self._slots) > MAX_SAMPLES:
            self._widen()
        self._changed_by(len(self._slots) - before)

    def thin(self, most: int) -> None:
        """Keep no more than this number."""
        before = len(self._slots)
        while len(self._slots) > most:
            self._widen()
        self._changed_by(len(self._slots) - before)

    def _put(self, sample: _Sample) -> None:
        slot = int(sample[0]) // self._width_s
        held = self._slots.get(slot)
        if held is None or held < sample:
            self._slots[slot] = sample

    def _widen(self) -> None:
        samples, self._slots = self._slots.values(), {}
        self._width_s *= 2
        for sample in samples:
            self._put(sample)

    def __len__(self) -> int:
        return len(self._slots)

    def ordered(self) -> list[_Sample]:
        """The samples as tuples, by time."""
        return sorted(self._slots.values())

    def rows(self) -> tuple[RateSample, ...]:
        """The samples, by time."""
        return tuple(
            RateSample(datetime.fromtimestamp(at, UTC), done, rewrapped)
            for at, done, rewrapped in self.ordered()
        )

    def moved_at(self) -> datetime | None:
        """When the newest progress was made: the first sample with the last values."""
        samples = self.ordered()
        if not samples:
            return None
        at, done, rewrapped = samples[-1]
        for earlier, *values in reversed(samples[:-1]):
            if values != [done, rewrapped]:
                break
            at = earlier
        return datetime.fromtimestamp(at, UTC)

    def rate_per_s(self) -> float | None:
        """Objects done a second during the last minute before the newest sample."""
        samples = self.ordered()
        if len(samples) < _MIN_OF_RATE:
            return None
        end, after, _ = samples[-1]
        first = next(
            (each for each in samples[:-1] if each[0] >= end - RATE_WINDOW.total_seconds()),
            samples[-2],
        )
        begin, before, _ = first
        return (after - before) / (end - begin) if after > before and end > begin else None
