"""Threads for blocking calls that cannot be cancelled, such as those into a PKCS #11 module."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_STOP: Final = None


class DaemonThreads:
    """Run blocking calls in at most `size` threads, which start when they are needed.

    A caller that gives up leaves its thread alone: that thread takes new work only after its call
    has returned, and a call that no thread has begun is dropped. Unlike the threads of
    `concurrent.futures`, these do not keep the process from exiting while a call hangs.

    Args:
        name: Prefix of the threads' names.
        size: The most threads.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    async def run(self, function: Callable[[], _T], timeout_s: float) -> _T:
        """Call the function in a thread and return its result, or raise what it raised.

        Raises:
            TimeoutError: there was no result in time; a later one is discarded.
        """
        future: Future[_T] = Future()
        self._work.put((future, function))
        self._start_thread()
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End each thread after its current call."""
        for _ in range(self._started):
            self._work.put(_STOP)

    def _start_thread(self) -> None:
        """Start one more thread unless one is idle or all are started. For the event loop alone."""
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while (call := self._next()) is not _STOP:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as exc:  # noqa: BLE001  # the caller's
                future.set_exception(exc)
            else:
                future.set_result(result)
            del call, future, function

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        try:
            return self._work.get_nowait()
        except Empty:
            self._idle.release()
            return self._work.get()
