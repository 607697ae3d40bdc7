"""What an upload needs: room for its request, and for a larger body more (SPEC 9.3, 9.4).

Each request counts until its outcome is known. A body up to 256 KiB is sent in the request message
itself, and counts with it. A larger one needs an upload slot, since it has some parts of 8 MiB in
memory while it is received, and room in staging, where it is until it is stored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from keyturn.messages import INLINE_MAX_BYTES
from keyturn.publisher import OutcomeUnknownError
from keyturn_workers.gateway.fair_shares import ProjectSlots
from keyturn_workers.gateway.pending_requests import PendingRequest
from keyturn_workers.gateway.staging_quota import StagingQuota


class UploadLimits:
    """Limits what uploads use, of one project and in all.

    Args:
        slots: Limits how many larger bodies are received at once.
        quota: Limits what is in staging.
    """

    def __init__(self, slots: ProjectSlots, quota: StagingQuota) -> None:
        self._slots = slots
        self._quota = quota

    @asynccontextmanager
    async def hold(self, pending: PendingRequest) -> AsyncIterator["UploadClaim"]:
        """Yield a claim for one upload, while its body is received and published."""
        upload_id = pending.request_id
        async with AsyncExitStack() as stack:
            try:
                yield UploadClaim(pending, self._slots, self._quota, stack)
            except (OutcomeUnknownError, asyncio.CancelledError):
                self._quota.complete(upload_id)  # a worker may be about to store it
                raise
            except BaseException:
                self._quota.release(upload_id)
                raise
            self._quota.complete(upload_id)


class UploadClaim:
    """What one upload uses. Created by `UploadLimits.hold`."""

    def __init__(
        self,
        pending: PendingRequest,
        slots: ProjectSlots,
        quota: StagingQuota,
        stack: AsyncExitStack,
    ) -> None:
        self._pending = pending
        self._slots = slots
        self._quota = quota
        self._stack = stack
        self._has_slot = False

    async def grow(self, size_bytes: int) -> None:
        """Acquire what a body of at least this size needs.

        Raises:
            TooManyRequestsError: the project uses its share, or its pending requests hold too
                many bytes.
            GatewayBusyError: no slot became free, or staging is full.
            StorageUnavailableError: staging cannot be listed.
        """
        if size_bytes <= INLINE_MAX_BYTES:
            self._pending.resize(size_bytes)
            return
        project = self._pending.project
        if not self._has_slot:
            self._pending.resize(0)  # the body is staged
            await self._stack.enter_async_context(self._slots.hold(project))
            self._has_slot = True
        await self._quota.reserve(project, self._pending.request_id, size_bytes)
