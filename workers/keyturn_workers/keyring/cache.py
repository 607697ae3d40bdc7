"""The keyrings that a process remembers, bounded by number and by bytes (SPEC 7.3). No I/O."""

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keyturn_workers.keyring.listings import name_of
from keyturn_workers.keyring.snapshot import KeyringSnapshot

# Far more than a process serves at once; beyond either bound the least recently used ones go.
_MAX_PROJECTS: Final = 50_000
_MAX_TOTAL_BYTES: Final = 64 * 1024**2


@dataclass(slots=True)
class CacheEntry:
    """The reads of one project's keyring.

    Attributes:
        name: the keyring's name in listings.
        snapshot: the last one; None if there is no keyring, or it changed since.
        digest: SHA-256 of the record that `snapshot` was read from.
        size_bytes: of that record.
        used_s: when it was last used, by the process's own clock.
        running: the read under way.
        waiting: the read that begins after it.
    """

    name: str
    snapshot: KeyringSnapshot | None = None
    digest: bytes = b""
    size_bytes: int = 0
    used_s: float = 0.0
    running: asyncio.Task[KeyringSnapshot] | None = None
    waiting: asyncio.Task[KeyringSnapshot] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no read is under way."""
        return self.running is None and self.waiting is None


class KeyringCache:
    """Entries by project, the least recently used first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._names: list[str] = []
        self._total_bytes = 0

    @property
    def names(self) -> list[str]:
        """The names of the keyrings that have a snapshot, in the order of listings."""
        return self._names

    @property
    def projects(self) -> Sequence[str]:
        """The projects that have an entry."""
        return tuple(self._entries)

    @property
    def total_bytes(self) -> int:
        """The size of the records that the snapshots were read from."""
        return self._total_bytes

    def get(self, project: str) -> CacheEntry | None:
        """A project's entry; does not count as use."""
        return self._entries.get(project)

    def use(self, project: str, now_s: float) -> CacheEntry:
        """A project's entry, created if missing, marked as used at this moment."""
        entry = self._entries.get(project)
        if entry is None:
            entry = self._entries[project] = CacheEntry(name_of(project))
            self._evict()
        entry.used_s = now_s
        self._entries.move_to_end(project)
        return entry

    def store(
        self,
        project: str,
        entry: CacheEntry,
        snapshot: KeyringSnapshot,
        digest: bytes,
        size_bytes: int,
    ) -> None:
        """Put what a read showed into the entry that the read was made for."""
        if self._entries.get(project) is entry:
            if entry.snapshot is None:
                insort(self._names, entry.name)
            self._total_bytes += size_bytes - entry.size_bytes
            entry.size_bytes = size_bytes
        entry.snapshot, entry.digest = snapshot, digest
        self._evict()

    def invalidate(self, entry: CacheEntry) -> None:
        """Drop the entry's snapshot, and keep the entry."""
        if entry.snapshot is None:
            return
        entry.snapshot = None
        self._total_bytes -= entry.size_bytes
        entry.size_bytes = 0
        position = bisect_left(self._names, entry.name)
        if position < len(self._names) and self._names[position] == entry.name:
            del self._names[position]

    def remove_empty(self, project: str, entry: CacheEntry) -> None:
        """Remove an entry without snapshot: an unknown project must not evict a known one."""
        if entry.snapshot is None and entry.is_idle and self._entries.get(project) is entry:
            self._remove(project)

    def clear(self) -> None:
        """Forget everything."""
        for project in tuple(self._entries):
            self._remove(project)

    def _remove(self, project: str) -> None:
        self.invalidate(self._entries[project])
        del self._entries[project]

    def _evict(self) -> None:
        while len(self._entries) > _MAX_PROJECTS or self._total_bytes > _MAX_TOTAL_BYTES:
            oldest = next(iter(self._entries))
            if len(self._entries) == 1 or not self._entries[oldest].is_idle:
                return
            self._remove(oldest)
