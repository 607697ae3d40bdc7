"""Which sweeps are kept: so many of each kind, the newest of them (SPEC 16.2). Pure.

Each kind has a bound of its own, so that a flood of refusals pushes out no sweep, and the parts of
a sweep of all push out no other sweep. What is under way is kept beyond the bound, up to twice as
many: nothing that publishers request may take all the memory, or all the time to look for what can
be dropped.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Literal

from keyturn_workers.console.model.rows import SweepRef

Kind = Literal["sweep", "part", "rejected"]

MOST: Final[dict[Kind, int]] = {"sweep": 20_000, "part": 40_000, "rejected": 2_000}
_STALE: Final = 1000
_LOOKED_AT: Final = 16
"""Those under way that are looked at for one that is added; they then count as the newest."""


class Retention:
    """The sweeps by kind, the oldest first.

    Args:
        is_droppable: Whether one may be dropped: it is not under way.
        drop: Is called with each one that is dropped.

    Attributes:
        is_truncated: Whether any was dropped; refusals do not count.
    """

    def __init__(
        self, is_droppable: Callable[[SweepRef], bool], drop: Callable[[SweepRef], None]
    ) -> None:
        self._is_droppable = is_droppable
        self._drop = drop
        self._kinds: dict[SweepRef, Kind] = {}
        self._numbers: Counter[Kind] = Counter()
        self._pushes = count()  # those of one order are not compared any further
        # Entries whose sweep was removed or changed its kind are passed over.
        self._heaps: dict[Kind, list[tuple[Any, int, SweepRef]]] = {kind: [] for kind in MOST}
        self.is_truncated = False

    def put(self, ref: SweepRef, kind: Kind, order: Any) -> None:
        """Add a sweep, or note that its kind changed; then drop what is too much."""
        held = self._kinds.get(ref)
        if held == kind:
            return
        self.remove(ref)
        self._kinds[ref] = kind
        self._numbers[kind] += 1
        self._push(kind, order, ref)
        if self._numbers[kind] > MOST[kind]:
            self._drop_oldest(kind, order)
        elif len(self._heaps[kind]) > 2 * self._numbers[kind] + _STALE:
            self._heaps[kind] = [
                entry for entry in self._heaps[kind] if self._kinds.get(entry[-1]) == kind
            ]
            heapq.heapify(self._heaps[kind])

    def remove(self, ref: SweepRef) -> None:
        """Forget a sweep; it may be missing."""
        kind = self._kinds.pop(ref, None)
        if kind is not None:
            self._numbers[kind] -= 1

    def _drop_oldest(self, kind: Kind, newest: Any) -> None:
        heap, under_way = self._heaps[kind], 0
        while heap and under_way < _LOOKED_AT:
            *_, ref = heapq.heappop(heap)
            if self._kinds.get(ref) != kind:
                continue
            if self._is_droppable(ref) or self._numbers[kind] > 2 * MOST[kind]:
                self.remove(ref)
                self._drop(ref)
                self.is_truncated |= kind != "rejected"
                if self._numbers[kind] <= MOST[kind]:
                    break
            else:
                under_way += 1
                self._push(kind, newest, ref)

    def _push(self, kind: Kind, order: Any, ref: SweepRef) -> None:
        heapq.heappush(self._heaps[kind], (order, next(self._pushes), ref))
