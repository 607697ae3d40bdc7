"""One event loop in a thread, for callers without one: `keyturn.sync` and `keyturn.fsspec`.

The thread starts at the first use. At the exit of the process, open sessions are closed, and the
loop ends.

A forked child has the parent's sockets but not its thread. It gets its own loop at its first use,
and opens each session again there. The parent's connections must not be touched: a byte sent by a
child on one, such as the end of TLS by a finalizer, would break it. So the child's copies of those
sockets are replaced by `/dev/null`, the objects above them are kept and never touched, and the loop
polls: an epoll instance would be shared by both processes.
"""

import asyncio
import atexit
import os
import selectors
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NoReturn, TypeVar

_Client = TypeVar("_Client")
_Result = TypeVar("_Result")

_CLOSE_TIMEOUT_S: Final = 10.0
_inherited: Final[list[object]] = []  # of the parent process: kept, so that nothing finalizes it


class EventLoop:
    """A running event loop in a daemon thread. Made by `event_loop`."""

    def __init__(self) -> None:
        self._selector = selectors.PollSelector()
        self.asyncio_loop = asyncio.SelectorEventLoop(self._selector)
        self.sessions: weakref.WeakSet[Session[Any]] = weakref.WeakSet()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="keyturn", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.asyncio_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        for session in list(self.sessions):
            with suppress(Exception):  # there is no one left to report it to
                await session.aclose()

    def run(self, call: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine, and return its result; the calling thread waits for it.

        Raises:
            RuntimeError: called on the loop's own thread, or the process is exiting.
        """
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            call.close()
            raise RuntimeError(
                "a blocking client of keyturn was used on its own event loop, or while the "
                "process exits"
            )
        future = asyncio.run_coroutine_threadsafe(call, self.asyncio_loop)
        try:
            return future.result()
        except BaseException:  # such as KeyboardInterrupt: the call must not go on alone
            future.cancel()
            raise

    def release(self, call: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that releases a resource, which a finalizer may do on any thread.

        On the loop's own thread it does not wait; if the loop has ended, there is nothing to
        release.
        """
        if not self._thread.is_alive():
            call.close()
        elif threading.current_thread() is self._thread:
            asyncio.run_coroutine_threadsafe(call, self.asyncio_loop)
        else:
            self.run(call)

    def close(self) -> None:
        """Close the open sessions, and end the loop."""
        self.asyncio_loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def abandon(self) -> None:
        """In a forked child, drop the parent's sockets without sending anything on them."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in list(self._selector.get_map().values()):
            os.dup2(nothing, key.fd, inheritable=False)
        os.close(nothing)


@dataclass
class _Opened(Generic[_Client]):
    """A session's client in one process; None until first needed."""

    pid: int
    client: _Client | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Session(Generic[_Client]):
    """An asynchronous client: opened at its first use, again in a forked child, and closed once.

    Args:
        open_client: Opens it, such as `Client.connect` with its arguments.
    """

    def __init__(self, open_client: Callable[[], AbstractAsyncContextManager[_Client]]) -> None:
        self._open_client = open_client
        self._opened: _Opened[_Client] = _Opened(os.getpid())
        self._is_closed = False

    async def client(self) -> _Client:
        """Return the open client.

        Raises:
            RuntimeError: the session is closed.
            Exception: an error of opening it.
        """
        if self._opened.pid != os.getpid():
            _inherited.append(self._opened)
            self._opened = _Opened(os.getpid())
        opened = self._opened
        async with opened.lock:
            if self._is_closed:
                raise RuntimeError("this client of keyturn is closed")
            if opened.client is None:
                opened.client = await opened.stack.enter_async_context(self._open_client())
                self._close_in_time(opened)
            return opened.client

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client of keyturn cannot be pickled: make one in each process")

    async def aclose(self) -> None:
        """Close the client permanently, if it is open in this process."""
        self._is_closed = True
        if self._opened.pid == os.getpid():
            async with self._opened.lock:
                await self._opened.stack.aclose()

    def _close_in_time(self, opened: _Opened[_Client]) -> None:
        """Close it at exit, or once nothing refers to this session; on our loop only."""
        if _current is None or _current.asyncio_loop is not asyncio.get_running_loop():
            return
        _current.sessions.add(self)
        weakref.finalize(self, _release, _current, opened.stack).atexit = False


def _release(loop: EventLoop, stack: AsyncExitStack) -> None:
    loop.release(stack.aclose())


_current: EventLoop | None = None
_lock = threading.Lock()
_has_hooks = False


def event_loop() -> EventLoop:
    """Return the running loop of this process; the first call starts it."""
    global _current, _has_hooks  # noqa: PLW0603  # there is one in a process
    with _lock:
        if _current is None:
            if not _has_hooks:
                atexit.register(_close_at_exit)
                os.register_at_fork(after_in_child=_abandon_in_child)
                _has_hooks = True
            _current = EventLoop()
        return _current


def _close_at_exit() -> None:
    if _current is not None:
        _current.close()


def _abandon_in_child() -> None:
    global _current, _lock  # noqa: PLW0603  # as `event_loop`
    _lock = threading.Lock()  # the parent may hold it
    if _current is not None:
        _current.abandon()
        _inherited.append(_current)
        _current = None
