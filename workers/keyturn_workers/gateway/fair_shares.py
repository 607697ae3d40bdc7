"""How much of one gateway a single project may use at once (SPEC 9.3).

    ConcurrencyLimit   concurrent requests
    ProjectSlots       larger bodies that are received, and v0 objects that are open: who comes
                       while all are in use waits for a while
    StagingLedger      bytes in staging that are not stored yet

Each has a total for the whole process, and a share of it that one project may use. A project at its
share is refused (429) while all others are served. Only when the total is used up are all projects
refused (503). Projects that use nothing leave no entry, so callers cannot make this grow.

Each gateway counts its own requests: a project that spreads its requests over several gateways
has a share of each.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from keyturn.errors import TooManyRequestsError

MIN_STAGED_BYTES: Final = 1024 * 1024
"""A staged body counts as at least this much, so that the total also limits their number."""

_WAITERS_PER_SLOT: Final = 4


class GatewayBusyError(Exception):
    """The total of all projects is used up: a 503 without a code of SPEC 12."""


def share_of(total: int, share: float) -> int:
    """Return how much of a total one project may use: at least 1."""
    return max(1, int(total * share))


class ConcurrencyLimit:
    """Limits how many of something are in use, by each project and in all.

    Args:
        total: How many may be in use at once.
        share: The part of the total that one project may use, above 0 and at most 1.
        noun: What is counted, in the plural, for the error's detail.
    """

    def __init__(self, total: int, share: float, noun: str) -> None:
        self._total = total
        self._share = share_of(total, share)
        self._noun = noun
        self._by_project: dict[str, int] = {}
        self.in_use = 0

    @contextmanager
    def hold(self, project: str) -> Iterator[None]:
        """Acquire one for the duration of the block.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: all are in use.
        """
        self.acquire(project)
        try:
            yield
        finally:
            self.release(project)

    def acquire(self, project: str) -> None:
        """Acquire one for this project, until `release`. Errors as `hold`."""
        used = self._by_project.get(project, 0)
        if self.in_use >= self._total:
            raise GatewayBusyError
        if used >= self._share:
            raise TooManyRequestsError(f"the project has {used} {self._noun} in progress")
        self._by_project[project] = used + 1
        self.in_use += 1

    def release(self, project: str) -> None:
        """Release one."""
        self.in_use -= 1
        if self._by_project[project] == 1:
            del self._by_project[project]
        else:
            self._by_project[project] -= 1


class _OwnSlots:
    """The slots of one project, and how many callers use one or wait for one."""

    def __init__(self, count: int) -> None:
        self.slots = asyncio.Semaphore(count)
        self.callers = 0


class ProjectSlots:
    """Slots that callers wait for.

    A project uses at most its share of them. How many of its callers wait for a slot is limited
    as well, so that they do not delay other projects.

    Args:
        count: How many slots there are.
        share: The part of them that one project may use, above 0 and at most 1.
        noun: What holds a slot, in the plural, for the error's detail.
        wait_s: How long a caller waits.
    """

    def __init__(self, count: int, share: float, noun: str, *, wait_s: float) -> None:
        self._all = asyncio.Semaphore(count)
        self._share = share_of(count, share)
        self._noun = noun
        self._wait_s = wait_s
        self._projects: dict[str, _OwnSlots] = {}

    @asynccontextmanager
    async def hold(self, project: str) -> AsyncIterator[None]:
        """Acquire a slot for the duration of the block.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: no slot became free in time.
        """
        own = self._projects.setdefault(project, _OwnSlots(self._share))
        if own.callers >= self._share * (1 + _WAITERS_PER_SLOT):
            raise TooManyRequestsError(f"the project has {own.callers} {self._noun} in progress")
        own.callers += 1
        try:
            async with AsyncExitStack() as stack:
                await self._acquire(own, stack)
                yield
        finally:
            own.callers -= 1
            if not own.callers:
                del self._projects[project]

    async def _acquire(self, own: _OwnSlots, stack: AsyncExitStack) -> None:
        has_own = False
        try:
            async with asyncio.timeout(self._wait_s):
                # The project's own first: waiting for it must not hold one of all slots.
                await stack.enter_async_context(own.slots)
                has_own = True
                await stack.enter_async_context(self._all)
        except TimeoutError as exc:
            if not has_own:
                raise TooManyRequestsError(
                    f"the project's other {self._noun} did not end in time"
                ) from exc
            raise GatewayBusyError from exc


@dataclass(slots=True)
class _StagedBody:
    """A body that this gateway staged; `completed_at_s` is None while it is being received."""

    project: str
    counted_bytes: int
    completed_at_s: float | None = None


class StagingLedger:
    """Counts the bytes that each project has in staging.

    Workers delete a body from staging once it is stored or refused for good, so a listing of
    the publisher's folder is the truth. It names no project: bodies from before this process
    started, and those of other gateways, count toward the total only.

    Args:
        total_bytes: How many bytes all projects may have there together.
        share: The part of the total that one project may have, above 0 and at most 1. A
            project that has nothing there may always stage one body.
    """

    def __init__(self, total_bytes: int, share: float) -> None:
        self._total_bytes = total_bytes
        self._share_bytes = share_of(total_bytes, share)
        self._staged: dict[str, _StagedBody] = {}
        self._by_project: dict[str, int] = {}
        self._own_bytes = 0
        self._foreign_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What is known to be in staging, and what is reserved."""
        return self._own_bytes + self._foreign_bytes

    def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Reserve room for a body of at least this size. Call again as the body grows.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: the total is used up.
        """
        before = self._staged.get(upload_id)
        counted = before.counted_bytes if before else 0
        more = max(size_bytes, MIN_STAGED_BYTES) - counted
        if more <= 0:
            return
        used = self._by_project.get(project, 0)
        if self.used_bytes + more > self._total_bytes:
            raise GatewayBusyError
        if used > counted and used + more > self._share_bytes:
            raise TooManyRequestsError(
                f"the project has {used} bytes in staging that are not stored yet"
            )
        self._staged[upload_id] = _StagedBody(project, counted + more)
        self._by_project[project] = used + more
        self._own_bytes += more

    def complete(self, upload_id: str, now_s: float) -> None:
        """Record that the body is in staging, until a later listing does not show it."""
        if (staged := self._staged.get(upload_id)) is not None:
            staged.completed_at_s = now_s

    def release(self, upload_id: str) -> None:
        """Record that nothing of the body is in staging."""
        staged = self._staged.pop(upload_id, None)
        if staged is None:
            return
        self._own_bytes -= staged.counted_bytes
        remaining = self._by_project[staged.project] - staged.counted_bytes
        if remaining:
            self._by_project[staged.project] = remaining
        else:
            del self._by_project[staged.project]

    def apply_listing(self, sent_at_s: float, sizes_bytes: Mapping[str, int]) -> None:
        """Update from a listing.

        Args:
            sent_at_s: When the listing was sent, by the clock of `complete`.
            sizes_bytes: The bodies that it shows: size by upload id.
        """
        deleted = [
            upload_id
            for upload_id, staged in self._staged.items()
            # A body that was completed after the listing was sent may be missing from it.
            if staged.completed_at_s is not None
            and staged.completed_at_s < sent_at_s
            and upload_id not in sizes_bytes
        ]
        for upload_id in deleted:
            self.release(upload_id)
        self._foreign_bytes = sum(
            max(size_bytes, MIN_STAGED_BYTES)
            for upload_id, size_bytes in sizes_bytes.items()
            if upload_id not in self._staged
        )
