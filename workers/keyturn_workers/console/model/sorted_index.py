"""An order that is kept while single rows change: no table is sorted anew for one of them. Pure."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

NameT = TypeVar("NameT")


class SortedIndex(Generic[NameT]):
    """Names in the order of their keys; those of equal keys in their own order.

    Args:
        items: The names with their keys to begin with.
    """

    def __init__(self, items: Iterable[tuple[NameT, Any]] = ()) -> None:
        self._keys: dict[NameT, Any] = dict(items)
        self._order: list[tuple[Any, NameT]] = [(key, name) for name, key in self._keys.items()]
        self._order.sort()

    def put(self, name: NameT, key: Any) -> None:
        """Add a name, or move it to its new place."""
        if name in self._keys:
            if self._keys[name] == key:
                return
            self.remove(name)
        self._keys[name] = key
        insort(self._order, (key, name))

    def remove(self, name: NameT) -> None:
        """Remove a name; it may be missing."""
        if name in self._keys:
            del self._order[bisect_left(self._order, (self._keys.pop(name), name))]

    def names(self, *, descending: bool = False) -> list[NameT]:
        """All names, in order."""
        order = reversed(self._order) if descending else iter(self._order)
        return [name for _, name in order]

    def names_below(self, key: Any) -> list[NameT]:
        """The names whose keys are smaller."""
        return [name for _, name in self._order[: bisect_left(self._order, (key,))]]

    def __len__(self) -> int:
        return len(self._order)
