"""Reading keyrings: cached for a moment, or begun after an instant (SPEC 7.3, 8.4).

Many uploads share one read. What matters is not how young an answer is but when its
read *began*: only a read that began after a put was acknowledged can tell that the
desired state had not moved before the put. `read_fresh` gives exactly that.

With many projects, one listing takes the place of a read each: it shows, by their ETags, that
the cached keyrings are still what they were when it was sent (`keyturn_workers.keyring.listings`).
"""

import asyncio
import contextlib
import hashlib
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from keyturn.crypto import Secret
from keyturn.errors import CodedError, StorageUnavailableError, UnknownProjectError
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn_workers.errors import MissingError, StorageAnswerError
from keyturn_workers.keyring.listings import Listing, Listings, name_of
from keyturn_workers.keyring.model import DesiredState, Keyring, parse
from keyturn_workers.storage import PAGE_KEYS, Lease, Storage, StorageClock

# Far more than a process serves at once; beyond either bound the longest unused ones go.
_MAX_PROJECTS: Final = 50_000
_MAX_TOTAL_BYTES: Final = 64 * 1024**2
# Some thousands of rotations. What somebody put there that is larger is not even parsed whole.
_KEYRING_MAX_BYTES: Final = 2 * 1024**2
# Reads of a busy project begin no closer together than this, so that more uploads share
# one. An upload that comes alone never waits for it.
_BETWEEN_READS_S: Final = 0.03
# From this part of the cache's time on a keyring that is used is read ahead, so that no upload
# waits for it.
_AHEAD: Final = 0.85

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeyringSnapshot:
    """A keyring as one read showed it.

    Attributes:
        keyring: What the record says.
        desired: The state that it asks for.
        etag: The record's, for a conditional change.
        read_at: The answer's `Date`. Information alone: what rests on it asks `lease`.
        sent_s: When the read was sent, by the process's own clock.
        lease_s: How long the lease is, in seconds.
        leased: Whether the read gives a lease: it was prompt, and its `Date` agrees with the
            storage's clock as this process knows it (SPEC 8.4).
        proves: Whether its date may prove what was seen after it: it gives a lease, and this
            process has known the storage's clock for two leases.
    """

    keyring: Keyring
    desired: DesiredState
    etag: str
    read_at: datetime
    sent_s: float
    lease_s: int
    leased: bool
    proves: bool

    @property
    def lease(self) -> Lease:
        """What fences writes that rest on this read; its date may also be a `turned_at`.

        Raises:
            StorageUnavailableError: the read gives no lease: read again.
        """
        if not self.leased:
            raise StorageUnavailableError(
                "the keyring's reading gives no lease: it was slow, or the storage's clock differs"
            )
        return Lease(self.read_at, self.lease_s)


@dataclass(slots=True)
class _Line:
    """The reads of one project: the last answer, the read under way, the one after it."""

    name: str
    last: KeyringSnapshot | None = None
    digest: bytes = b""
    size_bytes: int = 0
    used_s: float = 0.0
    running: asyncio.Task[KeyringSnapshot] | None = None
    waiting: asyncio.Task[KeyringSnapshot] | None = None

    @property
    def is_idle(self) -> bool:
        return self.running is None and self.waiting is None


@dataclass(frozen=True, slots=True)
class _Flight:
    """A listing under way."""

    sent_s: float
    task: asyncio.Task[None]


class KeyringReader:
    """Reads of keyrings for one process, shared by its uploads."""

    def __init__(
        self,
        storage: Storage,
        master_keys: Mapping[str, Secret],
        *,
        lease_s: int,
        cache_s: float,
        clock: StorageClock | None = None,
    ) -> None:
        """`cache_s` must stay well below `lease_s`: what rests on a cached read is fenced by it."""
        self.clock = clock or StorageClock(lease_s)
        self._storage = storage
        self._master_keys = master_keys
        self._lease_s = lease_s
        self._cache_s = cache_s
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._names: list[str] = []
        self._total_bytes = 0
        self._listings = Listings()
        self._flights: dict[str, _Flight] = {}
        self._ahead: set[str] = set()

    @property
    def lease_s(self) -> int:
        """This process's lease, in seconds."""
        return self._lease_s

    async def read_recent(self, project: str) -> KeyringSnapshot:
        """The keyring by a read, or listing, that was sent at most `cache_s` seconds ago.

        Raises:
            UnknownProjectError: no keyring stands.
            CorruptObjectError: it was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        snapshot = self.get_cached(project)
        if snapshot is not None:
            self._read_ahead(project, snapshot)
            return snapshot
        if await self._listed(project):
            snapshot = self.get_cached(project)
        return snapshot or await self.read_fresh(project)

    def get_cached(self, project: str) -> KeyringSnapshot | None:
        """What `read_recent` would give at once, without a request."""
        snapshot = self.get_last(project)
        if snapshot is None:
            return None
        now_s = self.clock.local_s()
        self._lines[project].used_s = now_s
        self._lines.move_to_end(project)
        return snapshot if now_s - snapshot.sent_s <= self._cache_s else None

    def get_last(self, project: str) -> KeyringSnapshot | None:
        """What was last seen of it, however long ago; None where that is not remembered.

        Asking for a project keeps nothing of it: callers may make names up.
        """
        line = self._lines.get(project)
        if line is None or line.last is None:
            return None
        listing = self._listings.covering(line.name)
        if listing is not None and listing.sent_s > line.last.sent_s:
            self._renew(line, line.last, listing)
        return line.last

    async def read_leased(self, project: str) -> KeyringSnapshot:
        """As `read_recent`, but read again where that read gives no lease."""
        snapshot = await self.read_recent(project)
        return snapshot if snapshot.leased else await self.read_fresh(project)

    async def read_fresh(self, project: str) -> KeyringSnapshot:
        """The keyring by a read that begins after this call; errors as `read_recent`.

        Calls that come while a read is under way share the next one.
        """
        line = self._line(project)
        if line.running is None:
            line.running = _shared(self._read(project, line))
            return await asyncio.shield(line.running)
        if line.waiting is None:
            line.waiting = _shared(self._read_after(project, line, line.running))
        return await asyncio.shield(line.waiting)

    async def _read_after(
        self, project: str, line: _Line, before: asyncio.Task[KeyringSnapshot]
    ) -> KeyringSnapshot:
        await asyncio.wait([before])
        # It holds the line while it waits; it has not begun, so whoever calls now shares it.
        line.running = line.waiting
        if line.last is not None:
            await asyncio.sleep(line.last.sent_s + _BETWEEN_READS_S - self.clock.local_s())
        # From here on it is the running read: whoever calls now needs the one after it.
        line.waiting = None
        return await self._read(project, line)

    async def _read(self, project: str, line: _Line) -> KeyringSnapshot:
        task = asyncio.current_task()
        try:
            snapshot = await self._observe(project, line)
        finally:
            if line.running is task:
                line.running = None
            if line.last is None and line.is_idle and self._lines.get(project) is line:
                # A project without a keyring pushes no other one out of memory.
                self._forget(project)
        return snapshot

    async def _observe(self, project: str, line: _Line) -> KeyringSnapshot:
        sent_s = self.clock.local_s()
        try:
            head, body = await self._storage.read(
                keyring_s3_key(project), max_bytes=_KEYRING_MAX_BYTES
            )
        except MissingError as exc:
            self._drop(line)
            raise UnknownProjectError(project) from exc
        received_s = self.clock.local_s()
        judged = self.clock.observe(head.date, sent_s, received_s)
        digest = hashlib.sha256(body).digest()
        if line.last is not None and digest == line.digest:
            keyring, desired = line.last.keyring, line.last.desired
        else:
            keyring = parse(body, project, self._master_keys)
            desired = keyring.desired(self._master_keys)
        leased = judged.agrees and received_s - sent_s <= self.clock.max_read_s
        snapshot = KeyringSnapshot(
            keyring,
            desired,
            head.etag,
            read_at=head.date,
            sent_s=sent_s,
            lease_s=self._lease_s,
            leased=leased,
            proves=leased and judged.proves,
        )
        self._keep(project, line, snapshot, digest, len(body))
        return snapshot

    # What listings show.

    def _renew(self, line: _Line, last: KeyringSnapshot, listing: Listing) -> None:
        """Take over what a listing that was sent after the last read says of a keyring."""
        if listing.etags.get(line.name) == last.etag:
            # At worst once an upload, and `dataclasses.replace` takes twice as long.
            line.last = KeyringSnapshot(
                last.keyring,
                last.desired,
                last.etag,
                read_at=listing.date,
                sent_s=listing.sent_s,
                lease_s=last.lease_s,
                leased=listing.leased,
                proves=listing.proves,
            )
        else:
            self._drop(line)  # it is gone, or another one now: only a read can say what

    async def _listed(self, project: str) -> bool:
        """Renew a cached keyring by a listing, where one needs fewer requests than reads."""
        line = self._lines.get(project)
        if line is None or line.last is None:
            return False
        if not self._cache_s or not self._storage.capabilities.listings_show_overwrites:
            return False
        after = self._listings.start_for(line.name, self._names)
        flight = self._flights.get(after)
        if flight is None:
            if not self._pays(line.name, after):
                return False
            task = _shared(self._list(after))
            flight = self._flights[after] = _Flight(self.clock.local_s(), task)
        await asyncio.shield(flight.task)
        return True

    def _pays(self, name: str, after: str) -> bool:
        """Whether more than one keyring that a listing shows is in use just now."""
        since_s = self.clock.local_s() - 2 * self._cache_s
        covering = self._listings.covering(name)
        begin = bisect_right(self._names, after)
        end = begin + PAGE_KEYS
        if covering is not None and covering.last is not None:
            end = bisect_right(self._names, covering.last)
        in_use = 0
        for other in self._names[begin:end]:
            if self._lines[_project_of(other)].used_s >= since_s:
                in_use += 1
                if in_use > 1:
                    return True
        return False

    async def _list(self, after: str) -> None:
        sent_s = self.clock.local_s()
        try:
            start = f"{KEYRINGS_PREFIX}{after}" if after else ""
            page = await self._storage.list_page(KEYRINGS_PREFIX, after=start)
        except (StorageAnswerError, StorageUnavailableError):
            return  # a read may still succeed
        finally:
            self._flights.pop(after, None)
        received_s = self.clock.local_s()
        judged = self.clock.observe(page.date, sent_s, received_s)
        etags = {key.removeprefix(KEYRINGS_PREFIX): etag for key, etag in page.etags.items()}
        last = None if page.is_last else next(reversed(etags), after)
        if page.date is None or last == after:
            return
        leased = judged.agrees and received_s - sent_s <= self.clock.max_read_s
        self._listings.add(
            Listing(after, last, etags, page.date, sent_s, leased, leased and judged.proves)
        )

    def _read_ahead(self, project: str, snapshot: KeyringSnapshot) -> None:
        """Renew a keyring in use before its time in the cache is over, beside those who use it."""
        age_s = self.clock.local_s() - snapshot.sent_s
        line = self._lines[project]
        if age_s <= self._cache_s * _AHEAD or project in self._ahead or line.running is not None:
            return
        self._ahead.add(project)
        ahead = _shared(self._renew_ahead(project))
        ahead.add_done_callback(lambda _: self._ahead.discard(project))

    async def _renew_ahead(self, project: str) -> None:
        if not await self._listed(project):
            with contextlib.suppress(CodedError, StorageAnswerError):
                await self.read_fresh(project)

    # What is remembered.

    def _line(self, project: str) -> _Line:
        line = self._lines.get(project)
        if line is None:
            line = self._lines[project] = _Line(name_of(project))
            self._forget_idle()
        line.used_s = self.clock.local_s()
        self._lines.move_to_end(project)
        return line

    def _keep(
        self, project: str, line: _Line, snapshot: KeyringSnapshot, digest: bytes, size_bytes: int
    ) -> None:
        if self._lines.get(project) is line:
            if line.last is None:
                insort(self._names, line.name)
            self._total_bytes += size_bytes - line.size_bytes
            line.size_bytes = size_bytes
        line.last, line.digest = snapshot, digest
        self._forget_idle()

    def _drop(self, line: _Line) -> None:
        """Forget what was seen of a keyring, and keep its place."""
        if line.last is None:
            return
        line.last = None
        self._total_bytes -= line.size_bytes
        line.size_bytes = 0
        at = bisect_left(self._names, line.name)
        if at < len(self._names) and self._names[at] == line.name:
            del self._names[at]

    def _forget(self, project: str) -> None:
        self._drop(self._lines[project])
        del self._lines[project]

    def _forget_idle(self) -> None:
        while len(self._lines) > _MAX_PROJECTS or self._total_bytes > _MAX_TOTAL_BYTES:
            oldest = next(iter(self._lines))
            if len(self._lines) == 1 or not self._lines[oldest].is_idle:
                return
            self._forget(oldest)


def _project_of(name: str) -> str:
    return name.removesuffix(".json")


def _shared(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Work that outlives any one of those who wait for it.

    Its error is looked at here as well: all who waited may have been cancelled, and an
    error that nobody takes is reported by asyncio as lost.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
