"""Limits what one project has in staging (SPEC 9.3).

Staging is listed when a limit is reached, and once a minute for the total.
"""

import asyncio
import time
from typing import Final

from keyturn.errors import StorageUnavailableError, TooManyRequestsError
from keyturn.identifiers import staging_s3_key
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.gateway.fair_shares import GatewayBusyError, StagingLedger
from keyturn_workers.storage import Storage

# How old the knowledge of other gateways' bodies may be.
_LISTING_MAX_AGE_S: Final = 60.0
_LISTING_MIN_PAUSE_S: Final = 1.0
# A large staging area takes long to list: at most a tenth of the time is spent on it.
_PAUSE_PER_LISTING: Final = 9.0


class StagingQuota:
    """Reserves room in the staging folder of one gateway's publisher.

    Args:
        storage: The bucket.
        publisher: The name that the gateway publishes under.
        ledger: Counts the bytes.
    """

    def __init__(self, storage: Storage, publisher: str, ledger: StagingLedger) -> None:
        self._storage = storage
        self._prefix = staging_s3_key(publisher, "")
        self._ledger = ledger
        self._listed_at: float | None = None
        self._next_listing_at = 0.0
        self._listing: asyncio.Task[None] | None = None

    async def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Reserve room for a body of at least this size.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: the total is used up.
            StorageUnavailableError: staging cannot be listed.
        """
        if self._listed_at is None or time.monotonic() - self._listed_at > _LISTING_MAX_AGE_S:
            await self._refresh()
        try:
            self._ledger.reserve(project, upload_id, size_bytes)
        except (TooManyRequestsError, GatewayBusyError):
            await self._refresh()
            self._ledger.reserve(project, upload_id, size_bytes)

    def complete(self, upload_id: str) -> None:
        """Record that the body was staged, or may have been."""
        self._ledger.complete(upload_id, time.monotonic())

    def release(self, upload_id: str) -> None:
        """Record that the body is not in staging."""
        self._ledger.release(upload_id)

    async def _refresh(self) -> None:
        """List staging. Concurrent callers share one listing; there is a pause between two."""
        if self._listing is None:
            if time.monotonic() < self._next_listing_at:
                return
            self._listing = asyncio.create_task(self._list())
            self._listing.add_done_callback(self._listing_done)
        await asyncio.shield(self._listing)

    async def _list(self) -> None:
        sent_at = time.monotonic()
        try:
            sizes_bytes = {
                body.key.removeprefix(self._prefix): body.size_bytes
                async for body in self._storage.list(self._prefix)
            }
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            now = time.monotonic()
            pause_s = max(_LISTING_MIN_PAUSE_S, _PAUSE_PER_LISTING * (now - sent_at))
            self._next_listing_at = now + pause_s
        self._ledger.apply_listing(sent_at, sizes_bytes)
        self._listed_at = sent_at

    def _listing_done(self, task: asyncio.Task[None]) -> None:
        self._listing = None
        if not task.cancelled():
            task.exception()  # retrieve it: the waiters may all have been cancelled
