"""One request and its answer on a connection of the pool: what is written, read, and kept."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from keyturn_workers.storage.exchange import Exchange
from keyturn_workers.storage.signing import Signed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Told: yes\r\n\r\ndone"


@dataclass
class Server:
    """Reads heads, and answers each with the next of its texts; an empty one hangs up."""

    port: int = 0
    answers: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    reads_bodies: bool = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        _, _, length = head.partition(b"Content-Length: ")
        if length and self.reads_bodies:
            await reader.readexactly(int(length.split(b"\r\n")[0]))
        answer = self.answers.pop(0) if self.answers else _DONE
        writer.write(answer)
        await writer.drain()
        return bool(answer)


@asynccontextmanager
async def _met(
    *answers: bytes, reads_bodies: bool = True
) -> AsyncIterator[tuple[Server, Exchange]]:
    script = Server(answers=list(answers), reads_bodies=reads_bodies)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    async with aiohttp.TCPConnector(limit=4) as connector:
        yield script, Exchange(connector, f"http://127.0.0.1:{script.port}/bucket/")
    server.close()


def _signed(**headers: str) -> Signed:
    return Signed("http://unused", "/bucket/a%20k?x=%2F", {"range": "bytes=0-1", **headers})


async def test_what_is_written() -> None:
    """Target and headers as they were signed; a length where there may be a body."""
    async with _met() as (server, exchange):
        answer = await exchange.ask("GET", _signed(), b"", total_s=5)
        await exchange.ask("PUT", _signed(), b"body", total_s=None)
        await exchange.ask("PUT", _signed(), b"", total_s=5)
        await exchange.ask("DELETE", _signed(), b"", total_s=5)
    assert (answer.status, answer.headers["x-told"], answer.body) == (200, "yes", b"done")
    common = (
        f" /bucket/a%20k?x=%2F HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nrange: bytes=0-1\r\n"
    )
    assert [head.decode() for head in server.heads] == [
        f"GET{common}\r\n",
        f"PUT{common}Content-Length: 4\r\n\r\n",
        f"PUT{common}Content-Length: 0\r\n\r\n",
        f"DELETE{common}Content-Length: 0\r\n\r\n",
    ]
    assert server.connections == 1, "all on one connection"


@pytest.mark.parametrize("odd", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
async def test_no_header_ends_its_line(odd: str, where: str) -> None:
    """Nor begins another request; nothing was sent."""
    async with _met() as (server, exchange):
        headers = {odd: "v"} if where == "name" else {"x-amz-meta-a": odd}
        with pytest.raises(ValueError, match="within a header"):
            await exchange.ask("GET", _signed(**headers), b"", total_s=5)
    assert not server.heads


async def test_an_interim_answer_is_none() -> None:
    """What counts is the one behind it."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with _met(interim + _DONE) as (_, exchange):
        assert (await exchange.ask("PUT", _signed(), b"body", total_s=5)).body == b"done"


async def test_a_head_has_no_body() -> None:
    """Its length is the object's, and the next answer on the connection is read right."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    async with _met(head) as (server, exchange):
        answer = await exchange.ask("HEAD", _signed(), b"", total_s=5)
        assert (answer.headers["content-length"], answer.body) == ("5000", b"")
        assert (await exchange.ask("GET", _signed(), b"", total_s=5)).body == b"done"
    assert server.connections == 1


async def test_a_stored_encoding_is_the_objects_own() -> None:
    """The bytes come as they are stored."""
    stored = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nraw"
    async with _met(stored) as (_, exchange):
        assert (await exchange.ask("GET", _signed(), b"", total_s=5)).body == b"raw"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    ],
)
async def test_a_broken_answer_is_told_and_its_connection_is_gone(answer: bytes) -> None:
    """And no second try is made."""
    async with _met(_DONE, answer) as (server, exchange):
        await exchange.ask("GET", _signed(), b"", total_s=5)
        server.reads_bodies = False
        if answer:
            server.answers.insert(1, b"")  # it hangs up after what is broken
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await exchange.ask("GET", _signed(), b"", total_s=1)
        assert len(server.heads) == 2
        server.answers.clear()
        assert (await exchange.ask("GET", _signed(), b"", total_s=5)).body == b"done"
    assert server.connections == 2


@pytest.mark.parametrize("total_s", [0.2, None])
async def test_silence_ends(total_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In total or between bytes, and the connection with it."""
    monkeypatch.setattr("keyturn_workers.storage.exchange.READ_TIMEOUT_S", 0.2)
    async with _met(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow") as (server, exchange):
        async with asyncio.timeout(5):
            with pytest.raises(TimeoutError):
                await exchange.ask("GET", _signed(), b"", total_s=total_s)
            await server.hung_up.wait()


async def test_cancelled_the_connection_is_gone() -> None:
    """What the server still says must not answer the next request."""
    async with _met(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow") as (server, exchange):
        asking = asyncio.create_task(exchange.ask("GET", _signed(), b"", total_s=30))
        async with asyncio.timeout(5):
            while not server.heads:  # noqa: ASYNC110  # the server has no other sign
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await server.hung_up.wait()


async def test_answered_before_the_body_was_taken() -> None:
    """The rest of it is still on its way: no other request may follow on that connection."""
    body = bytes(32 * 2**20)  # more than the kernel holds for both ends
    async with _met(reads_bodies=False) as (server, exchange):
        async with asyncio.timeout(30):
            assert (await exchange.ask("PUT", _signed(), body, total_s=20)).status == 200
            assert (await exchange.ask("GET", _signed(), b"", total_s=20)).body == b"done"
    assert server.connections == 2


async def test_after_its_time_nothing_more_of_a_put_is_sent() -> None:
    """A server that takes the rest of it later must not get a whole one: its lease is over."""
    body = bytes(32 * 2**20)  # more than the kernel holds for both ends
    later, took = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await later.wait()
        got = 0
        with suppress(ConnectionError):
            while piece := await reader.read(2**20):
                got += len(piece)
        writer.close()
        took.set_result(got)

    async with await asyncio.start_server(stalls, "127.0.0.1", 0, limit=2**16) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/bucket/"
        async with aiohttp.TCPConnector() as connector, asyncio.timeout(30):
            with pytest.raises(TimeoutError):
                await Exchange(connector, url).ask("PUT", _signed(), body, total_s=0.3)
            later.set()
            assert await took < len(body)


async def test_what_came_unasked_is_no_answer() -> None:
    """Said on a kept connection after its last answer: no request is sent on that one."""
    stale = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_DONE)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/bucket/"
        async with aiohttp.TCPConnector() as connector:
            exchange = Exchange(connector, url)
            assert (await exchange.ask("GET", _signed(), b"", total_s=5)).body == b"done"
            writers[0].write(stale)
            await writers[0].drain()
            await asyncio.sleep(0.1)  # it lies there unread: nothing tells when it has come
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await exchange.ask("GET", _signed(), b"", total_s=5)
            assert (await exchange.ask("GET", _signed(), b"", total_s=5)).body == b"done"
    assert len(writers) == 2


async def test_silence_after_an_interim_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as one byte more, and not as the answer."""
    monkeypatch.setattr("keyturn_workers.storage.exchange.READ_TIMEOUT_S", 0.2)
    async with _met(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n") as (_, exchange):
        async with asyncio.timeout(5):
            with pytest.raises(aiohttp.ServerTimeoutError):
                await exchange.ask("HEAD", _signed(), b"", total_s=None)


async def test_by_tls(tmp_path: Path) -> None:
    """The pool speaks it, and checks whom it speaks to."""
    certified, trusting = _certified(tmp_path), ssl.create_default_context(cafile=tmp_path / "cert")
    script = Server()
    async with await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=certified) as server:
        base_url = f"https://localhost:{server.sockets[0].getsockname()[1]}/bucket/"
        async with aiohttp.TCPConnector(ssl=trusting) as connector:
            for body in (b"body", bytes(2**20)):
                answer = await Exchange(connector, base_url).ask("PUT", _signed(), body, total_s=9)
                assert answer.body == b"done"
        async with aiohttp.TCPConnector() as connector:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await Exchange(connector, base_url).ask("PUT", _signed(), b"body", total_s=9)
    assert script.connections == 1


def _certified(folder: Path) -> ssl.SSLContext:
    """A server for `localhost` with a certificate that it made itself, in `cert`."""
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
