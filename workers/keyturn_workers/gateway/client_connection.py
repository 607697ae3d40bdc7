"""The other end of a connection: it may be slow, silent or gone (SPEC 9.2).

A reader that takes nothing for a while is cut off, and one that is gone is noticed while
nothing is sent, so that the read from the storage ends too. An answer that cannot be
completed is aborted: the connection is reset, never closed in order.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from starlette.types import Message, Receive, Scope, Send

MIN_BYTES_PER_S: Final = 8 * 1024
"""What a sender may not stay below for long."""

_DRAINED_BYTES: Final = 1024 * 1024
_DRAINING_S: Final = 0.5
_T = TypeVar("_T")

RESET_CONNECTION: Final = "keyturn.abort"
"""In a request's state: the call that resets its connection."""

IS_CLOSED: Final = "keyturn.gone"
"""In a request's state: the call that tells whether its connection is closed."""


class ClientGoneError(Exception):
    """The client closed the connection, or sends nothing any more."""


class ClientSlowError(Exception):
    """The client took nothing for too long."""


def abort(scope: Scope) -> None:
    """Reset the request's connection: what was sent of an answer is not all of it."""
    reset: Callable[[], None] | None = scope.get("state", {}).get(RESET_CONNECTION)
    if reset is None:
        raise RuntimeError("the server does not offer to reset a connection")
    reset()


def with_send_timeout(send: Send, scope: Scope, idle_timeout_s: float) -> Send:
    """`send`, which gives up on a client that takes nothing for so long, or is gone.

    Raises, when called:
        ClientSlowError: it took nothing.
        ClientGoneError: the connection is closed.
    """
    gone: Callable[[], bool] = scope.get("state", {}).get(IS_CLOSED, lambda: False)

    async def sending(message: Message) -> None:
        try:
            async with asyncio.timeout(idle_timeout_s):
                await send(message)
        except TimeoutError as exc:
            raise ClientSlowError from exc
        except RuntimeError as exc:
            # The server writes on for a moment after a connection was closed.
            if gone():
                raise ClientGoneError("the connection was closed") from exc
            raise

    return sending


async def run_while_connected(receive: Receive, work: Awaitable[_T]) -> _T:
    """Do something for as long as there is a client that it is done for.

    A request's body must have been read to its end: what comes of it here is lost.

    Raises:
        ClientGoneError: the client went; the work is cancelled.
        Exception: whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the connection was closed")
        return await task
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # what is left of a request's body


async def read_body(receive: Receive, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """A request's body as it comes.

    Raises:
        ClientGoneError: it ends before its end, nothing comes for `idle_timeout_s`, or in all
            so little that the client only holds its place.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + idle_timeout_s
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + idle_timeout_s)):
                message: dict[str, Any] = dict(await receive())
        except TimeoutError as exc:
            raise ClientGoneError("too little was sent for too long") from exc
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the connection was closed")
        if body := message.get("body", b""):
            deadline += len(body) / MIN_BYTES_PER_S
            yield body
        if not message.get("more_body", False):
            return


class TrackedReceive:
    """`receive`, which remembers whether a request's body came to its end."""

    __slots__ = ("_receive", "body_ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body_ended = False

    async def __call__(self) -> Message:
        """What comes next."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.body_ended = True
        return message


async def drain_body(receive: Receive) -> bool:
    """Read what is left of a small body that nobody wants; whether that was all of it.

    A connection that is closed on unread bytes is reset, and its client may never see why.
    """
    if isinstance(receive, TrackedReceive) and receive.body_ended:
        return True
    left = _DRAINED_BYTES
    try:
        async with asyncio.timeout(_DRAINING_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return bool(message["type"] == "http.request")
    except TimeoutError:
        pass
    return False
