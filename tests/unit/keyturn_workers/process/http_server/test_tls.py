"""TLS on a listener, over loopback: bounded handshakes, and HTTP as before (SPEC 9.7)."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.server import ServerState

from keyturn.tls import GATEWAY, PairSettings, client_context
from keyturn_workers.process.http_server import protocol, tls
from keyturn_workers.process.http_server.client_connection import abort
from keyturn_workers.process.http_server.protocol import LimitedProtocol, make_protocol_class
from keyturn_workers.process.http_server.server import open_listeners
from keyturn_workers.process.http_server.tls import ServerCertificate, accept_tls
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

_HEAD = b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n"
_TIMEOUT_S = 10.0
_SHORT_S = 0.2
_MAX_CONNECTIONS = 3


@dataclass
class _App:
    """`/` answers, `/cut` resets the connection in its answer, `/slow` answers in two pieces.

    `/100000` answers with so many bytes.
    """

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    schemes: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        self.schemes.append(scope["scheme"])
        if (size := scope["path"][1:]).isdecimal():
            headers = [(b"content-length", size.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(int(size))})
            return
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        if scope["path"] == "/cut":
            abort(scope)
            return
        if scope["path"] == "/slow":
            await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"ay"})


@dataclass
class _Server:
    port: int
    app: _App
    state: ServerState
    authority: Authority
    certificate: ServerCertificate
    files: Path

    def trusting(self) -> ssl.SSLContext:
        return client_context(GATEWAY, self.authority.ca)

    def requested(self, size: int, *, receive_buffer_bytes: int | None = None) -> ssl.SSLSocket:
        """A client that has received the beginning of a response with so many bytes."""
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(_TIMEOUT_S)
        sock.connect(("127.0.0.1", self.port))
        secured = self.trusting().wrap_socket(sock, server_hostname="localhost")
        secured.sendall(_HEAD % f"/{size}".encode())
        assert secured.recv(15) == b"HTTP/1.1 200 OK"
        return secured

    @asynccontextmanager
    async def connected(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=context or self.trusting(),
            server_hostname="localhost",
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[asyncio.StreamReader]:
        """A client that connects, and says nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader
        finally:
            writer.transport.abort()


@asynccontextmanager
async def _serving(
    folder: Path, *, handshake_s: float = _TIMEOUT_S, send_buffer_bytes: int | None = None
) -> AsyncIterator[_Server]:
    authority = Authority(folder / "ca")
    made = authority.issue()
    shutil.copy(made.certificate, folder / "tls.crt")
    shutil.copy(made.key, folder / "tls.key")
    certificate = ServerCertificate(
        folder / "tls.crt", folder / "tls.key", PairSettings("CERT", "KEY")
    )
    app, state = _App(), ServerState()
    http = make_protocol_class(head_timeout_s=handshake_s, max_connections=_MAX_CONNECTIONS)
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, access_log=False)
    config.load()

    def make_http() -> LimitedProtocol:
        return http(config=config, server_state=state, app_state={})

    (listener,) = await open_listeners(
        "127.0.0.1", 0, settings="KEYTURN_GATEWAY", idle_timeout_s=60
    )
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listener.settimeout(0)
    listener.listen()
    accepting = asyncio.create_task(accept_tls(listener, certificate, make_http))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            port = listener.getsockname()[1]
            yield _Server(port, app, state, authority, certificate, folder)
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listener.close()
        for connection in [*state.connections]:
            connection.shutdown()
        async with asyncio.timeout(_TIMEOUT_S):
            while state.connections:  # noqa: ASYNC110  # nothing reports it
                await asyncio.sleep(0.01)
            await asyncio.gather(*state.tasks, return_exceptions=True)


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: bytes = b"/"
) -> bytes:
    writer.write(_HEAD % path)
    return (await reader.readuntil(b"okay")).partition(b"\r\n")[0]


async def _end(reader: asyncio.StreamReader) -> str:
    """How a connection ends: cleanly, or not."""
    try:
        while await reader.read(65536):
            pass
    except ConnectionResetError:
        return "reset"
    except ssl.SSLError:
        return "TLS failure"
    return "clean"


async def test_requests_are_served_on_one_connection(tmp_path: Path) -> None:
    async with _serving(tmp_path) as server, server.connected() as (reader, writer):
        for _ in range(3):
            assert await _get(reader, writer) == b"HTTP/1.1 200 OK"
        assert server.app.schemes == ["https"] * 3
        assert len(server.state.connections) == 1


async def test_a_request_may_come_along_with_the_end_of_the_handshake(tmp_path: Path) -> None:
    """A client sends at once: on a blocking socket, both can be in one segment."""
    async with _serving(tmp_path) as server:

        def ask() -> bytes:
            context = server.trusting()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        incoming.write(sock.recv(65536))
                tls.write(_HEAD % b"/")
                sock.sendall(outgoing.read())
                answer = b""
                while not answer.endswith(b"okay"):
                    incoming.write(sock.recv(65536))
                    with suppress(ssl.SSLWantReadError):
                        while True:  # a record at a time
                            answer += tls.read(65536)
                return answer

        assert (await asyncio.to_thread(ask)).startswith(b"HTTP/1.1 200 OK")


async def test_a_client_that_has_sent_its_hello_already_is_heard(tmp_path: Path) -> None:
    """Where the server is busy, it is there before the connection is accepted."""
    async with _serving(tmp_path) as server:

        def say_hello() -> tuple[socket.socket, ssl.MemoryBIO, ssl.MemoryBIO, ssl.SSLObject]:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = server.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            sock.sendall(outgoing.read())
            return sock, incoming, outgoing, tls

        sock, incoming, _, tls = say_hello()  # the event loop is blocked meanwhile
        with sock:
            incoming.write(await asyncio.to_thread(sock.recv, 65536))
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        assert tls.version() == "TLSv1.3"


async def test_a_handshake_that_does_not_begin_is_ended(tmp_path: Path) -> None:
    async with _serving(tmp_path, handshake_s=_SHORT_S) as server, server.silent() as reader:
        assert await _end(reader) in ("reset", "clean")
        assert not server.state.connections


async def test_a_handshake_that_is_not_finished_is_ended(tmp_path: Path) -> None:
    async with _serving(tmp_path, handshake_s=_SHORT_S) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # a hello of 512 bytes begins
        assert await _end(reader) in ("reset", "clean")
        writer.transport.abort()


async def test_silent_clients_do_not_keep_others_out(tmp_path: Path) -> None:
    async with _serving(tmp_path) as server, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(server.silent()) for _ in range(_MAX_CONNECTIONS)]
        while len(server.state.connections) < _MAX_CONNECTIONS:  # noqa: ASYNC110  # nothing reports it
            await asyncio.sleep(0.01)
        # The set is small: a new client may itself be closed for the next one, but not forever.
        for _ in range(5):
            async with server.connected() as (reader, writer):
                assert await _get(reader, writer) == b"HTTP/1.1 200 OK"
        assert len(server.state.connections) <= _MAX_CONNECTIONS
        ended = [asyncio.create_task(_end(reader)) for reader in silent]
        done, pending = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        assert done
        for task in pending:
            task.cancel()


async def test_a_connection_beyond_the_limit_is_reset_and_forgotten(tmp_path: Path) -> None:
    """All others are busy, so the newest one is ended, before its handshake has begun."""
    async with _serving(tmp_path) as server, AsyncExitStack() as stack:
        for _ in range(_MAX_CONNECTIONS):
            reader, writer = await stack.enter_async_context(server.connected())
            writer.write(_HEAD % b"/slow")
            await reader.readuntil(b"ok")
        for _ in range(4):
            async with server.silent() as refused:
                assert await _end(refused) in ("reset", "clean")
            assert len(server.state.connections) == _MAX_CONNECTIONS
        server.app.go_on.set()


async def test_a_broken_answer_is_seen_as_broken(tmp_path: Path) -> None:
    """A close_notify after it would look like its end."""
    async with _serving(tmp_path) as server, server.connected() as (reader, writer):
        writer.write(_HEAD % b"/cut")
        assert await _end(reader) == "reset"


async def test_what_is_not_tls_gets_no_answer(tmp_path: Path) -> None:
    async with _serving(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(_HEAD % b"/")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
        assert server.app.schemes == []


async def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    async with _serving(tmp_path) as server:
        old = server.trusting()
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):  # noqa: PT011  # whatever OpenSSL makes of it
            async with server.connected(old):
                pass


async def test_a_renewal_is_for_new_connections_and_downloads_go_on(tmp_path: Path) -> None:
    async with _serving(tmp_path) as server, server.connected() as (reader, writer):
        first = writer.get_extra_info("peercert")["serialNumber"]
        writer.write(_HEAD % b"/slow")
        await reader.readuntil(b"ok")
        second = server.authority.issue("second")
        shutil.copy(second.certificate, server.files / "tls.crt")
        shutil.copy(second.key, server.files / "tls.key")
        for _ in range(2):
            server.certificate.check()
        async with server.connected() as (other_reader, other_writer):
            assert other_writer.get_extra_info("peercert")["serialNumber"] != first
            assert await _get(other_reader, other_writer) == b"HTTP/1.1 200 OK"
        server.app.go_on.set()
        assert await reader.readexactly(2) == b"ay"
        assert await _get(reader, writer) == b"HTTP/1.1 200 OK"


async def test_an_idle_client_that_does_not_look_does_not_delay_the_end(tmp_path: Path) -> None:
    """It would have half a minute to answer the end of TLS."""
    async with _serving(tmp_path) as server, server.connected() as (reader, writer):
        assert await _get(reader, writer) == b"HTTP/1.1 200 OK"
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = server.state.connections
        connection.shutdown()
        async with asyncio.timeout(2):
            while server.state.connections:  # noqa: ASYNC110  # nothing reports it
                await asyncio.sleep(0.01)


async def test_too_many_open_files_pause_it_and_a_client_that_has_gone_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "_ACCEPT_PAUSE_S", 0)
    errors = [OSError(errno.ECONNABORTED, "gone"), OSError(errno.EMFILE, "Too many open files")]
    tried = asyncio.Event()

    async def sock_accept(_: object) -> None:
        if errors:
            raise errors.pop(0)
        tried.set()
        await asyncio.Event().wait()

    loop = SimpleNamespace(sock_accept=sock_accept)
    monkeypatch.setattr(
        tls, "asyncio", SimpleNamespace(get_running_loop=lambda: loop, sleep=asyncio.sleep)
    )
    unused: Any = None
    with capture_logs() as logged:
        accepting = asyncio.create_task(accept_tls(unused, unused, unused))
        await tried.wait()
    accepting.cancel()
    assert [line["event"] for line in logged] == ["no connection accepted for a second"]


def _read_all(secured: ssl.SSLSocket) -> bytes:
    received = b""
    while piece := secured.recv(4096):
        received += piece
    return received


@pytest.mark.parametrize("size", [100_000, 1_000_000])
async def test_a_slow_client_receives_its_response_although_the_server_stops(
    tmp_path: Path, size: int
) -> None:
    async with _serving(tmp_path) as server:
        client = await asyncio.to_thread(server.requested, size, receive_buffer_bytes=4096)
        (connection,) = server.state.connections
        connection.shutdown()
        await asyncio.sleep(0.3)  # longer than a check of what was received
        response = await asyncio.to_thread(_read_all, client)
        client.close()
        assert response.partition(b"\r\n\r\n")[2] == bytes(size)


async def test_a_fast_client_receives_its_response_although_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It often has all that the kernel sent while the event loop still has more to send."""
    monkeypatch.setattr(protocol, "_RECEIVED_CHECK_S", 0.0005)
    async with _serving(tmp_path, send_buffer_bytes=4096) as server:
        client = await asyncio.to_thread(server.requested, size := 1_000_000)
        (connection,) = server.state.connections
        connection.shutdown()
        response = await asyncio.to_thread(_read_all, client)
        client.close()
        assert response.partition(b"\r\n\r\n")[2] == bytes(size)
