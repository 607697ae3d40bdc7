"""Limits on one project's concurrent use of one gateway (SPEC 9.3).

    ConcurrencyLimit   concurrent requests
    ProjectSlots       larger bodies that are received: callers wait briefly for a free slot
    SharedLimit        listings and reads of many keys: more of them wait
    Staging            bytes in staging that are not stored yet (`uploads`)

Each has a total for the whole process, and a share of it that one project may use. A project at its
share is refused (429) while all others are served. Only when the total is used up are all projects
refused (503). Projects that use nothing leave no entry, so callers cannot make this grow.

Each gateway counts its own requests: a project that spreads its requests over several gateways
has a share of each.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from keyturn.errors import TooManyRequestsError
from keyturn.tasks import task_group

_WAITERS_PER_SLOT: Final = 4
_T = TypeVar("_T")


class GatewayBusyError(Exception):
    """The total of all projects is used up: a 503 without a code of SPEC 12."""


def share_of(total: int, share: float) -> int:
    """Return how much of a total one project may use: at least 1."""
    return max(1, int(total * share))


class ConcurrencyLimit:
    """Limits how many of something are in use, by each project and in total.

    One project may use `share` of the total, above 0 and at most 1. `noun` names the counted
    things in the error's detail, in the plural.
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
        used = self._by_project.get(project, 0)
        if self.in_use >= self._total:
            raise GatewayBusyError
        if used >= self._share:
            raise TooManyRequestsError(f"the project has {used} {self._noun} in progress")
        self._by_project[project] = used + 1
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._by_project[project] -= 1
            if not self._by_project[project]:
                del self._by_project[project]


class _OwnSlots:
    """The slots of one project, and how many callers use one or wait for one."""

    def __init__(self, count: int) -> None:
        self.slots = asyncio.Semaphore(count)
        self.callers = 0


class ProjectSlots:
    """Slots that callers wait for, at most `wait_s` seconds.

    A project uses at most its `share` of them, above 0 and at most 1. The number of its waiting
    callers is limited as well, so that they do not delay other projects. `noun` names the
    holders of slots in the error's detail, in the plural.
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
                # The project's own first: a caller waiting for it must not hold one of all slots.
                await stack.enter_async_context(own.slots)
                has_own = True
                await stack.enter_async_context(self._all)
        except TimeoutError as exc:
            if not has_own:
                raise TooManyRequestsError(
                    f"the project's other {self._noun} did not end in time"
                ) from exc
            raise GatewayBusyError from exc


class SharedLimit:
    """Limits how many of something run at once, in total and of one project. The others wait."""

    def __init__(self, total: int, per_project: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_project = per_project
        self._by_project: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, project: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the duration of the block."""
        own = self._by_project.setdefault(project, asyncio.Semaphore(self._per_project))
        # The project's own limit first: callers that wait there do not delay other projects.
        async with own, self._total:
            yield

    async def run_each(
        self, project: str, items: Collection[_T], work: Callable[[_T], Awaitable[None]]
    ) -> None:
        """Do the work for each item, each in a place. The first error cancels the others."""
        left = iter(items)

        async def run() -> None:
            for item in left:
                async with self.hold(project):
                    await work(item)

        async with task_group() as group:
            for _ in range(min(len(items), self._per_project)):
                group.create_task(run())
