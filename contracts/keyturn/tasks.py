"""Tasks that run at once: the first error cancels the others and is raised as it is.

`asyncio.TaskGroup` raises its errors in a group, which no caller expects of one call.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")


@asynccontextmanager
async def task_group() -> AsyncGenerator[asyncio.TaskGroup, None]:
    """Run tasks until all have ended; the first error cancels the rest and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__  # and not from the group


async def gather_all(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return all results in order. The first error cancels the rest and is raised unwrapped."""
    async with task_group() as group:
        tasks = [group.create_task(each) for each in work]
    return [task.result() for task in tasks]


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks, and wait until each has ended, however it ends."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
