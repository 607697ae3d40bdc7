"""Connections between requests: nothing is resent, left over, or read as the next response."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import s3_session
from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.s3_session import CleanConnector
from tests.unit.keyturn_workers.storage.byte_server import OK, ByteServer, connected, open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # most wait for a lease
# One write, and one that aiohttp writes piece by piece.
BODIES = [bytes(2**20), bytes(8 * 2**20)]
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _small_socket(address: Any) -> socket.socket:
    """The kernel of this end holds little of what is sent."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
    return made


@pytest.fixture
def small_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(CleanConnector, socket_factory=_small_socket)
    monkeypatch.setattr(s3_session, "CleanConnector", small)


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
@pytest.mark.parametrize("body", BODIES, ids=["one write", "many writes"])
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


@pytest.mark.usefixtures("small_sockets")
async def test_without_the_abort_a_write_over_tls_would_arrive_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: aiohttp closes the connection normally, which flushes first."""
    monkeypatch.setattr("keyturn_workers.storage.s3_http.abort_on_failure", nullcontext)
    body = bytes(2**20)
    assert await _received_over_tls(tmp_path, body) == len(body)


@pytest.mark.usefixtures("small_sockets")
async def test_without_the_guard_the_rest_of_a_write_would_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant: a connection that is closed normally sends its buffer first."""
    monkeypatch.setattr(s3_session, "_drop_unsent", lambda _: None)
    monkeypatch.setattr("keyturn_workers.storage.s3_http.abort_on_failure", nullcontext)
    lease = Lease(datetime.now(UTC), 1)
    async with _stalling() as (server, url), open_client(url) as client, asyncio.timeout(30):
        with pytest.raises(StorageUnavailableError):
            await client.call("put", "PUT", "k", {}, body=BODIES[0], lease=lease)
        server.resume.set()
        assert await server.received_bytes == len(BODIES[0])


@pytest.mark.usefixtures("small_sockets")
@pytest.mark.parametrize("body", BODIES, ids=["one write", "many writes"])
async def test_a_connection_with_an_unsent_body_is_not_used_again(body: bytes) -> None:
    """The server responded before it read the body: the rest of it is still under way."""
    async with connected(reads_bodies=False) as (server, client), asyncio.timeout(30):
        assert (await client.call("put", "PUT", "k", {}, body=body, timeout_s=20)).status == 200
        assert (await client.call("read", "GET", "k", {}, timeout_s=20)).body == b"done"
    assert server.connections == 2


async def _unsolicited(server: ByteServer, client: Any) -> None:
    """Leave a response in the pool that answers no request."""
    await client.call("read", "GET", "k", {}, timeout_s=5)
    server.writers[0].write(NOT_FOUND)
    await server.writers[0].drain()
    await asyncio.sleep(0.1)  # nothing shows when the client's kernel has it


async def test_an_early_response_is_not_the_response_to_the_next_request() -> None:
    """It came on a kept connection after the last response: no request is sent there."""
    async with connected() as (server, client):
        await _unsolicited(server, client)
        with pytest.raises(StorageUnavailableError, match="ServerDisconnectedError"):
            await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
        assert [head[:4] for head in server.heads] == [b"GET "]
        assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"done"
    assert server.connections == 2


async def test_without_the_guard_an_early_response_would_be_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant: aiohttp's own pool hands such a connection out."""
    monkeypatch.setattr(s3_session, "CleanConnector", aiohttp.TCPConnector)
    early = NOT_FOUND.replace(b"404 Not Found", b"200 OK")
    monkeypatch.setattr(f"{__name__}.NOT_FOUND", early)
    async with connected() as (server, client):
        await _unsolicited(server, client)
        response = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
        assert response.body == b"", "not what the server said to the put"


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
