"""What bodies above 256 KiB need on their way in: a place, and room in staging (SPEC 9.3).

A smaller body travels in the request itself and needs neither. A larger one holds some parts of
8 MiB in memory while it comes in, and its bytes in staging until it is stored.
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
_WAITING_A_PLACE: Final = 4


class UploadLimits:
    """Bounds what bodies hold, of one project and in all.

    Args:
        places: For bodies that come in.
        staged: Counts what is in staging.
    """

    def __init__(self, places: "UploadSlots", staged: StagingQuota) -> None:
        self._places = places
        self._staged = staged

    @asynccontextmanager
    async def hold(self, project: str, upload_id: str) -> AsyncIterator["UploadClaim"]:
        """What one upload needs, for as long as it is taken in and published."""
        async with AsyncExitStack() as stack:
            try:
                yield UploadClaim(project, upload_id, self._places, self._staged, stack)
            except (OutcomeUnknownError, asyncio.CancelledError):
                self._staged.complete(upload_id)  # it may be on its way to a worker
                raise
            except BaseException:
                self._staged.release(upload_id)
                raise
            self._staged.complete(upload_id)


class UploadClaim:
    """What one upload holds. Made by `UploadLimits.hold`."""

    def __init__(
        self,
        project: str,
        upload_id: str,
        places: "UploadSlots",
        staged: StagingQuota,
        stack: AsyncExitStack,
    ) -> None:
        self._project = project
        self._upload_id = upload_id
        self._places = places
        self._staged = staged
        self._stack = stack
        self._has_place = False

    async def grow(self, size_bytes: int) -> None:
        """Hold what a body of at least this size needs.

        Raises:
            TooManyRequestsError: the project has its share.
            GatewayBusyError: there is no place, or no room, for anybody.
            StorageUnavailableError: staging cannot be listed.
        """
        if size_bytes <= INLINE_MAX_BYTES:
            return
        if not self._has_place:
            await self._stack.enter_async_context(self._places.hold(self._project))
            self._has_place = True
        await self._staged.reserve(self._project, self._upload_id, size_bytes)


class _ProjectSlots:
    """The places that one project may have, and how many use or want one."""

    def __init__(self, count: int) -> None:
        self.places = asyncio.Semaphore(count)
        self.users = 0


class UploadSlots:
    """Places for bodies above 256 KiB: no project has more than its share, and none waits for long.

    Those of a project that wait are bounded as well, so that they wait in no other one's way.

    Args:
        count: How many there are.
        project_share: The part of them that one project may have.
    """

    def __init__(self, count: int, project_share: float) -> None:
        self._all = asyncio.Semaphore(count)
        self._share = share_of(count, project_share)
        self._projects: dict[str, _ProjectSlots] = {}

    @asynccontextmanager
    async def hold(self, project: str) -> AsyncIterator[None]:
        """A place for as long as the block runs.

        Raises:
            TooManyRequestsError: the project's own are all in use, and enough wait for them.
            GatewayBusyError: no place became free in time.
        """
        own = self._projects.setdefault(project, _ProjectSlots(self._share))
        if own.users >= self._share * (1 + _WAITING_A_PLACE):
            raise TooManyRequestsError(f"the project has {own.users} bodies under way")
        own.users += 1
        try:
            async with AsyncExitStack() as stack:
                await self._wait(own, stack)
                yield
        finally:
            own.users -= 1
            if not own.users:
                del self._projects[project]

    async def _wait(self, own: _ProjectSlots, stack: AsyncExitStack) -> None:
        timeout = asyncio.timeout(SLOT_WAIT_S)
        has_own = False
        try:
            async with timeout:
                # Its own first: who waits for it keeps none from the others meanwhile.
                await stack.enter_async_context(own.places)
                has_own = True
                await stack.enter_async_context(self._all)
        except TimeoutError as exc:
            if not has_own:
                raise TooManyRequestsError("the project's other bodies take too long") from exc
            raise GatewayBusyError from exc
