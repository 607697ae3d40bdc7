"""HTTP/1.1 connections to the storage: each request is sent once (SPEC 7, 8.4).

The parser is httptools; uvicorn uses it too. An exchange is one request and its response, alone on
its connection. It follows no redirect and repeats nothing: after a failure the outcome is unknown,
and the caller decides.

A connection serves the next request only if this exchange is complete: the whole request has left
this process, the whole response has arrived, and nothing came after it. Otherwise it is aborted,
never closed: closing first sends the buffer, so the rest of a write could arrive after its lease.
Over TLS, that would go on for up to 30 s. The kernel has a buffer too, of megabytes, and would send
it for minutes: `SO_LINGER` makes it drop the buffer and reset the connection.

No response is trusted that may belong to another request, to an incomplete one, or be cut off:

- bytes on an unused connection end it; its socket is checked before each request;
- a success that arrives before the request was sent is a failure;
- a HEAD whose response announces a body is the last request on its connection. A proxy that treats
  HEAD as GET sends that body, perhaps after the next request. The object's writer would then have
  chosen the response to that request: no response of S3 names its request;
- a body without a length is refused: a lost connection would end it, too.
"""

import asyncio
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from keyturn.tls import (
    STORAGE,
    client_context,
    describe_connection_failure,
    describe_tls_failure,
    needs_tls,
)
from keyturn_workers.core.storage_values import RECORD_MAX_BYTES

CONNECT_TIMEOUT_S: Final = 5.0
# Below the idle timeout of common servers, so that they seldom close a connection during a write.
_KEEP_ALIVE_S: Final = 4.0
_HAPPY_EYEBALLS_S: Final = 0.25  # RFC 8305
# Bounds the memory for a large body: written at once, and read ahead of a slow reader.
_WRITE_BYTES: Final = 256 * 2**10
_READ_AHEAD_BYTES: Final = 128 * 2**10
# A body up to this is copied behind its head, so that both leave in one packet.
_JOINED_BYTES: Final = 64 * 2**10
_MAX_HEADERS: Final = 256
# For everything but bodies: interim responses, the head, framing of chunks, trailers.
_MAX_OVERHEAD_BYTES: Final = 64 * 2**10
_TLS_ALERT: Final = b"\x15\x03"
# `struct linger`: closing drops unsent bytes and resets after 0 seconds, or does not.
_RESET: Final = struct.pack("ii", 1, 0)
_NO_RESET: Final = struct.pack("ii", 0, 0)
_LOST: Final = "the connection was lost"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class ConnectionLostError(Exception):
    """The connection failed; the text is only the kind of failure."""


class TlsFailedError(ConnectionLostError):
    """TLS with the storage failed; the text gives the reason, and names the setting."""


class Connection(asyncio.Protocol):
    """One connection of a pool."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.failure: ConnectionLostError | None = None
        self.is_write_paused = False
        self.has_received = False
        self.idle_since_s = 0.0
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.has_received = True
        if self.exchange is None:
            self.fail("response without a request")
        else:
            self.exchange.receive(data)

    def eof_received(self) -> None:
        """See `asyncio.Protocol`. The transport would send its buffer before it closes."""
        self.fail("connection closed")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if exc is None:
            self.fail("connection closed")
        elif not self.has_received and (problem := describe_tls_failure(exc, STORAGE)) is not None:
            self.fail(TlsFailedError(problem))
        else:
            self.fail(describe_connection_failure(exc, STORAGE) or _LOST)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.is_write_paused = False
        if self.exchange is not None:
            self.exchange.wake()

    def fail(self, reason: ConnectionLostError | str) -> None:
        """Abort, and let the exchange fail unless it is complete. The first reason counts."""
        self.transport.abort()
        if self.failure is None:
            self.failure = ConnectionLostError(reason) if isinstance(reason, str) else reason
        if self.exchange is not None:
            self.exchange.wake()

    def end(self) -> None:
        """Close an unused connection: nothing has to be dropped, so it is not reset."""
        self.keep_unsent()
        self.transport.abort()

    def keep_unsent(self) -> None:
        """Let the kernel send its buffer, even if the connection is closed."""
        sock = self.transport.get_extra_info("socket")
        with suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_RESET)

    def is_silent(self) -> bool:
        """Check if it is open, with nothing to read."""
        return not self.transport.is_closing() and not self._poll.poll(0)


class Exchange:
    """One request and its response. Call `open` first, and `close` in any case.

    `read_timeout_s` limits the wait for each piece of a body that is read piece by piece; None for
    a body that is read as a whole. `status` is 0 before the response begins. Names in `headers` are
    in lower case; of a repeated one the first counts.
    """

    status = 0
    _connection: Connection
    _waiter: asyncio.Future[None] | None = None
    _unsent_bytes = -1  # nor the head
    _is_open = False
    _is_early = False
    _is_continued = False
    _is_complete = False
    _keeps_alive = False
    _is_read_paused = False
    _header_count = 0
    _overhead_bytes = 0
    _buffered_bytes = 0

    def __init__(
        self, pool: "ConnectionPool", method: str, *, read_timeout_s: float | None = None
    ) -> None:
        self._pool = pool
        self._is_head = method == "HEAD"
        self._read_timeout_s = read_timeout_s
        self._pieces: deque[bytes] = deque()
        self._whole = bytearray()
        self.headers: dict[str, str] = {}

    async def open(self) -> None:
        """Take a connection from the pool, or wait for one. Errors as `ConnectionPool.acquire`."""
        self._connection = await self._pool.acquire()
        self._connection.exchange = self
        self._parser = HttpResponseParser(self)
        self._is_open = True

    def close(self) -> None:
        """Return the connection, or abort it if the exchange is not complete. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        connection = self._connection
        connection.exchange = None
        del self._parser  # it refers to this object
        # Bytes that arrive while reading is paused are not seen: they could be taken for the next
        # response.
        is_seen = not self._is_early and not self._is_read_paused
        is_reusable = self._is_complete and self._keeps_alive and is_seen
        self._pool.release(connection, is_reusable=is_reusable)
        # A reader that outlives its exchange must get no byte of the next one.
        self._pieces.clear()
        self._is_complete = True
        self.wake()

    async def send(self, head: bytes, body: bytes = b"") -> None:
        """Send a whole request, or stop early if the response begins."""
        if len(body) <= _JOINED_BYTES:
            self._unsent_bytes = 0
            self._connection.transport.write(head + body)
            return
        self._unsent_bytes = len(body)
        self._connection.transport.write(head)
        view = memoryview(body)
        for start in range(0, len(body), _WRITE_BYTES):
            if not await self.write(view[start : start + _WRITE_BYTES]):
                return

    async def send_head(self, head: bytes, body_bytes: int) -> bool:
        """Send a head that expects `100 Continue`, and wait for that.

        Return False if the response began instead, and no body may be sent.
        """
        self._unsent_bytes = body_bytes
        self._connection.transport.write(head)
        while not self._is_continued and not self.status:
            await self._wait()
        return not self.status

    async def write(self, piece: bytes | memoryview) -> bool:
        """Send a piece of the body, and wait while the storage accepts none.

        Return False if the response began, and nothing more may be sent.
        """
        if self.status:
            return False
        if self._connection.failure is not None:
            raise self._connection.failure
        self._unsent_bytes -= len(piece)
        self._connection.transport.write(piece)
        while self._connection.is_write_paused and not self.status:
            await self._wait()
        return not self.status

    def cut_off(self) -> None:
        """Send the written bytes, and close the connection. Only for the probe."""
        self._connection.keep_unsent()
        self._connection.transport.close()

    async def read_head(self) -> None:
        """Wait for the status and the headers.

        Raises:
            ConnectionLostError: the connection ended, or success came before the request was sent.
        """
        while not self.status:
            await self._wait()
        # Unsent bytes cannot have been stored.
        if self._is_early and self.status < 300:  # noqa: PLR2004
            raise ConnectionLostError("early response")

    async def read_all(self) -> bytes:
        """Read the whole body."""
        await self.read_head()
        while not self._is_complete:
            await self._wait()
        return bytes(self._whole)

    async def read_some(self) -> bytes:
        """Read the next piece as it arrives; empty at the end."""
        while not self._pieces:
            if self._is_complete:
                return b""
            async with asyncio.timeout(self._read_timeout_s):
                await self._wait()
        piece = self._pieces.popleft()
        self._buffered_bytes -= len(piece)
        if self._is_read_paused and self._buffered_bytes < _READ_AHEAD_BYTES:
            self._is_read_paused = False
            if not self._connection.transport.is_closing():
                self._connection.transport.resume_reading()
        return piece

    async def read_up_to(self, size_bytes: int) -> bytes:
        """Read `size_bytes`, or fewer at the end."""
        pieces: list[bytes | memoryview] = []
        left_bytes = size_bytes
        while left_bytes and (piece := await self.read_some()):
            if len(piece) > left_bytes:
                rest = piece[left_bytes:]
                self._pieces.appendleft(rest)
                self._buffered_bytes += len(rest)
                pieces.append(memoryview(piece)[:left_bytes])
                break
            pieces.append(piece)
            left_bytes -= len(piece)
        return b"".join(pieces)

    def wake(self) -> None:
        """Wake the task that waits for an event."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def receive(self, data: bytes) -> None:
        """Parse received bytes."""
        if self._is_complete or self._unsent_bytes < 0:
            self._connection.fail("response without a request")
            return
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # The error contains no part of a response that is not HTTP: it may repeat the request.
            is_tls = data.startswith(_TLS_ALERT) and not self.headers
            self._connection.fail(
                TlsFailedError(needs_tls(STORAGE)) if is_tls else "malformed response"
            )
        if self._overhead_bytes > _MAX_OVERHEAD_BYTES and not self._is_complete:
            self._connection.fail("response head too long")

    def on_message_begin(self) -> None:
        """See `httptools`."""
        if self._is_complete:
            self._connection.fail("response without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`. Trailers come after the status, and are dropped."""
        self._header_count += 1
        if not self.status and self._header_count <= _MAX_HEADERS:
            text = value.strip().decode("utf-8", "surrogateescape")
            self.headers.setdefault(name.lower().decode("latin-1"), text)

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        if self._is_complete:
            return  # of a second response, which ends the connection
        status = self._parser.get_status_code()
        if self._header_count > _MAX_HEADERS:
            self._connection.fail("too many headers")
        elif status < 100:  # noqa: PLR2004
            self._connection.fail("malformed response")
        elif status < 200:  # noqa: PLR2004  # an interim response
            self._is_continued = self._is_continued or status == 100  # noqa: PLR2004
            self.headers.clear()
            self.wake()
        else:
            self.status = status
            is_bodiless = not self._is_head or self.headers.get("content-length") == "0"
            self._keeps_alive = self._parser.should_keep_alive() and is_bodiless
            self._is_early = not self._is_sent()
            self._overhead_bytes = 0
            # A HEAD's length is the object's: the parser would wait for a body.
            self._is_complete = self._is_head
            self.wake()

    def on_body(self, piece: bytes) -> None:
        """See `httptools`."""
        if self._is_complete:
            self._connection.fail("response without a request")
            return
        self._overhead_bytes = 0
        if self._read_timeout_s is None:
            self._whole += piece
            if len(self._whole) > RECORD_MAX_BYTES:
                self._connection.fail("response too long")
            return
        self._pieces.append(piece)
        self._buffered_bytes += len(piece)
        self.wake()
        transport = self._connection.transport
        is_much = self._buffered_bytes > _READ_AHEAD_BYTES
        if is_much and not self._is_read_paused and not transport.is_closing():
            self._is_read_paused = True
            transport.pause_reading()

    def on_message_complete(self) -> None:
        """See `httptools`."""
        if self.status and self._connection.failure is None:
            self._is_complete = True
            self.wake()

    def _is_sent(self) -> bool:
        """Check if the whole request has left this process."""
        unsent_bytes = self._unsent_bytes or self._connection.transport.get_write_buffer_size()
        return not unsent_bytes

    async def _wait(self) -> None:
        """Wait for an event, or raise ConnectionLostError once the connection has ended."""
        if (failure := self._connection.failure) is not None:
            raise failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class ConnectionPool:
    """Connections to one server. Created by `open_pool`."""

    def __init__(self, url: str, max_connections: int, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._tls: dict[str, Any] = {}
        if parts.scheme == "https":
            context = tls or client_context(STORAGE)
            self._tls = {"ssl": context, "server_hostname": self._host.rstrip(".")}
        self._free = asyncio.Semaphore(max_connections)
        self._idle: deque[Connection] = deque()  # the one that was used last is at the end
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def acquire(self) -> Connection:
        """Return an unused connection, or a new one.

        Raises:
            ConnectionLostError: none could be made; nothing was sent.
        """
        await self._free.acquire()
        try:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_silent():
                    return connection
                connection.transport.abort()
            return await self._connect()
        except BaseException:
            self._free.release()
            raise

    def release(self, connection: Connection, *, is_reusable: bool) -> None:
        """Keep the connection for the next request, or abort it."""
        self._free.release()
        if connection.transport.is_closing():
            return
        if not is_reusable or self._is_closed:
            connection.transport.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._expiry is None:
            self._expiry = loop.call_later(_KEEP_ALIVE_S, self._expire)

    async def close(self) -> None:
        """Close the connections that are not in use; the others are aborted once released."""
        self._is_closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        while self._idle:
            self._idle.pop().end()
        await asyncio.sleep(0)  # the transports are gone then

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = loop.time() - _KEEP_ALIVE_S
        while self._idle and self._idle[0].idle_since_s <= last_s:
            self._idle.popleft().end()
        self._expiry = None
        if self._idle:
            at_s = self._idle[0].idle_since_s + _KEEP_ALIVE_S
            self._expiry = loop.call_at(at_s, self._expire)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await loop.getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
                sock = await start_connection(found, happy_eyeballs_delay=_HAPPY_EYEBALLS_S)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                _, connection = await loop.create_connection(Connection, sock=sock, **self._tls)
        except (OSError, UnicodeError) as exc:
            # The exception's text has the address. As a context, it would be shown, too.
            if (problem := describe_tls_failure(exc, STORAGE)) is not None:
                raise TlsFailedError(problem) from None
            raise ConnectionLostError(describe_connection_failure(exc, STORAGE) or _LOST) from None
        # A TLS server sends tickets unasked after a handshake.
        if not self._tls and not connection.is_silent():
            connection.fail("response without a request")
        if connection.failure is not None:
            raise connection.failure
        return connection


def encode_head(method: str, target: str, host: str, headers: Mapping[str, str]) -> bytes:
    """Return a request's head.

    `method` is in upper case, `target` percent-encoded. `headers` has all headers but `Host`, with
    a length if there is a body.

    Raises:
        ValueError: a value would end its line.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\n".join(lines)
    if head.count("\n") != len(lines) - 1 or "\r" in head or "\0" in head:
        raise ValueError("header injection: a line break in a header")
    return (head.replace("\n", "\r\n") + "\r\n\r\n").encode()


@asynccontextmanager
async def open_pool(
    url: str, max_connections: int, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectionPool]:
    """Yield the connections to a storage, for the life of the process.

    Only scheme, host and port of `url` count. More exchanges than `max_connections` wait. `tls`
    checks an `https` server; by default against the system's authorities.
    """
    pool = ConnectionPool(url, max_connections, tls)
    try:
        yield pool
    finally:
        await pool.close()
