"""What bodies above 256 KiB need: an upload slot, and room in staging (SPEC 9.3).

A smaller body is sent in the request message itself and needs neither. A larger one has some
parts of 8 MiB in memory while it is received, and is in staging until it is stored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from keyturn.errors import TooManyRequestsError
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.publisher import OutcomeUnknownError
from keyturn_workers.gateway.fair_shares import GatewayBusyError, share_of
from keyturn_workers.gateway.staging_quota import StagingQuota

SLOT_WAIT_S: Final = 30.0
_WAITERS_PER_SLOT: Final = 4


class UploadLimits:
    """Limits what uploads use, of one project and in all.

    Args:
        slots: Limits how many larger bodies are received at once.
        quota: Limits what is in staging.
    """

    def __init__(self, slots: "UploadSlots", quota: StagingQuota) -> None:
        self._slots = slots
        self._quota = quota

    @asynccontextmanager
    async def hold(self, project: str, upload_id: str) -> AsyncIterator["UploadClaim"]:
        """Yield a claim for one upload, while its body is received and published."""
        async with AsyncExitStack() as stack:
            try:
                yield UploadClaim(project, upload_id, self._slots, self._quota, stack)
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
        project: str,
        upload_id: str,
        slots: "UploadSlots",
        quota: StagingQuota,
        stack: AsyncExitStack,
    ) -> None:
        self._project = project
        self._upload_id = upload_id
        self._slots = slots
        self._quota = quota
        self._stack = stack
        self._has_slot = False

    async def grow(self, size_bytes: int) -> None:
        """Acquire what a body of at least this size needs.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: no slot became free, or staging is full.
            StorageUnavailableError: staging cannot be listed.
        """
        if size_bytes <= INLINE_MAX_BYTES:
            return
        if not self._has_slot:
            await self._stack.enter_async_context(self._slots.hold(self._project))
            self._has_slot = True
        await self._quota.reserve(self._project, self._upload_id, size_bytes)


class _ProjectSlots:
    """The slots of one project, and how many uploads use one or wait for one."""

    def __init__(self, count: int) -> None:
        self.slots = asyncio.Semaphore(count)
        self.uploads = 0


class UploadSlots:
    """Slots for bodies above 256 KiB.

    A project uses at most its share of them. How many of its uploads wait for a slot is limited
    as well, so that they do not delay other projects.

    Args:
        count: How many slots there are.
        project_share: The part of them that one project may use.
    """

    def __init__(self, count: int, project_share: float) -> None:
        self._all = asyncio.Semaphore(count)
        self._share = share_of(count, project_share)
        self._projects: dict[str, _ProjectSlots] = {}

    @asynccontextmanager
    async def hold(self, project: str) -> AsyncIterator[None]:
        """Acquire a slot for the duration of the block.

        Raises:
            TooManyRequestsError: the project uses its share, and enough of its uploads wait.
            GatewayBusyError: no slot became free in time.
        """
        own = self._projects.setdefault(project, _ProjectSlots(self._share))
        if own.uploads >= self._share * (1 + _WAITERS_PER_SLOT):
            raise TooManyRequestsError(f"the project has {own.uploads} uploads in progress")
        own.uploads += 1
        try:
            async with AsyncExitStack() as stack:
                await self._acquire(own, stack)
                yield
        finally:
            own.uploads -= 1
            if not own.uploads:
                del self._projects[project]

    async def _acquire(self, own: _ProjectSlots, stack: AsyncExitStack) -> None:
        has_own = False
        try:
            async with asyncio.timeout(SLOT_WAIT_S):
                # The project's own first: waiting for it must not hold one of all slots.
                await stack.enter_async_context(own.slots)
                has_own = True
                await stack.enter_async_context(self._all)
        except TimeoutError as exc:
            if not has_own:
                raise TooManyRequestsError(
                    "the project's other uploads did not finish in time"
                ) from exc
            raise GatewayBusyError from exc
