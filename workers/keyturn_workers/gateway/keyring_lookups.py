"""Keyrings as they are now, by few requests to the storage whatever callers ask (SPEC 9.1).

A caller whose key does not match what is known of a project may hold its *current* key all the
same: the project was enrolled, or its key turned, a moment ago. So a refusal rests on what the
storage said after the request came. But whoever has no key must not cost a read a request, for
one project or for made-up ones: a few reads a second are made, and beyond them callers share a
listing of all keyrings, whose ETags tell which are still as they were known.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from keyturn.errors import StorageUnavailableError, UnknownProjectError
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.storage import Storage

READS_PER_S: Final = 20.0
_BURST: Final = 40
_BETWEEN_LISTINGS_S: Final = 0.25
# A listing of very many takes long; no more than half of the time is spent on them.
_REST_A_LISTING: Final = 1.0
LOOKUP_TIMEOUT_S: Final = 10.0
_T = TypeVar("_T")


class _Round:
    """One listing: the keyrings that are looked for in it, and the ETags of those it shows."""

    def __init__(self) -> None:
        self.wanted: dict[str, str] = {}
        self.etags: dict[str, str] = {}


class KeyringLookups:
    """Looks keyrings up for callers who are not admitted by what is known.

    Memory is bounded by the callers that wait.

    Args:
        keyrings: Reads them, and remembers what it read.
        storage: The bucket.
    """

    def __init__(self, keyrings: KeyringReader, storage: Storage) -> None:
        self._keyrings = keyrings
        self._storage = storage
        self._tokens = float(_BURST)
        self._tokens_at = time.monotonic()
        # Lookups whose request has not been sent yet: whoever comes now shares it.
        self._unsent: dict[str, asyncio.Task[KeyringSnapshot | None]] = {}
        # Those whose request was sent, by `time.monotonic`, and is not answered yet.
        self._under_way: dict[str, tuple[float, asyncio.Task[KeyringSnapshot | None]]] = {}
        self._next: tuple[_Round, asyncio.Task[None]] | None = None
        self._listing: asyncio.Task[None] | None = None
        self._list_at = 0.0

    async def current(self, project: str) -> KeyringSnapshot | None:
        """The project's keyring by a request that is sent after this call; None: it has none.

        Raises:
            CorruptObjectError: it was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        lookup = self._unsent.get(project)
        if lookup is None:
            lookup = self._unsent[project] = _shared(self._look_up(project))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                return await asyncio.shield(lookup)
        except TimeoutError as exc:
            raise StorageUnavailableError("too many keyrings are looked up just now") from exc

    async def joined(self, project: str, max_age_s: float) -> KeyringSnapshot | None:
        """What a lookup under way shows, if it was sent within these seconds; else None.

        It may admit whoever comes meanwhile, but refuse nobody; errors as `current`.
        """
        sent, lookup = self._under_way.get(project, (0.0, None))
        if lookup is None or time.monotonic() - sent > max_age_s:
            return None
        return await asyncio.shield(lookup)

    async def _look_up(self, project: str) -> KeyringSnapshot | None:
        try:
            if self._may_read():
                self._sent(project)
                return await self._read(project)
            etag = await self._listed(project)
            if etag is None:
                return None
            known = self._keyrings.get_last(project)
            # One that this process has not read, or that changed since, is read; the next
            # listing then finds it known.
            unchanged = known is not None and known.etag == etag
            return known if unchanged else await self._read(project)
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            task = asyncio.current_task()
            if self._unsent.get(project) is task:
                del self._unsent[project]
            if self._under_way.get(project, (0.0, None))[1] is task:
                del self._under_way[project]

    async def _read(self, project: str) -> KeyringSnapshot | None:
        try:
            return await self._keyrings.read_fresh(project)
        except UnknownProjectError:
            return None

    def _sent(self, project: str) -> None:
        """Whoever comes from here on came after it."""
        lookup = self._unsent.pop(project, None)
        if lookup is not None:
            self._under_way[project] = time.monotonic(), lookup

    def _may_read(self) -> bool:
        """Whether one of the few reads a second is left."""
        now = time.monotonic()
        refilled = self._tokens + (now - self._tokens_at) * READS_PER_S
        self._tokens, self._tokens_at = min(float(_BURST), refilled), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def _listed(self, project: str) -> str | None:
        """The ETag of the project's keyring in a listing that is sent from now on."""
        if self._next is None:
            opened = _Round()
            self._next = opened, _shared(self._list(opened, self._listing))
        round_, listing = self._next
        round_.wanted[keyring_s3_key(project)] = project
        await asyncio.shield(listing)
        return round_.etags.get(project)

    async def _list(self, round_: _Round, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(self._list_at - time.monotonic())
        # It is sent now: whoever comes from here on needs the next one.
        self._next, self._listing = None, asyncio.current_task()
        for project in round_.wanted.values():
            self._sent(project)
        began = time.monotonic()
        last = max(round_.wanted)
        try:
            async for listed in self._storage.list(KEYRINGS_PREFIX):
                if listed.key in round_.wanted:
                    round_.etags[round_.wanted[listed.key]] = listed.etag
                if listed.key >= last:
                    break
        finally:
            now = time.monotonic()
            self._list_at = now + max(_BETWEEN_LISTINGS_S, _REST_A_LISTING * (now - began))


def _shared(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that outlives any one of its waiters; its error is theirs, if there are any left."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
