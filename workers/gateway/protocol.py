"""uvicorn's HTTP protocol, bounded: how long a head may take, how much of it, how slow a client.

uvicorn waits for ever for a client that opens a connection and sends nothing, its headers byte
by byte, or a blank line behind an answer; it keeps whatever headers come, of any length; and
what it has written to a connection stays there for as long as the other end takes nothing. It
also has no way for an application to reset a connection: one is put into each request's state.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from workers.gateway.client import ABORT, GONE

# What every head fits in that a client of this gateway has a reason to send.
HEAD_MAX_BYTES: Final = 64 * 1024
_UNSENT_BYTES: Final = 128 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class GatewayProtocol(HttpToolsProtocol):
    """One connection; `bounded` makes the class that a gateway serves with."""

    head_timeout_s = 15.0
    idle_timeout_s = 60.0
    _head_timer: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()
    # Since a head, or a piece of a body, was complete: of a head, of trailers, of framing.
    _unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._bound_what_is_not_taken()
        self._await_head()

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
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            self._reset()

    def on_message_begin(self) -> None:
        """A request's first byte came; the rest of its head has to follow."""
        super().on_message_begin()
        state: dict[str, Any] = self.scope["state"]
        state[ABORT] = self._reset
        state[GONE] = self.transport.is_closing
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        self._unread_bytes = 0
        super().on_headers_complete()
        open_still = (cycle for cycle in self._cycles if not cycle.response_complete)
        self._cycles = (*open_still, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there, and whatever framed it."""
        self._unread_bytes = 0
        super().on_body(body)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._reset)

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

    def _reset(self) -> None:
        """End the connection so that nobody takes it for the end of an answer."""
        sock = self.transport.get_extra_info("socket")
        # Without this it would be closed in order, with what was written so far. It may be gone.
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


def bounded(head_timeout_s: float, idle_timeout_s: float) -> type[GatewayProtocol]:
    """The protocol with these limits.

    Args:
        head_timeout_s: How long a request's head may take.
        idle_timeout_s: How long a client may take nothing of what was written.
    """
    limits = {"head_timeout_s": head_timeout_s, "idle_timeout_s": idle_timeout_s}
    return type("GatewayProtocol", (GatewayProtocol,), limits)
