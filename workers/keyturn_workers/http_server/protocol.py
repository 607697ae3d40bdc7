"""uvicorn's HTTP protocol with the limits that uvicorn has no setting for (SPEC 9.2, ADR 0014).

`LimitedProtocol` subclasses uvicorn's public httptools protocol (`Config(http=...)` accepts a
class) and overrides public methods only. An ASGI application cannot do any of this: it is
called once a request's head is complete, and it has no access to the connection. Everything
else is a uvicorn setting (`server`) or an option of the listening socket (`listener`).

- Head timeout. Guards against clients that open a connection and send nothing, send a head
  byte by byte, or a blank line after a response. `timeout_keep_alive` starts only after a
  response and stops at the next byte.
- Size of the head, of trailers and of chunk framing. Guards memory against a head without an
  end. `h11_max_incomplete_event_size` applies to h11 only; httptools has no limit.
- Pipelined requests. Guards memory against thousands of requests sent at once. uvicorn queues
  all of them, before authentication.
- Connections. Guards health probes and other clients against a client that opens many
  connections and sends nothing: a new connection closes an idle one. With `limit_concurrency`
  those connections would turn every other request away with a 503, and stay open.
- Reset. A truncated response must not look complete. ASGI cannot reset a connection: if an
  application raises, uvicorn closes the connection normally, after it has sent its buffers.
- 400 for what is not HTTP. A problem document (SPEC 9.6), and no response before those that
  earlier requests on the connection are waiting for. uvicorn writes `text/plain` at once.
- Disconnect of pipelined requests. uvicorn reports it to the newest request only; the one
  being served would keep running, for as long as its client requested it to wait.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Collection, Coroutine
from typing import Any, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from keyturn_workers.http_server.client_connection import IS_CLOSED, RESET_CONNECTION

MAX_HEAD_BYTES: Final = 64 * 1024
"""More than the head of any request that is served."""

MAX_PIPELINED: Final = 4
"""How many requests may wait on a connection. No client needs to pipeline more."""

_BAD_REQUEST_BODY: Final = orjson.dumps(
    {
        "title": "Bad Request",
        "status": 400,
        "code": "malformed_request",
        "detail": "not an HTTP request",
    }
)
_BAD_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
    % (len(_BAD_REQUEST_BODY), _BAD_REQUEST_BODY)
)
# struct linger: enabled, 0 seconds. Closing the socket then sends a RST.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_RECEIVED_CHECK_S: Final = 0.1


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `make_protocol_class` sets the limits."""

    head_timeout_s = 15.0
    max_connections = 1024
    _tls_socket: socket.socket | None = None
    _handshake: asyncio.Task[None] | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _unfinished: tuple[RequestResponseCycle, ...] = ()
    # Bytes since the last complete head or piece of a body: head, trailers or chunk framing.
    _unparsed_bytes = 0

    def begin_handshake(self, sock: socket.socket, work: Coroutine[Any, Any, None]) -> None:
        """Count as a connection, and as an idle one, while the handshake of TLS is made.

        Args:
            sock: The connection.
            work: Makes the handshake, which ends in `connection_made`.
        """
        self._tls_socket = sock
        self._handshake = self.loop.create_task(work)
        # Not sooner: until then the event loop may watch this file descriptor.
        self._handshake.add_done_callback(lambda made: sock.close() if made.cancelled() else None)
        self.connections.add(self)
        close_idle(self.connections, self, self.max_connections)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first head; close an idle connection if there are too many."""
        super().connection_made(transport)
        self._handshake = None
        # uvicorn copies this into the state of each request.
        self.app_state = {
            **self.app_state,
            RESET_CONNECTION: self.reset,
            IS_CLOSED: transport.is_closing,
        }
        self._start_head_timer()
        close_idle(self.connections, self, self.max_connections)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being served."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the disconnect to every unfinished request."""
        self._stop_head_timer()
        super().connection_lost(exc)
        for cycle in self._unfinished:
            # uvicorn reports it to `self.cycle` only.
            self.cycle = cycle
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and reset the connection if a head grows too large."""
        # Anything received between two requests starts a head: uvicorn stops its own timer.
        if self._head_timer is None and self.is_idle:
            self._start_head_timer()
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.reset()

    def on_message_begin(self) -> None:
        """A head has started: the rest of it must follow within the timeout."""
        super().on_message_begin()
        if self._head_timer is None:
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        """The head is complete: serve the request, or queue it behind the current one.

        Raises:
            _TooManyPipelinedError: the queue is full. The parser turns this into a parse
                error, and uvicorn calls `send_400_response`.
        """
        self._stop_head_timer()
        self._unparsed_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise _TooManyPipelinedError
        unfinished = (cycle for cycle in self._unfinished if not cycle.response_complete)
        self._unfinished = (*unfinished, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of a body is complete, and so is its framing."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Respond with a problem document, or reset if earlier responses are still due."""
        del msg
        if self.pipeline or not self.is_idle:
            self.reset()
            return
        self.transport.write(_BAD_REQUEST)
        self.transport.close()

    def reset(self) -> None:
        """Close the connection by RST: what is unsent is dropped, and the client sees an error."""
        sock = self._tls_socket or self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if self._handshake is not None:  # there is no transport yet
            self._handshake.cancel()
            self.connections.discard(self)
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """End the connection if it is idle, else after its response: the server stops."""
        if self._handshake is not None:
            self.reset()
            return
        super().shutdown()
        if self._tls_socket is not None and self.transport.is_closing():
            self._abort_once_received(self._tls_socket)

    def _abort_once_received(self, sock: socket.socket) -> None:
        """End TLS once the client's machine has all: a client may not answer its end for long."""
        if _unacknowledged_bytes(sock):
            self.loop.call_later(_RECEIVED_CHECK_S, self._abort_once_received, sock)
        else:
            self.transport.abort()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.reset)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def close_idle(
    connections: Collection[object], newest: LimitedProtocol, max_connections: int
) -> None:
    """If there are too many connections, reset an idle one, or else the newest."""
    if len(connections) <= max_connections:
        return
    others = (each for each in connections if isinstance(each, LimitedProtocol))
    idle = (other for other in others if other is not newest and other.is_idle)
    next(idle, newest).reset()


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """How many bytes the client's machine has not acknowledged; 0 if the kernel does not say."""
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(queued, sys.byteorder)


class _TooManyPipelinedError(Exception):
    """The client sent more requests than may wait on a connection."""


def make_protocol_class(*, head_timeout_s: float, max_connections: int) -> type[LimitedProtocol]:
    """Return the protocol class with these limits.

    Args:
        head_timeout_s: How long a request's head may take.
        max_connections: How many connections may be open at once.
    """
    limits = {"head_timeout_s": head_timeout_s, "max_connections": max_connections}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
