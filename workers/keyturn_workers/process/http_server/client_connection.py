"""The client's side of a connection: slow, silent or gone (SPEC 9.2).

A client that reads nothing for a while is disconnected. A client's disconnect is noticed even
while nothing is sent, so that the read from the storage ends too. A response that cannot be
completed resets the connection, so that it never looks complete.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from starlette.types import Message, Receive, Scope, Send

from keyturn.tasks import cancel_all

MIN_BYTES_PER_S: Final = 8 * 1024
"""A request whose body arrives more slowly, on average, is aborted."""

RESET_CONNECTION: Final = "keyturn.abort"
"""In a request's state: a function that resets its connection."""

ERROR_CODE: Final = "keyturn.code"
"""In a request's scope: the code of its failure, for traces (`note_error`)."""

ABORTED: Final = "keyturn.aborted"
"""In a request's scope: its response was cut off, for traces."""

IS_CLOSED: Final = "keyturn.gone"
"""In a request's state: a function that returns True if its connection is closed."""

_DRAIN_MAX_BYTES: Final = 1024 * 1024
_DRAIN_TIMEOUT_S: Final = 0.5
_T = TypeVar("_T")


class ClientGoneError(Exception):
    """The client disconnected, or stopped sending."""


class ClientSlowError(Exception):
    """The client read nothing for too long."""


def abort(scope: Scope) -> None:
    """Reset the request's connection, because the response is incomplete."""
    reset: Callable[[], None] | None = scope.get("state", {}).get(RESET_CONNECTION)
    if reset is None:
        raise RuntimeError("the server offers no way to reset a connection")
    scope[ABORTED] = True
    reset()


def note_error(scope: Scope, code: str) -> None:
    """Record the failure in the request's scope: a code of SPEC 12, or of this module's errors."""
    scope[ERROR_CODE] = code


def with_send_timeout(send: Send, scope: Scope, idle_timeout_s: float) -> Send:
    """Wrap `send` to give up on a client that reads nothing for too long, or has disconnected.

    The wrapped `send` raises:
        ClientSlowError: the client read nothing.
        ClientGoneError: the connection is closed.
    """
    is_closed: Callable[[], bool] = scope.get("state", {}).get(IS_CLOSED, lambda: False)

    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(idle_timeout_s):
                await send(message)
        except TimeoutError as exc:
            raise ClientSlowError from exc
        except RuntimeError as exc:
            # uvicorn keeps writing for a moment after a connection is closed.
            if is_closed():
                raise ClientGoneError("the connection was closed") from exc
            raise

    return send_in_time


async def run_while_connected(receive: Receive, work: Awaitable[_T]) -> _T:
    """Run `work`, and cancel it if the client disconnects.

    The request's body must have been read to its end: the rest would be discarded.

    Raises:
        ClientGoneError: the client disconnected.
        Exception: any error of the work.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the connection was closed")
        return await task
    finally:
        await cancel_all((task, disconnect))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """Yield a request's body as it arrives.

    Raises:
        ClientGoneError: the client disconnected, sent nothing for `idle_timeout_s`, or sends
            less than `MIN_BYTES_PER_S` on average beyond that time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + idle_timeout_s
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + idle_timeout_s)):
                message: dict[str, Any] = dict(await receive())
        except TimeoutError as exc:
            raise ClientGoneError("the request's body is sent too slowly") from exc
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the connection was closed")
        if body := message.get("body", b""):
            deadline += len(body) / MIN_BYTES_PER_S
            yield body
        if not message.get("more_body", False):
            return


class TrackedReceive:
    """Wraps `receive` to record whether the request's body has been read to its end."""

    __slots__ = ("_receive", "body_ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body_ended = False

    async def __call__(self) -> Message:
        """Return the next message."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.body_ended = True
        return message


async def drain_body(receive: Receive) -> bool:
    """Discard the rest of a request's body; return whether its end was reached.

    Closing a connection that has unread bytes resets it, and the client may never see the
    response. So a small body is read even if the request is refused.
    """
    if isinstance(receive, TrackedReceive) and receive.body_ended:
        return True
    remaining = _DRAIN_MAX_BYTES
    try:
        async with asyncio.timeout(_DRAIN_TIMEOUT_S):
            while remaining > 0:
                message = await receive()
                remaining -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return bool(message["type"] == "http.request")
    except TimeoutError:
        pass
    return False
