"""Bounds what one project has in staging (SPEC 9.3), by looking there when a bound is reached.

While nobody is near a bound, nothing is listed but once in a while, for the total.
"""

import asyncio
import time
from typing import Final

from keyturn.errors import StorageUnavailableError, TooManyRequestsError
from keyturn.identifiers import staging_s3_key
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.gateway.fair_shares import GatewayBusyError, StagingLedger
from keyturn_workers.storage import Storage

# What other gateways staged, and what was there at the start, is known this exactly.
_LISTING_MAX_AGE_S: Final = 60.0
_BETWEEN_LISTINGS_S: Final = 1.0
# A listing of very much takes long: no more than a tenth of the time is spent on them.
_REST_A_LISTING: Final = 9.0


class StagingQuota:
    """What is in staging of one gateway's publisher.

    Args:
        storage: The bucket.
        publisher: The name that the gateway publishes under.
        ledger: Counts.
    """

    def __init__(self, storage: Storage, publisher: str, ledger: StagingLedger) -> None:
        self._storage = storage
        self._prefix = staging_s3_key(publisher, "")
        self._ledger = ledger
        self._listed_at: float | None = None
        self._next_at = 0.0
        self._listing: asyncio.Task[None] | None = None

    async def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Room for a body of at least this size, or a refusal.

        Raises:
            TooManyRequestsError: the project has its share there.
            GatewayBusyError: there is no room at all.
            StorageUnavailableError: staging cannot be listed.
        """
        if self._listed_at is None or time.monotonic() - self._listed_at > _LISTING_MAX_AGE_S:
            await self._list()
        try:
            self._ledger.reserve(project, upload_id, size_bytes)
        except (TooManyRequestsError, GatewayBusyError):
            await self._list()
            self._ledger.reserve(project, upload_id, size_bytes)

    def complete(self, upload_id: str) -> None:
        """The body was staged, or may have been."""
        self._ledger.complete(upload_id, time.monotonic())

    def release(self, upload_id: str) -> None:
        """The body was not staged, or is not there any more."""
        self._ledger.release(upload_id)

    async def _list(self) -> None:
        """Look what is left; callers share one listing, and there is a pause between two."""
        if self._listing is None:
            if time.monotonic() < self._next_at:
                return
            self._listing = asyncio.create_task(self._look())
            self._listing.add_done_callback(self._looked)
        await asyncio.shield(self._listing)

    async def _look(self) -> None:
        began = time.monotonic()
        try:
            found = {
                body.key.removeprefix(self._prefix): body.size_bytes
                async for body in self._storage.list(self._prefix)
            }
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            now = time.monotonic()
            self._next_at = now + max(_BETWEEN_LISTINGS_S, _REST_A_LISTING * (now - began))
        self._ledger.listed(began, found)
        self._listed_at = began

    def _looked(self, done: asyncio.Task[None]) -> None:
        self._listing = None
        if not done.cancelled():
            done.exception()  # all who waited for it may be gone
