"""Lookups of current keyrings, with few storage requests for many callers (SPEC 9.1).

A key that does not match the cached keyring may be the *current* one: the project was enrolled
or rotated a moment ago. So a refusal is based on the storage's state after the request came. But
a client without a key must not cost one read for each request, be it for one project or for
made-up ones. A few reads a second are made; beyond them, callers share a listing of all
keyrings, whose ETags show which cached keyrings are current.

With many projects, a listing takes seconds. So existing projects have reserved reads, one a
second for each project, which made-up projects cannot use up. Such a read only admits callers. A
refusal waits for the listing all the same: otherwise its time would show which projects exist.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from keyturn.errors import ProjectErasedError, StorageUnavailableError, UnknownProjectError
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.process.background import share

READS_PER_S: Final = 20.0
_BURST: Final = 40
RESERVED_READS_PER_S: Final = 100.0
"""Reads that only projects that exist may use."""
_RESERVED_BURST: Final = 200
_RESERVED_PAUSE_S: Final = 1.0
_LISTING_MIN_PAUSE_S: Final = 0.25
# Many keyrings take long to list: at most half of the time is spent on listings.
_PAUSE_PER_LISTING: Final = 1.0
LOOKUP_TIMEOUT_S: Final = 10.0
_FILTER_BITS: Final = 2**24
_Lookup = asyncio.Task[KeyringSnapshot | None]


class _Tokens:
    """A token bucket."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._left = self._burst
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take a token, if there is one."""
        now = time.monotonic()
        refilled = self._left + (now - self._at) * self._per_s
        self._left, self._at = min(self._burst, refilled), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _KeyringFilter:
    """A Bloom filter of the existing keyrings, in 2 MiB.

    With the keyrings of a million projects, it also finds one in 70 that do not exist. The hash
    has a random key in each process, so that callers cannot search for such names.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BITS // 8)

    def add(self, s3_key: str) -> None:
        """Remember a keyring, by its S3 key."""
        for bit in self._bits_of(s3_key):
            self._bits[bit // 8] |= 1 << bit % 8

    def __contains__(self, s3_key: str) -> bool:
        return all(self._bits[bit // 8] & 1 << bit % 8 for bit in self._bits_of(s3_key))

    def _bits_of(self, s3_key: str) -> tuple[int, int]:
        digest = hash(s3_key)
        return digest % _FILTER_BITS, (digest // _FILTER_BITS) % _FILTER_BITS


class _Listing:
    """One listing: its projects, by their keyring's S3 key, and the ETags that it shows."""

    def __init__(self) -> None:
        self.projects: dict[str, str] = {}
        self.etags: dict[str, str] = {}


class KeyringLookups:
    """Looks up keyrings for callers that no cached keyring accepts.

    Memory is bounded by the number of waiting callers.
    """

    def __init__(self, keyrings: KeyringReader, storage: Storage) -> None:
        self._keyrings = keyrings
        self._storage = storage
        self._tokens = _Tokens(READS_PER_S, _BURST)
        self._reserved_tokens = _Tokens(RESERVED_READS_PER_S, _RESERVED_BURST)
        self._existing = _KeyringFilter()
        # Lookups whose request has not been sent yet: new callers share them.
        self._unsent: dict[str, _Lookup] = {}
        # Unsent lookups for which there was no token: they wait for a listing.
        self._listed: set[_Lookup] = set()
        # Lookups whose request was sent, with the time (`time.monotonic`), and has no response yet.
        self._in_progress: dict[str, tuple[float, _Lookup]] = {}
        # Reserved reads that are not sent yet, and when the next one of a project may be sent.
        self._reserved: dict[str, _Lookup] = {}
        self._reserved_at: dict[str, float] = {}
        self._next: tuple[_Listing, asyncio.Task[None]] | None = None
        self._listing: asyncio.Task[None] | None = None
        self._list_at = 0.0

    async def look_up(
        self, project: str, accepts: Callable[[KeyringSnapshot], bool]
    ) -> KeyringSnapshot | None:
        """Return the project's keyring by a request that is sent after this call, or None.

        `accepts` checks if the caller has the key of this keyring. If not, the result comes no
        sooner than for a project that does not exist.

        Raises:
            CorruptObjectError: the keyring was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        lookup = self._unsent.get(project)
        if lookup is None:
            has_token = self._tokens.take()
            lookup = self._unsent[project] = share(self._run(project, has_token=has_token))
            if not has_token:
                self._listed.add(lookup)
                lookup.add_done_callback(self._listed.discard)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                if lookup in self._listed and keyring_s3_key(project) in self._existing:
                    read = self._read_reserved(project)
                    await asyncio.wait((lookup, read), return_when=asyncio.FIRST_COMPLETED)
                    snapshot = _result(read)
                    if snapshot is not None and accepts(snapshot):
                        return snapshot
                return await asyncio.shield(lookup)
        except TimeoutError as exc:
            raise StorageUnavailableError("too many keyring lookups: try again later") from exc

    async def join(self, project: str, max_age_s: float) -> KeyringSnapshot | None:
        """Return the result of a read in progress that was sent within `max_age_s`, or None.

        It may be used to accept a caller, not to refuse one. Errors as `look_up`.
        """
        sent, lookup = self._in_progress.get(project, (0.0, None))
        if lookup is None or lookup in self._listed or time.monotonic() - sent > max_age_s:
            return None
        return await asyncio.shield(lookup)

    async def _run(self, project: str, *, has_token: bool) -> KeyringSnapshot | None:
        try:
            if has_token:
                self._mark_sent(project)
                return await self._read(project)
            etag = await self._listed_etag(project)
            if etag is None:
                return None
            known = self._keyrings.get_last(project)
            # A keyring that this process has not read, or that has changed, is read. The next
            # listing can then use the cached one.
            unchanged = known is not None and known.etag == etag
            return known if unchanged else await self._read(project)
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            task = asyncio.current_task()
            if self._unsent.get(project) is task:
                del self._unsent[project]
            if self._in_progress.get(project, (0.0, None))[1] is task:
                del self._in_progress[project]

    async def _read(self, project: str) -> KeyringSnapshot | None:
        try:
            snapshot = await self._keyrings.read_fresh(project)
        except (UnknownProjectError, ProjectErasedError):
            return None
        self._existing.add(keyring_s3_key(project))
        return snapshot

    def _read_reserved(self, project: str) -> _Lookup:
        """Return a read sent after this call. It gives None if existing projects sent too many."""
        read = self._reserved.get(project)
        if read is None:
            read = self._reserved[project] = share(self._run_reserved(project))
        return read

    async def _run_reserved(self, project: str) -> KeyringSnapshot | None:
        # Wrong keys of one project use up its own reads, and not those of others.
        await asyncio.sleep(self._reserved_at.get(project, 0.0) - time.monotonic())
        del self._reserved[project]  # the read is sent now: later callers need the next one
        now = time.monotonic()
        self._reserved_at = {name: at for name, at in self._reserved_at.items() if at > now}
        if not self._reserved_tokens.take():
            return None
        self._reserved_at[project] = now + _RESERVED_PAUSE_S
        return await self._read(project)

    def _mark_sent(self, project: str) -> None:
        """Record that the request is sent: later callers need a new one."""
        lookup = self._unsent.pop(project, None)
        if lookup is not None:
            self._in_progress[project] = time.monotonic(), lookup

    async def _listed_etag(self, project: str) -> str | None:
        """Return the ETag of the project's keyring in a listing that is sent after this call."""
        if self._next is None:
            batch = _Listing()
            self._next = batch, share(self._list(batch, self._listing))
        batch, listing = self._next
        batch.projects[keyring_s3_key(project)] = project
        await asyncio.shield(listing)
        return batch.etags.get(project)

    async def _list(self, batch: _Listing, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(self._list_at - time.monotonic())
        # The listing is sent now: later callers need the next one.
        self._next, self._listing = None, asyncio.current_task()
        for project in batch.projects.values():
            self._mark_sent(project)
        began = time.monotonic()
        last = max(batch.projects)
        try:
            async for listed in self._storage.list(KEYRINGS_PREFIX):
                self._existing.add(listed.key)
                if listed.key in batch.projects:
                    batch.etags[batch.projects[listed.key]] = listed.etag
                if listed.key >= last:
                    break
        finally:
            now = time.monotonic()
            self._list_at = now + max(_LISTING_MIN_PAUSE_S, _PAUSE_PER_LISTING * (now - began))


def _result(lookup: _Lookup) -> KeyringSnapshot | None:
    """Return the lookup's keyring; None if it found none, failed, or is not done."""
    failed = not lookup.done() or lookup.cancelled() or lookup.exception() is not None
    return None if failed else lookup.result()
