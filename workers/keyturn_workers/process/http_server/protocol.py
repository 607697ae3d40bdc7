"""uvicorn's HTTP protocol with the limits that uvicorn has no setting for (SPEC 9.2, ADR 0014).

`LimitedProtocol` subclasses uvicorn's public httptools protocol (`Config(http=...)` accepts a
class) and overrides public methods only. An ASGI application cannot do any of this: it is
called after a request's head is complete, and cannot access the connection. All other limits are
uvicorn settings or options of the listening socket (`server`).

- Head timeout. Guards against clients that open a connection and send nothing, or send a head
  byte by byte, or a blank line after a response. `timeout_keep_alive` starts only after a
  response and stops at the next byte.
- Size of the head, of trailers and of chunk framing. Guards memory against a head without an
  end. `h11_max_incomplete_event_size` applies to h11 only; httptools has no limit.
- Pipelined requests. Guards memory against thousands of requests sent at once: uvicorn queues
  all of them, before authentication.
- Connections. Guards health probes and other clients against a client that opens many
  connections and sends nothing: a new connection closes an idle one. With `limit_concurrency`
  every other request would get a 503, and those connections would stay open.
- Reset. A truncated response must not look complete. ASGI cannot reset a connection: if an
  application raises, uvicorn closes the connection normally, after it has sent its buffers.
- 400 for malformed HTTP. A problem document (SPEC 9.6), never before the responses to earlier
  requests on the connection. uvicorn writes `text/plain` at once.
- 400 for a request without a host, or with two (RFC 9112, 3.2). Guards against a proxy that reads
  another host than this server. uvicorn accepts both.
- Disconnect of pipelined requests. uvicorn reports it to the newest request only; the request
  being served would keep running, for as long as its client asked to wait.
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

from keyturn_workers.process.http_server.client_connection import IS_CLOSED, RESET_CONNECTION

MAX_HEAD_BYTES: Final = 64 * 1024
"""More than the head of any legitimate request."""

MAX_PIPELINED: Final = 4
"""The most requests that may wait on a connection. No client needs to pipeline more."""

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
# tcpi_bytes_acked in struct tcp_info of Linux.
_ACKNOWLEDGED: Final = slice(120, 128)


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
        """Count as an idle connection during the TLS handshake.

        `work` makes the handshake, which ends in `connection_made`.
        """
        self._tls_socket = sock
        self._handshake = self.loop.create_task(work)
        # No sooner: until then the event loop may watch this file descriptor.
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
        """True if no request is being served."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the disconnect to every unfinished request."""
        self._stop_head_timer()
        super().connection_lost(exc)
        for cycle in self._unfinished:
            # uvicorn reports the disconnect to `self.cycle` only.
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
            _HostError: the request names no host, or several.
            _TooManyPipelinedError: the queue is full. The parser turns either into a parse
                error, and uvicorn calls `send_400_response`.
        """
        self._stop_head_timer()
        self._unparsed_bytes = 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _HostError
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
        """Close the connection by RST: unsent data is dropped, and the client sees an error."""
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

    def _abort_once_received(self, sock: socket.socket, known_bytes: int = -1) -> None:
        """Abort TLS once the client's machine has everything: a client may answer the close late.

        The client may have all that the kernel sent while the event loop still has more. So nothing
        must have been sent since the last check: the loop ran in between, and would have sent it.
        """
        waiting_bytes, acknowledged_bytes = _sent_bytes(sock)
        if waiting_bytes or acknowledged_bytes != known_bytes:
            self.loop.call_later(
                _RECEIVED_CHECK_S, self._abort_once_received, sock, acknowledged_bytes
            )
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


def _sent_bytes(sock: socket.socket) -> tuple[int, int]:
    """The numbers of bytes that the client's machine has not acknowledged, and has acknowledged.

    Both are 0 if the kernel does not report them.
    """
    try:
        waiting = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.stop)
    except (OSError, ValueError, AttributeError):
        return 0, 0
    return (
        int.from_bytes(waiting, sys.byteorder),
        int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder),
    )


class _HostError(Exception):
    """The request names no host, or several."""


class _TooManyPipelinedError(Exception):
    """The client sent more requests than may wait on a connection."""


def make_protocol_class(*, head_timeout_s: float, max_connections: int) -> type[LimitedProtocol]:
    """Return the protocol class with these limits."""
    limits = {"head_timeout_s": head_timeout_s, "max_connections": max_connections}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
