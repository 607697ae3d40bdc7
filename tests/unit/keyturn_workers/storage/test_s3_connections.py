"""Connections between requests: nothing is resent, left over, or read as the next response."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import aiohappyeyeballs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.storage_values import Lease
from keyturn_workers.storage import s3_connections
from keyturn_workers.storage.s3_connections import (
    Connection,
    ConnectionLostError,
    Exchange,
    TlsFailedError,
)
from keyturn_workers.storage.s3_wire import UnconfirmedNotFoundError
from keyturn_workers.storage.streaming_body import KnownLengthBody
from tests.unit.keyturn_workers.storage.servers import OK, ByteServer, connected, open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # most wait for a lease
BODIES = [bytes(2**20), bytes(8 * 2**20)]
_KERNEL_BODY = bytes(2**18)
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _small_socket(address: Any) -> socket.socket:
    """The kernel of this end holds little of what is sent."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
    return made


@pytest.fixture
def small_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(aiohappyeyeballs.start_connection, socket_factory=_small_socket)
    monkeypatch.setattr(s3_connections, "start_connection", small)


@pytest.fixture
def closing_normally(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant: a connection is closed, which sends its buffer first."""
    made = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        self.transport = cast("asyncio.Transport", _ClosedTransport(self.transport))

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    monkeypatch.setattr(s3_connections, "_RESET", s3_connections._NO_RESET)


@pytest.fixture
def without_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant: an aborted connection leaves to the kernel what the kernel has."""
    monkeypatch.setattr(s3_connections, "_RESET", s3_connections._NO_RESET)


class _ClosedTransport:
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, "close" if name == "abort" else name)


class StallingServer:
    """Reads a head and stops, until the test lets it read the rest."""

    def __init__(self) -> None:
        self.stalled = asyncio.Event()
        self.resume = asyncio.Event()
        self.received_bytes: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.stalled.set()
        await self.resume.wait()
        received_bytes = 0
        with suppress(ConnectionError):
            while piece := await reader.read(2**20):
                received_bytes += len(piece)
        writer.close()
        self.received_bytes.set_result(received_bytes)


@asynccontextmanager
async def _stalling(
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[StallingServer, str]]:
    served = StallingServer()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    async with await asyncio.start_server(served.serve, sock=listener, limit=2**14, ssl=tls):
        scheme = "http" if tls is None else "https"
        yield served, f"{scheme}://localhost:{listener.getsockname()[1]}/bucket/"


@pytest.mark.usefixtures("small_sockets")
@pytest.mark.parametrize("body", BODIES, ids=["1 MiB", "8 MiB"])
@pytest.mark.parametrize("by", ["lease", "cancellation"])
async def test_nothing_more_of_a_write_is_sent_after_its_time(body: bytes, by: str) -> None:
    """A server that reads the rest later must not get a whole request: the lease is over."""
    lease = Lease(datetime.now(UTC), 1)
    async with _stalling() as (server, url), open_client(url) as client, asyncio.timeout(30):
        put = asyncio.create_task(client.call("put", "PUT", "k", {}, body=body, lease=lease))
        await server.stalled.wait()
        if by == "cancellation":
            put.cancel()
        with pytest.raises((StorageUnavailableError, asyncio.CancelledError)):
            await put
        server.resume.set()
        assert await server.received_bytes < len(body)


async def _received_over_tls(folder: Path, body: bytes) -> int:
    """What a server gets that reads on one second after the lease of a write."""
    context = _server_context(folder)
    trusting = ssl.create_default_context(cafile=str(folder / "cert"))
    lease = Lease(datetime.now(UTC), 1)
    async with (
        _stalling(context) as (server, url),
        open_client(url, tls=trusting) as client,
        asyncio.timeout(30),
    ):
        with pytest.raises(StorageUnavailableError):
            await client.call("put", "PUT", "k", {}, body=body, lease=lease)
        await asyncio.sleep(1)  # a normal close would flush meanwhile
        server.resume.set()
        return await server.received_bytes


@pytest.mark.usefixtures("small_sockets")
async def test_nothing_more_of_a_write_is_sent_over_tls_after_its_time(tmp_path: Path) -> None:
    """A TLS transport has encrypted the whole write by then, and reports nothing as unsent."""
    body = bytes(2**20)
    assert await _received_over_tls(tmp_path, body) < len(body)


@pytest.mark.usefixtures("small_sockets", "closing_normally")
async def test_without_the_abort_a_write_over_tls_would_arrive_after_its_time(
    tmp_path: Path,
) -> None:
    body = bytes(2**18)  # written at once
    assert await _received_over_tls(tmp_path, body) == len(body)


@pytest.mark.usefixtures("small_sockets", "closing_normally")
async def test_without_the_abort_the_rest_of_a_write_would_be_sent() -> None:
    body = bytes(2**18)
    lease = Lease(datetime.now(UTC), 1)
    async with _stalling() as (server, url), open_client(url) as client, asyncio.timeout(30):
        with pytest.raises(StorageUnavailableError):
            await client.call("put", "PUT", "k", {}, body=body, lease=lease)
        server.resume.set()
        assert await server.received_bytes == len(body)


async def _received_from_the_kernel() -> int:
    """What a server gets that reads a write only after its lease; of a body that fits in there."""
    lease = Lease(datetime.now(UTC), 1)
    async with _stalling() as (server, url), open_client(url) as client, asyncio.timeout(30):
        with pytest.raises(StorageUnavailableError):
            await client.call("put", "PUT", "k", {}, body=_KERNEL_BODY, lease=lease)
        server.resume.set()
        return await server.received_bytes


async def test_the_kernel_sends_nothing_more_of_a_write_after_its_time() -> None:
    assert await _received_from_the_kernel() < len(_KERNEL_BODY)


@pytest.mark.usefixtures("without_reset")
async def test_without_the_reset_the_kernel_would_send_the_rest() -> None:
    assert await _received_from_the_kernel() == len(_KERNEL_BODY)


async def test_a_connection_lost_while_a_stream_is_sent_ends_it_at_once() -> None:
    """However slow the source is: the rest of a large body is neither read nor encrypted."""
    taken = list[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(100)
        writer.transport.abort()

    async def source() -> AsyncIterator[bytes]:
        for number in range(100):
            taken.append(number)
            yield bytes(1000)
            await asyncio.sleep(0.01)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}/bucket/"
        async with open_client(url) as client, asyncio.timeout(20):
            body = KnownLengthBody(source(), 100_000)
            with pytest.raises(StorageUnavailableError):
                await client.put_stream("put", "k", {}, body, lease=None)
    assert len(taken) < 50


@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_connection_that_was_not_read_to_the_end_is_not_used_again(is_paused: bool) -> None:
    """What came while reading was paused, nobody has seen: it could answer the next request."""
    pool, connection = Mock(), Mock()
    exchange = Exchange(pool, "GET", read_timeout_s=1)
    exchange._connection, exchange._parser = connection, Mock()
    exchange._is_open = exchange._is_complete = exchange._keeps_alive = True
    exchange._is_read_paused = is_paused
    exchange.close()
    pool.release.assert_called_once_with(connection, is_reusable=not is_paused)


@pytest.mark.parametrize("has_received", [False, True])
async def test_an_error_of_tls_in_the_middle_is_a_lost_connection(has_received: bool) -> None:
    """Only before the first byte does it say that the server speaks no TLS."""
    connection = Connection()
    connection.transport = Mock()
    connection.has_received = has_received
    error = ssl.SSLError()
    error.reason = "WRONG_VERSION_NUMBER"
    connection.connection_lost(error)
    assert isinstance(connection.failure, ConnectionLostError)
    assert isinstance(connection.failure, TlsFailedError) is not has_received


EARLY = b"HTTP/1.1 %s\r\nContent-Length: 4\r\n\r\ndone"


@pytest.mark.usefixtures("small_sockets")
@pytest.mark.parametrize("body", BODIES, ids=["1 MiB", "8 MiB"])
@pytest.mark.parametrize(
    ("status", "error"), [(b"200 OK", "early response"), (b"503 Slow Down", "503")]
)
async def test_of_a_response_before_the_whole_request_only_a_failure_is_believed(
    body: bytes, status: bytes, error: str
) -> None:
    """Nobody can have stored what was not sent; and the connection is not used again."""
    early = EARLY % status
    async with connected(early, reads_bodies=False) as (server, client), asyncio.timeout(30):
        with pytest.raises(StorageUnavailableError, match=error):
            await client.call("put", "PUT", "k", {}, body=body, timeout_s=20)
        assert (await client.call("read", "GET", "k", {}, timeout_s=20)).body == b"done"
    assert server.connections == 2


@pytest.mark.usefixtures("small_sockets")
async def test_without_the_guard_an_early_success_would_be_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant."""
    monkeypatch.setattr(Exchange, "_is_sent", lambda _: True)
    early = EARLY % b"200 OK"
    async with connected(early, reads_bodies=False) as (_, client), asyncio.timeout(30):
        put = await client.call("put", "PUT", "k", {}, body=BODIES[0], timeout_s=20)
    assert put.body == b"done"


async def _used_once(server: ByteServer, client: Any) -> int:
    """Leave a connection in the pool; gives the server's end of it."""
    await client.call("read", "GET", "k", {}, timeout_s=5)
    end: int = server.writers[0].get_extra_info("socket").fileno()
    return end


@pytest.mark.parametrize("is_read", [True, False], ids=["read by the loop", "not yet read"])
@pytest.mark.parametrize("sent", [NOT_FOUND, b"H", b"\r\n"], ids=["whole", "one byte", "blank"])
async def test_an_early_response_is_not_the_response_to_the_next_request(
    sent: bytes, is_read: bool
) -> None:
    """It came on a kept connection after the last response: no request is sent there."""
    async with connected() as (server, client):
        os.write(await _used_once(server, client), sent)
        if is_read:
            await asyncio.sleep(0.1)  # nothing shows when the client's loop has it
        put = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
        assert put.body == b"done"
    assert [head[:4] for head in server.heads] == [b"GET ", b"PUT "]
    assert server.connections == 2


HEADS = {
    "of an object": b"HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n",
    "of an error": b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
    "without a length": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_a_late_body_of_a_head_is_not_the_response_to_the_next_request(head: bytes) -> None:
    """A proxy that takes HEAD for GET lets the writer of an object choose that response."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HEAD"):
                writer.write(head)
                await reader.read(2**16)
                writer.write(EARLY % b"200 OK")
            writer.write(OK)
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}/bucket/"
        async with open_client(url) as client, asyncio.timeout(20):
            with suppress(UnconfirmedNotFoundError):
                await client.call("head", "HEAD", "k", {})
            response = await client.call("put", "PUT", "k", {}, body=b"body")
    assert response.headers.get("x-seen") == "yes", "not what the server said to the put"


async def test_after_the_head_of_an_empty_object_the_connection_is_kept() -> None:
    """No body is announced: each tombstone in a list costs such a request."""
    async with connected(OK.replace(b"4", b"0").replace(b"done", b"")) as (server, client):
        await client.call("head", "HEAD", "k", {})
        await client.call("read", "GET", "k", {})
    assert server.connections == 1


async def test_without_the_guard_an_early_response_would_be_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant: nothing looks at the socket before a request."""
    monkeypatch.setattr(Connection, "is_silent", lambda _: True)
    async with connected() as (server, client):
        os.write(await _used_once(server, client), EARLY % b"200 OK")
        response = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
        assert response.headers.get("x-seen") is None, "not what the server said to the put"


@pytest.mark.parametrize("is_read", [True, False], ids=["read by the loop", "not yet read"])
async def test_a_connection_that_the_server_closed_is_not_used(is_read: bool) -> None:
    """A request that was not sent may go out on another one."""
    async with connected() as (server, client):
        await _used_once(server, client)
        server.writers[0].transport.abort()
        await asyncio.sleep(0.1 if is_read else 0)
        put = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
        assert put.body == b"done"
    assert server.connections == 2


@pytest.mark.parametrize(
    "sent",
    [
        OK + NOT_FOUND,
        OK + b"x",
        OK.replace(b"200 OK", b"200 OK\r\nConnection: close"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["a second response", "a byte", "close", "HTTP/1.0"],
)
async def test_a_whole_response_counts_and_its_connection_does_not(sent: bytes) -> None:
    async with connected(sent) as (server, client):
        for _ in range(2):
            response = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
            assert (response.status, response.body) == (200, b"done")
    assert server.connections == 2


async def test_a_connection_is_kept_for_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_connections, "_KEEP_ALIVE_S", 0.2)
    async with connected() as (server, client), asyncio.timeout(5):
        await _used_once(server, client)
        await server.hung_up.wait()
        await client.call("read", "GET", "k", {}, timeout_s=5)
    assert server.connections == 2


async def test_more_requests_than_connections_wait() -> None:
    """And a cancelled one gives up its place."""
    unfinished = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow"
    async with connected(*[unfinished] * 4) as (server, client), asyncio.timeout(5):
        calls = [
            asyncio.create_task(client.call("read", "GET", str(key), {}, timeout_s=5))
            for key in range(7)
        ]
        while len(server.heads) < 4:  # noqa: ASYNC110  # the server gives no other sign
            await asyncio.sleep(0.01)
        calls.pop(4).cancel()
        for call in calls[:4]:
            call.cancel()
        assert [(await call).body for call in calls[4:]] == [b"done"] * 2
    assert {head.split()[1] for head in server.heads[4:]} == {b"/bucket/5", b"/bucket/6"}


async def test_a_stream_is_read_no_faster_than_its_reader() -> None:
    """And not at all once it is left: a late reader gets no byte of the next response."""
    size_bytes = 16 * 2**20
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes + bytes(size_bytes)
    async with connected(large) as (server, client), asyncio.timeout(20):
        async with client.open_get("stream", "k", {}) as exchange:
            first = await exchange.read_some()
            await asyncio.sleep(0.2)  # for the server to send what is taken
            held_bytes = sum(map(len, exchange._pieces))
            assert len(first) + held_bytes < 2**20
            rest = await exchange.read_up_to(size_bytes)
            assert len(first) + len(rest) == size_bytes
        async with client.open_get("stream", "k", {}) as exchange:
            pass
        assert await exchange.read_some() == b""
    assert server.connections == 1


async def test_tls_is_used_and_the_certificate_is_checked(tmp_path: Path) -> None:
    context = _server_context(tmp_path)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert"))
    served = ByteServer()
    async with await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/bucket/"
        async with open_client(url, tls=trusting) as client:
            for body in (b"body", *BODIES):
                response = await client.call("put", "PUT", "k", {}, body=body, timeout_s=9)
                assert response.body == b"done"
        async with open_client(url) as client:
            with pytest.raises(StorageUnavailableError, match="unknown authority"):
                await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=9)
    assert served.connections == 1
    assert OK.endswith(b"done")


def _server_context(folder: Path) -> ssl.SSLContext:
    """For a server at `localhost`, with a self-signed certificate in the file `cert`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    (folder / "cert").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context
