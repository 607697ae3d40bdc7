"""Work beside what a process serves: repeated until the process ends, and ended with it.

One cancellation has to be enough, but a library can swallow it. Where a request to the broker is
canceled while its connection is lost, aiormq raises the error of the connection
(`aiormq.abc.TaskWrapper`). Before Python 3.12 `asyncio.wait_for` returns a result that came at the
same moment, and `asyncio.gather` raises the error of a task that failed then. A loop that handles
these and goes on would never end. But a canceled task stays marked as canceled
(`asyncio.Task.cancelling`), so a loop looks there before it goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

END_TIMEOUT_S: Final = 5.0
"""How long the end of a process waits for work that was canceled."""

_T = TypeVar("_T")

_log = structlog.get_logger()


def share(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start work that outlives any one of its waiters: each waits for it under a shield.

    Its error is retrieved in any case: if all waiters were canceled, asyncio would report an
    exception that was never retrieved.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def raise_if_canceled() -> None:
    """Raise `CancelledError` in a task that was canceled, even if a library swallowed that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def repeat(
    action: Callable[[], Awaitable[object]],
    pause_s: Callable[[], float],
    *,
    pause_first: bool = False,
) -> None:
    """Do something again and again, until the task is canceled.

    Args:
        action: Handles its own errors: one that it raises ends the repetition.
        pause_s: The seconds until the next time.
        pause_first: Whether to begin with a pause.
    """
    if pause_first:
        await asyncio.sleep(pause_s())
    while True:
        await action()
        raise_if_canceled()
        await asyncio.sleep(pause_s())


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` concurrently with the block, and end it with the block.

    Work that ends earlier is logged as an error: the block goes on without it.
    """
    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    is_ending = False

    def report(done: asyncio.Task[None]) -> None:
        # The client library also ends a task as canceled when a connection is lost.
        problem = None if done.cancelled() else done.exception()
        if problem is not None or (done.cancelled() and not is_ending):
            _log.error("background work failed", work=done.get_name(), exc_info=problem)

    task.add_done_callback(report)
    try:
        yield
    finally:
        is_ending = True
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=END_TIMEOUT_S)
        if pending:
            _log.error("background work does not end", work=task.get_name())
