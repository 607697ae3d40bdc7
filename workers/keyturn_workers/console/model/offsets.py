"""Which messages of a stream were counted already: a message counts once. Pure.

Offsets come from a few readers, each in order, so that they form a few ranges.
"""

from bisect import bisect_right
from typing import Final

MAX_RANGES: Final = 10_000


class OffsetSet:
    """A set of offsets, as ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # the offset after each range

    def add(self, offset: int) -> bool:
        """Add an offset; False if it is in the set."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, offset) - 1
        if at >= 0 and offset < ends[at]:
            return False
        joins_before = at >= 0 and ends[at] == offset
        joins_after = at + 1 < len(starts) and starts[at + 1] == offset + 1
        if joins_before and joins_after:
            ends[at] = ends.pop(at + 1)
            del starts[at + 1]
        elif joins_before:
            ends[at] = offset + 1
        elif joins_after:
            starts[at + 1] = offset
        else:
            starts.insert(at + 1, offset)
            ends.insert(at + 1, offset + 1)
            self._bound()
        return True

    def _bound(self) -> None:
        """Close the smallest gap: what is in it counts as seen, rather than perhaps twice."""
        if len(self._starts) <= MAX_RANGES:
            return
        gaps = zip(self._ends, self._starts[1:], strict=False)
        _, at = min((start - end, at) for at, (end, start) in enumerate(gaps))
        self._ends[at] = self._ends.pop(at + 1)
        del self._starts[at + 1]

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges: the first offset, and the one after the last."""
        return tuple(zip(self._starts, self._ends, strict=True))
