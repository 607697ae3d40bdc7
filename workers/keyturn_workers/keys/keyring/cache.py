"""The keyrings that a process caches, and the listings that renew them (SPEC 7.3, 8.4). No I/O.

The cache is bounded by number and by bytes. A listing shows the ETags of up to 1,000 keyrings, a
segment of all keyrings. The next listing of a segment begins at the same name as the last one, so
that each keyring is covered by one listing, however many there are.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot

# Far more than a process serves at once; above either limit the least recently used entries go.
_MAX_PROJECTS: Final = 50_000
_MAX_TOTAL_BYTES: Final = 64 * 1024**2
# The cached keyrings that may precede the requested one in a new listing: a page holds 1,000, and
# may include keyrings that are not cached.
_MAX_PRECEDING: Final = 900


@dataclass(slots=True)
class CacheEntry:
    """The reads of one project's keyring.

    Attributes:
        name: the keyring's name in listings.
        snapshot: the last one; None if there is no keyring, or it has changed since.
        digest: SHA-256 of the record that `snapshot` was read from.
        size_bytes: the size of that record.
        used_s: the time of its last use, by the process's own clock.
        running: the read under way.
        waiting: the read that begins after `running`.
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
        """True if no read is under way."""
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
        """Put the result of a read into the entry that the read was made for."""
        if self._entries.get(project) is entry:
            if entry.snapshot is None:
                insort(self._names, entry.name)
            self._total_bytes += size_bytes - entry.size_bytes
            entry.size_bytes = size_bytes
        entry.snapshot, entry.digest = snapshot, digest
        self._evict()

    def invalidate(self, entry: CacheEntry) -> None:
        """Drop the entry's snapshot but keep the entry."""
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
        """Remove all entries."""
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


def name_of(project: str) -> str:
    """A keyring's name in listings, which are ordered by these names, not by projects."""
    return keyring_s3_key(project).removeprefix(KEYRINGS_PREFIX)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing of the keyrings.

    Attributes:
        after: it covers the names after this one.
        last: the last name that it covers; None if it reaches the end.
        etags: the ETag of each keyring's record, by name.
        date: the response's `Date`.
        sent_s: the time it was sent, by the process's own clock; the ETags were current then.
        leased: True if it gives leases, as a read would.
        proves: True if its date counts as proof, as a read's date would.
    """

    after: str
    last: str | None
    etags: Mapping[str, str]
    date: datetime
    sent_s: float
    leased: bool
    proves: bool

    def covers(self, name: str) -> bool:
        """Return whether the listing would show a keyring with this name."""
        return self.after < name and (self.last is None or name <= self.last)


class Listings:
    """The newest listing of each segment, ordered by the names at which they begin."""

    def __init__(self) -> None:
        self._listings: list[Listing] = []
        self._starts: list[str] = []

    def __len__(self) -> int:
        return len(self._listings)

    def covering(self, name: str) -> Listing | None:
        """The listing whose segment contains a name."""
        at = bisect_left(self._starts, name) - 1
        if at < 0 or not self._listings[at].covers(name):
            return None
        return self._listings[at]

    def add(self, listing: Listing) -> None:
        """Add a listing; it replaces the listings that begin within it."""
        begin = bisect_left(self._starts, listing.after)
        end = len(self._starts)
        if listing.last is not None:
            end = bisect_left(self._starts, listing.last)
        end = max(end, bisect_right(self._starts, listing.after))
        self._listings[begin:end] = [listing]
        self._starts[begin:end] = [listing.after]

    def start_for(self, name: str, names: list[str]) -> str:
        """Return the name after which to begin a listing that must show the keyring `name`.

        This is the start of the keyring's segment. If no segment contains it, the listing begins
        just before the first cached keyring that is also in no segment, to serve as many as
        possible. `names` are the names of all cached keyrings, in order, with `name` among them.
        """
        listing = self.covering(name)
        if listing is not None:
            return listing.after
        at = bisect_left(self._starts, name) - 1
        covered = "" if at < 0 else self._listings[at].last or ""
        position = bisect_left(names, name)
        first = max(bisect_right(names, covered), position - _MAX_PRECEDING)
        # A name without its last letter sorts just before the name.
        return max(covered, names[first][:-1])
