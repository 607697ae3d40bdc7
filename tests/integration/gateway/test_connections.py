"""Clients that are slow, silent or gone, or that try to fill the gateway (SPEC 9.2).

Whatever a client without an API key does to its own connection, others are served.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from keyturn_workers.process.http_server.protocol import MAX_PIPELINED
from tests.integration.gateway.scene import plain
from tools.harness.http import object_target, read_response, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.integration.gateway.scene import Scene

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_CONCURRENCY = 4
GATEWAY_ENV = {
    "GATEWAY_HEAD_TIMEOUT_S": "1",
    "GATEWAY_IDLE_TIMEOUT_S": "1",
    "GATEWAY_CONCURRENCY": str(_CONCURRENCY),
    "GATEWAY_PROJECT_SHARE": "1",
}
_OPENAPI = request("GET", "/openapi.json", [])


@asynccontextmanager
async def _opened(
    scene: Scene, *, receive_buffer_bytes: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect; with `receive_buffer_bytes` the receive buffer is that small, and is not read."""
    sock = socket.socket()
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.setblocking(False)  # noqa: FBT003  # the socket module's own
    await asyncio.get_running_loop().sock_connect(sock, (scene.process.host, scene.process.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        if receive_buffer_bytes is not None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        yield reader, writer
    finally:
        writer.transport.abort()


async def _metric(scene: Scene, name: str) -> float:
    answer = await scene.client.send("GET", "/metrics")
    found = re.search(rf"^{re.escape(name)} ([0-9.e+-]+)$", answer.body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110  # another process has no events
            await asyncio.sleep(0.05)


async def _until_metric(scene: Scene, name: str, at_least: float) -> None:
    async def holds() -> bool:
        return await _metric(scene, name) >= at_least

    await _until(holds)


async def _served(scene: Scene) -> None:
    """Wait until a valid request is served."""

    async def holds() -> bool:
        return (await scene.client.request("acme", "small")).status == 200

    await _until(holds)


async def _ends(reader: asyncio.StreamReader) -> bytes:
    """Return what is received until the connection ends, which must be soon."""
    got = b""
    async with asyncio.timeout(8):
        try:
            while piece := await reader.read(65536):
                got += piece
        except ConnectionError:
            pass
    return got


_SILENCE = {
    "nothing at all": b"",
    "half a request line": b"GET /v1/proj",
    "half a head": b"GET / HTTP/1.1\r\nHost: g\r\nX-A: ",
    "a blank line": b"\r\n",
}


@pytest.mark.parametrize("what", _SILENCE)
@pytest.mark.parametrize("after", ["a new connection", "an answer"])
async def test_a_connection_without_a_complete_head_is_closed(
    scene: Scene, what: str, after: str
) -> None:
    """Before the first request and after a response."""
    async with _opened(scene) as (reader, writer):
        if after == "an answer":
            writer.write(request("GET", "/healthz", []))
            assert (await read_response(reader)).status == 200
            if not _SILENCE[what]:
                return  # an idle connection is kept for the next request for a while
        writer.write(_SILENCE[what])
        assert await _ends(reader) == b""


async def test_a_head_sent_byte_by_byte_is_closed(scene: Scene) -> None:
    """The timeout is for the whole head, not for its next byte."""
    async with _opened(scene) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nX-A: ")

        async def drip() -> None:
            while not writer.is_closing():
                writer.write(b"a")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        began = time.monotonic()
        assert await _ends(reader) == b""
        assert time.monotonic() - began < 5
        dripping.cancel()


_LONG = {
    "one header": b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 1024,
    "many headers": b"GET /healthz HTTP/1.1\r\n" + b"X-A: b\r\n" * 100,
    "the path": b"GET /" + b"a" * 1024,
    "trailers": b"GET /healthz HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n" + b"X-A: b\r\n" * 100,
    "a chunk's extension": b"GET /healthz HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1;" + b"a" * 1024,
}


@pytest.mark.parametrize("what", _LONG)
async def test_a_head_without_an_end_is_reset(scene: Scene, what: str) -> None:
    """More than 64 KiB of it reset the connection, long before the timeout."""
    begun = _LONG[what]
    more = b"X-A: b\r\n" * 8192 if what in ("many headers", "trailers") else b"a" * 65536
    sent = 0
    async with _opened(scene) as (_, writer):

        async def send() -> None:
            nonlocal sent
            writer.write(begun)
            while sent < 64 * 1024 * 1024:
                writer.write(more)
                await writer.drain()
                sent += len(more)

        with pytest.raises(ConnectionError):
            await send()
    assert sent < 16 * 1024 * 1024
    await _served(scene)


async def test_unread_responses_do_not_keep_others_out(scene: Scene) -> None:
    """A client without an API key requests more than it reads, on many connections."""
    async with AsyncExitStack() as stack:
        for _ in range(2 * _CONCURRENCY):
            _, writer = await stack.enter_async_context(_opened(scene, receive_buffer_bytes=4096))
            writer.write(_OPENAPI * 400)
        await _served(scene)

        async def holds() -> bool:
            return await _metric(scene, "keyturn_gateway_requests_in_flight") == 1

        await _until(holds)
    await _served(scene)


async def _connections(scene: Scene) -> int:
    """Return how many files the gateway has open, connections included."""
    return int(await _metric(scene, "process_open_fds"))


async def test_a_connection_with_an_unread_end_of_a_response_is_closed(scene: Scene) -> None:
    """The response is complete for the application, and still in a buffer."""
    before = await _connections(scene)
    async with AsyncExitStack() as stack:
        for _ in range(10):
            _, writer = await stack.enter_async_context(_opened(scene, receive_buffer_bytes=2048))
            writer.write(_OPENAPI * 3)
        assert await _connections(scene) >= before + 10

        async def holds() -> bool:
            return await _connections(scene) <= before + 2

        await _until(holds)


async def test_a_client_that_reads_nothing_is_disconnected(scene: Scene) -> None:
    """It does not hold the read from the storage."""
    cut = 'keyturn_gateway_aborted_total{reason="client_slow"}'
    known = await _metric(scene, cut)
    target = object_target("acme", "large")
    async with _opened(scene, receive_buffer_bytes=4096) as (reader, writer):
        authorization = ("Authorization", f"Bearer {scene.deployment.api_key}")
        writer.write(request("GET", target, [authorization]))
        await _until_metric(scene, cut, known + 1)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await _ends(reader)) < 32 * 1024 * 1024
    assert "client_slow" in await scene.process.logged("response aborted")


async def test_a_client_that_reads_slowly_is_not_disconnected(scene: Scene) -> None:
    """It reads a little for four times the idle timeout."""
    authorization = ("Authorization", f"Bearer {scene.deployment.api_key}")
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        sock.setblocking(False)  # noqa: FBT003  # the socket module's own
        await loop.sock_connect(sock, (scene.process.host, scene.process.port))
        await loop.sock_sendall(
            sock, request("GET", object_target("acme", "large"), [authorization])
        )
        until = loop.time() + 4
        while loop.time() < until:
            assert await loop.sock_recv(sock, 64 * 1024)
            await asyncio.sleep(0.05)


async def test_disconnects_leave_no_files_open(scene: Scene) -> None:
    """Fifty clients disconnect in the middle of a download."""
    await _served(scene)
    before = await _connections(scene)
    gone = 'keyturn_gateway_aborted_total{reason="client_gone"}'
    known = await _metric(scene, gone)
    authorization = ("Authorization", f"Bearer {scene.deployment.api_key}")
    get = request("GET", object_target("acme", "large"), [authorization])

    async def goes() -> None:
        async with _opened(scene) as (reader, writer):
            writer.write(get)
            assert (await reader.readexactly(1024)).startswith(b"HTTP/1.1 200")

    for _ in range(25):
        await asyncio.gather(goes(), goes())
    await _until_metric(scene, gone, known + 50)
    assert await _metric(scene, "keyturn_gateway_requests_in_flight") == 1
    # The pool to the storage may keep what it reuses: a connection a request at once.
    assert await _connections(scene) <= before + _CONCURRENCY
    assert not [line for line in scene.process.lines if "unexpected" in line]


async def test_a_disconnect_ends_all_pipelined_requests(scene: Scene) -> None:
    """Nothing is logged, so that a client cannot fill the log."""
    known = len(scene.process.lines)
    authorization = [("Authorization", f"Bearer {scene.deployment.api_key}")]
    get = request("GET", object_target("acme", "large"), authorization)
    for number in range(60):
        async with _opened(scene) as (reader, writer):
            writer.write((_OPENAPI if number % 2 else get) * MAX_PIPELINED)
            assert (await reader.readexactly(1024)).startswith(b"HTTP/1.1 ")
    await _served(scene)

    async def holds() -> bool:
        return await _metric(scene, "keyturn_gateway_requests_in_flight") == 1

    await _until(holds)
    assert scene.process.lines[known:] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    scene.put("small", plain(100))
    scene.put("large", plain(32 * 1024 * 1024))
