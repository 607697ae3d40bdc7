"""Reading keyrings: cached for a moment, or begun after an instant (SPEC 7.3, 8.4).

Many uploads share one read. What matters is not how young an answer is but when its
read *began*: only a read that began after a put was acknowledged can tell that the
desired state had not moved before the put. `fresh` gives exactly that.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from contracts.errors import StorageUnavailableError, UnknownProjectError
from contracts.names import keyring_key
from contracts.sealing import Secret
from workers.errors import MissingError
from workers.keyring.record import Desired, Keyring, parse
from workers.storage import Lease, Storage, StorageClock

_MAX_PROJECTS: Final = 10_000
# Some thousands of rotations. What somebody put there that is larger is not even parsed whole.
_KEYRING_MAX_BYTES: Final = 2 * 1024**2
# Reads of a busy project begin no closer together than this, so that more uploads share
# one. An upload that comes alone never waits for it.
_BETWEEN_READS_S: Final = 0.03


@dataclass(frozen=True, slots=True)
class Observed:
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
    desired: Desired
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

    last: Observed | None = None
    last_body: bytes = b""
    running: asyncio.Task[Observed] | None = None
    waiting: asyncio.Task[Observed] | None = None


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

    @property
    def lease_s(self) -> int:
        """This process's lease, in seconds."""
        return self._lease_s

    async def recent(self, project: str) -> Observed:
        """The keyring by a read that began at most `cache_s` seconds ago.

        Raises:
            UnknownProjectError: no keyring stands.
            CorruptObjectError: it was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        return self.cached(project) or await self.fresh(project)

    def cached(self, project: str) -> Observed | None:
        """What `recent` would give at once, without a read."""
        if project in self._lines:
            self._lines.move_to_end(project)
        last = self.last(project)
        if last is not None and self.clock.own_s() - last.sent_s <= self._cache_s:
            return last
        return None

    def last(self, project: str) -> Observed | None:
        """What the last read showed, however long ago; None where it is not remembered.

        Asking for a project keeps nothing of it: callers may make names up.
        """
        line = self._lines.get(project)
        return None if line is None else line.last

    async def leased(self, project: str) -> Observed:
        """As `recent`, but read again where the cached read gives no lease."""
        observed = await self.recent(project)
        return observed if observed.leased else await self.fresh(project)

    async def fresh(self, project: str) -> Observed:
        """The keyring by a read that begins after this call; errors as `recent`.

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
        self, project: str, line: _Line, before: asyncio.Task[Observed]
    ) -> Observed:
        await asyncio.wait([before])
        # It holds the line while it waits; it has not begun, so whoever calls now shares it.
        line.running = line.waiting
        if line.last is not None:
            await asyncio.sleep(line.last.sent_s + _BETWEEN_READS_S - self.clock.own_s())
        # From here on it is the running read: whoever calls now needs the one after it.
        line.waiting = None
        return await self._read(project, line)

    async def _read(self, project: str, line: _Line) -> Observed:
        task = asyncio.current_task()
        try:
            line.last = await self._observe(project, line)
        finally:
            if line.running is task:
                line.running = None
            self._forget_nothing(project, line)
        return line.last

    async def _observe(self, project: str, line: _Line) -> Observed:
        sent_s = self.clock.own_s()
        try:
            head, body = await self._storage.read(
                keyring_key(project), max_bytes=_KEYRING_MAX_BYTES
            )
        except MissingError as exc:
            line.last = None
            raise UnknownProjectError(project) from exc
        received_s = self.clock.own_s()
        judged = self.clock.observe(head.date, sent_s, received_s)
        if line.last is not None and body == line.last_body:
            keyring, desired = line.last.keyring, line.last.desired
        else:
            keyring = parse(body, project, self._master_keys)
            desired = keyring.desired(self._master_keys)
            line.last_body = body
        leased = judged.agrees and received_s - sent_s <= self.clock.prompt_s
        return Observed(
            keyring,
            desired,
            head.etag,
            read_at=head.date,
            sent_s=sent_s,
            lease_s=self._lease_s,
            leased=leased,
            proves=leased and judged.proves,
        )

    def _line(self, project: str) -> _Line:
        line = self._lines.get(project)
        if line is None:
            line = self._lines[project] = _Line()
            self._forget_idle()
        self._lines.move_to_end(project)
        return line

    def _forget_nothing(self, project: str, line: _Line) -> None:
        """A project without a keyring pushes no other one out of memory."""
        unused = line.last is None and line.running is None and line.waiting is None
        if unused and self._lines.get(project) is line:
            del self._lines[project]

    def _forget_idle(self) -> None:
        while len(self._lines) > _MAX_PROJECTS:
            oldest = next(iter(self._lines))
            if self._lines[oldest].running is not None:
                return
            del self._lines[oldest]


def _shared(read: Coroutine[Any, Any, Observed]) -> asyncio.Task[Observed]:
    """A read that outlives any one of its waiters.

    Its error is looked at here as well: all its waiters may have been cancelled, and an
    error that nobody takes is reported by asyncio as lost.
    """
    task = asyncio.create_task(read)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
