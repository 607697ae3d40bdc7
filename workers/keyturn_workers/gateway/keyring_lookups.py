"""Current keyrings, with few requests to the storage however many callers ask (SPEC 9.1).

A key that does not match the cached keyring may be the *current* one: the project was enrolled
or rotated a moment ago. So a refusal is based on what the storage said after the request came.
But a client without a key must not cost one read for each request, be it for one project or for
made-up ones. A few reads a second are made; beyond them, callers share a listing of all
keyrings, whose ETags show which cached keyrings are current.
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
_LISTING_MIN_PAUSE_S: Final = 0.25
# Many keyrings take long to list: at most half of the time is spent on listings.
_PAUSE_PER_LISTING: Final = 1.0
LOOKUP_TIMEOUT_S: Final = 10.0
_T = TypeVar("_T")


class _Listing:
    """One listing: the projects it is for, by their keyring's S3 key, and the ETags it shows."""

    def __init__(self) -> None:
        self.projects: dict[str, str] = {}
        self.etags: dict[str, str] = {}


class KeyringLookups:
    """Looks up keyrings for callers that no cached keyring accepts.

    Memory is bounded by the number of waiting callers.

    Args:
        keyrings: Reads keyrings, and keeps the last read of each.
        storage: The bucket.
    """

    def __init__(self, keyrings: KeyringReader, storage: Storage) -> None:
        self._keyrings = keyrings
        self._storage = storage
        self._tokens = float(_BURST)
        self._tokens_at = time.monotonic()
        # Lookups whose request has not been sent yet: new callers share them.
        self._unsent: dict[str, asyncio.Task[KeyringSnapshot | None]] = {}
        # Lookups whose request was sent, with the time (`time.monotonic`), and has no response yet.
        self._in_progress: dict[str, tuple[float, asyncio.Task[KeyringSnapshot | None]]] = {}
        self._next: tuple[_Listing, asyncio.Task[None]] | None = None
        self._listing: asyncio.Task[None] | None = None
        self._list_at = 0.0

    async def look_up(self, project: str) -> KeyringSnapshot | None:
        """Return the project's keyring by a request that is sent after this call, or None.

        Raises:
            CorruptObjectError: it was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        lookup = self._unsent.get(project)
        if lookup is None:
            lookup = self._unsent[project] = _shared(self._run(project))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                return await asyncio.shield(lookup)
        except TimeoutError as exc:
            raise StorageUnavailableError("too many keyring lookups: try again later") from exc

    async def join(self, project: str, max_age_s: float) -> KeyringSnapshot | None:
        """Return the result of a lookup in progress that was sent within `max_age_s`, or None.

        It may be used to accept a caller, not to refuse one. Errors as `look_up`.
        """
        sent, lookup = self._in_progress.get(project, (0.0, None))
        if lookup is None or time.monotonic() - sent > max_age_s:
            return None
        return await asyncio.shield(lookup)

    async def _run(self, project: str) -> KeyringSnapshot | None:
        try:
            if self._take_token():
                self._mark_sent(project)
                return await self._read(project)
            etag = await self._listed_etag(project)
            if etag is None:
                return None
            known = self._keyrings.get_last(project)
            # If this process has not read it, or it has changed, it is read. The next listing
            # can then use the cached one.
            unchanged = known is not None and known.etag == etag
            return known if unchanged else await self._read(project)
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            task = asyncio.current_task()
            if self._unsent.get(project) is task:
                del self._unsent[project]
            if self._in_progress.get(project, (0.0, None))[1] is task:
                del self._in_progress[project]

    async def _read(self, project: str) -> KeyringSnapshot | None:
        try:
            return await self._keyrings.read_fresh(project)
        except UnknownProjectError:
            return None

    def _mark_sent(self, project: str) -> None:
        """Record that the request is sent: later callers need a new one."""
        lookup = self._unsent.pop(project, None)
        if lookup is not None:
            self._in_progress[project] = time.monotonic(), lookup

    def _take_token(self) -> bool:
        """Take a token, if there is one: a token bucket with `READS_PER_S`."""
        now = time.monotonic()
        refilled = self._tokens + (now - self._tokens_at) * READS_PER_S
        self._tokens, self._tokens_at = min(float(_BURST), refilled), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def _listed_etag(self, project: str) -> str | None:
        """Return the ETag of the project's keyring in a listing that is sent after this call."""
        if self._next is None:
            batch = _Listing()
            self._next = batch, _shared(self._list(batch, self._listing))
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
                if listed.key in batch.projects:
                    batch.etags[batch.projects[listed.key]] = listed.etag
                if listed.key >= last:
                    break
        finally:
            now = time.monotonic()
            self._list_at = now + max(_LISTING_MIN_PAUSE_S, _PAUSE_PER_LISTING * (now - began))


def _shared(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start a task that outlives each of its waiters. Its error is retrieved in any case."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return task
