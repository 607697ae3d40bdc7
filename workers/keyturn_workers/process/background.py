"""Background work: repeated until the process ends, and ended with it.

One cancellation has to be enough, but a library can swallow it. If a request to the broker is
canceled while its connection is lost, aiormq raises the error of the connection
(`aiormq.abc.TaskWrapper`). Before Python 3.12 `asyncio.wait_for` returns a result that came at the
same moment, and `asyncio.gather` raises the error of a task that failed then. A loop that handles
these and continues would never end. But a canceled task stays marked as canceled
(`asyncio.Task.cancelling`), so a loop checks that before it continues.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

END_TIMEOUT_S: Final = 5.0
"""How long a process waits at its end for canceled work."""
# Time for a task to clean up; below the pause of aio-pika's reconnection, which is a second here.
_CANCEL_AGAIN_S: Final = 0.5

_T = TypeVar("_T")

_log = structlog.get_logger()


def share(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start work that outlives each of its waiters; each waits under a shield.

    The error is always retrieved: if all waiters were canceled, asyncio would report an exception
    that was never retrieved.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class SharedTasks:
    """Tasks that callers share by name. A task outlives its callers; none of them can cancel it."""

    def __init__(self) -> None:
        self._running: dict[object, asyncio.Task[Any]] = {}

    def start(self, name: object, work: Callable[[], Coroutine[Any, Any, _T]]) -> asyncio.Task[_T]:
        """Return the task with this name; start it unless it is running."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = share(work())
            task.add_done_callback(lambda _: self._running.pop(name))
        return task

    async def aclose(self) -> None:
        """Cancel all tasks."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def raise_if_canceled() -> None:
    """Raise `CancelledError` in a canceled task, even if a library swallowed the first one."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def repeat(
    action: Callable[[], Awaitable[object]],
    pause_s: Callable[[], float],
    *,
    pause_first: bool = False,
) -> None:
    """Repeat an action, with pauses, until the task is canceled.

    The action handles its own errors: if it raises, the repetition ends.
    """
    if pause_first:
        await asyncio.sleep(pause_s())
    while True:
        await action()
        raise_if_canceled()
        await asyncio.sleep(pause_s())


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a process's work, and end all tasks that it leaves behind.

    At the end of an event loop, asyncio cancels each task once, and waits for it forever. But
    aio-pika treats a canceled attempt to connect as a failed one, and ends only if it is canceled
    again in the following pause (`RobustConnection`).
    """
    try:
        return await work
    finally:
        await _end_tasks()


async def _end_tasks() -> None:
    deadline_s = asyncio.get_running_loop().time() + END_TIMEOUT_S
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        if asyncio.get_running_loop().time() > deadline_s:
            _log.error("tasks do not end", tasks=sorted(task.get_name() for task in left))
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` concurrently with the block, and end it with the block.

    If the work ends first, an error is logged, and the block continues without it.
    """
    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    is_ending = False

    def report(done: asyncio.Task[None]) -> None:
        # The client library also cancels a task when a connection is lost.
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
