"""uvicorn's HTTP protocol, bounded: heads in time and size, connections, how slow a client.

uvicorn waits for ever for a client that opens a connection and sends nothing, its headers byte
by byte, or a blank line behind an answer; it keeps whatever headers come, of any length; and
what it has written to a connection stays there for as long as the other end takes nothing; it
queues any number of requests that are sent behind one another. It also has no way for an
application to reset a connection: one is put into each request's state.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from keyturn_workers.gateway.client_connection import IS_CLOSED, RESET_CONNECTION

# What every head fits in that a client of this gateway has a reason to send.
HEAD_MAX_BYTES: Final = 64 * 1024
# No client of a gateway has a reason to send several requests before it has an answer.
PIPELINED_MAX: Final = 4
_NO_REQUEST_BODY: Final = (
    b'{"title":"Bad Request","status":400,"code":"malformed_request","detail":"no HTTP request"}'
)
_NO_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(_NO_REQUEST_BODY), _NO_REQUEST_BODY)
)
_UNSENT_BYTES: Final = 128 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class GatewayProtocol(HttpToolsProtocol):
    """One connection; `make_protocol_class` makes the class that a gateway serves with."""

    head_timeout_s = 15.0
    idle_timeout_s = 60.0
    max_connections = 1024
    _head_timer: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()
    # Since a head, or a piece of a body, was complete: of a head, of trailers, of framing.
    _unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._bound_what_is_not_taken()
        self._await_head()
        if len(self.connections) > self.max_connections:
            # One that nobody uses makes room: whoever opens many and says nothing keeps none
            # of the others out, nor those who ask whether this process is alive.
            others = (each for each in self.connections if isinstance(each, GatewayProtocol))
            idle = (other for other in others if other is not self and other.is_idle)
            next(idle, self).reset()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being served."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more, and every request of the connection hears of it."""
        self._head_came()
        super().connection_lost(exc)
        # uvicorn tells the newest one alone, not one that others were sent behind.
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take no more of a head than any honest one has."""
        # Whatever comes between two requests begins one: uvicorn has stopped its own timer.
        if self._head_timer is None and self.is_idle:
            self._await_head()
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            self.reset()

    def on_message_begin(self) -> None:
        """A request's first byte came; the rest of its head has to follow."""
        super().on_message_begin()
        state: dict[str, Any] = self.scope["state"]
        state[RESET_CONNECTION] = self.reset
        state[IS_CLOSED] = self.transport.is_closing
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        self._unread_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED_MAX:
            raise _TooManyError  # uvicorn answers, see below
        open_still = (cycle for cycle in self._cycles if not cycle.response_complete)
        self._cycles = (*open_still, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request: a problem document, or a reset where there is no end of it."""
        del msg
        if self.pipeline or not self.is_idle:
            self.reset()  # an answer now would come before those that are owed
            return
        self.transport.write(_NO_REQUEST)
        self.transport.close()

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there, and whatever framed it."""
        self._unread_bytes = 0
        super().on_body(body)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.reset)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _bound_what_is_not_taken(self) -> None:
        """Have the kernel end a connection whose other end takes nothing of what is written.

        Also when the answer is complete for the application, and its end lies in a buffer.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is None:
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            waited_ms = int(self.idle_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, waited_ms)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Else megabytes wait in the kernel, and it says nothing while a slow reader takes
            # the first of them: one that takes little would pass for one that takes nothing.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)

    def reset(self) -> None:
        """End the connection so that nobody takes it for the end of an answer."""
        sock = self.transport.get_extra_info("socket")
        # Without this it would be closed in order, with what was written so far. It may be gone.
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


class _TooManyError(Exception):
    """More requests were sent behind one another than are queued."""


def make_protocol_class(
    *, head_timeout_s: float, idle_timeout_s: float, max_connections: int
) -> type[GatewayProtocol]:
    """The protocol with these limits.

    Args:
        head_timeout_s: How long a request's head may take.
        idle_timeout_s: How long a client may take nothing of what was written.
        max_connections: How many connections are open at once.
    """
    limits = {
        "head_timeout_s": head_timeout_s,
        "idle_timeout_s": idle_timeout_s,
        "max_connections": max_connections,
    }
    return type("GatewayProtocol", (GatewayProtocol,), limits)
