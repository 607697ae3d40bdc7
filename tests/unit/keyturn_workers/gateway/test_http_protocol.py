"""A connection on loopback: how long a head may take, and how an answer is cut (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from keyturn_workers.gateway.client_connection import abort
from keyturn_workers.gateway.http_protocol import (
    PIPELINED_MAX,
    GatewayProtocol,
    make_protocol_class,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

_HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
_PATIENT_S = 20.0
_SHORT_S = 0.05


@asynccontextmanager
async def _connected(
    app: ASGIApp,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=60
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    over: asyncio.Future[None] = loop.create_future()

    class Told(GatewayProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            over.set_result(None)

    def made() -> GatewayProtocol:
        return Told(config=config, server_state=state, app_state={})

    server = await loop.create_server(made, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_PATIENT_S):
            yield reader, writer
    finally:
        writer.transport.abort()
        server.close()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await over


async def _answers(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def _is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without a byte more."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayProtocol, "head_timeout_s", _SHORT_S)


@pytest.mark.usefixtures("short")
async def test_a_client_that_says_nothing_is_cut_off() -> None:
    async with _connected(_answers) as (reader, _):
        assert await _is_cut(reader)


@pytest.mark.usefixtures("short")
async def test_a_head_that_comes_byte_by_byte_is_cut_off() -> None:
    """Progress does not count: the whole head has its time."""
    async with _connected(_answers) as (reader, writer):

        async def dribble() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(_SHORT_S / 5)  # the very thing under test

        writer.write(b"GET /")
        dribbling = asyncio.create_task(dribble())
        assert await _is_cut(reader)
        dribbling.cancel()


@pytest.mark.usefixtures("short")
async def test_a_next_request_has_its_time_too() -> None:
    async with _connected(_answers) as (reader, writer):
        for _ in range(2):
            writer.write(_HEAD)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(_SHORT_S * 2)  # between two requests nothing is timed here
        writer.write(_HEAD[:20])
        assert await _is_cut(reader)


async def test_what_follows_the_head_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayProtocol, "head_timeout_s", _SHORT_S)
    headed = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        headed.set()
        assert (await receive())["body"] == b"body"
        await _answers(scope, receive, send)

    async with _connected(slow) as (reader, writer):
        writer.write(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n")
        await headed.wait()
        await asyncio.sleep(_SHORT_S * 2)  # the very thing under test
        writer.write(b"body")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_an_answer_that_is_cut_never_looks_whole() -> None:
    async def cuts(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
        abort(scope)

    async with _connected(cuts) as (reader, writer):
        writer.write(_HEAD)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readuntil(b"x" * 1000)


async def test_each_request_has_its_own_way_to_be_cut() -> None:
    seen: list[Any] = []

    async def looks(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])
        await _answers(scope, receive, send)

    async with _connected(looks) as (reader, writer):
        for _ in range(2):
            writer.write(_HEAD)
            await reader.readuntil(b"ok")
    assert len(seen) == 2
    assert seen[0] is not seen[1]
    assert all(set(state) == {"keyturn.abort", "keyturn.gone"} for state in seen)


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"", b"a"),
        (b" HTTP/1.1\r\nhost: a\r\nx-a: ", b"a"),
        (b" HTTP/1.1\r\nhost: a\r\nx", b": y\r\nx"),
    ],
    ids=["a path", "one header", "many headers"],
)
async def test_a_head_without_end_is_cut_off_before_it_fills_the_memory(
    begun: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GatewayProtocol, "head_timeout_s", 60.0)
    async with _connected(_answers) as (reader, writer):
        cut = asyncio.create_task(_is_cut(reader))
        writer.write(b"GET /" + begun)
        sent = 0
        while not cut.done():
            assert sent < 50_000_000, "whatever comes is kept"
            writer.write(more * 10_000)
            sent += len(more) * 10_000
            with suppress(ConnectionResetError):
                await writer.drain()
            await asyncio.sleep(0)
        assert cut.result()


async def test_a_head_of_a_reasonable_size_is_taken() -> None:
    async with _connected(_answers) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: " + b"a" * 30_000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_a_long_body_is_no_long_head() -> None:
    async def takes(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await _answers(scope, receive, send)

    async with _connected(takes) as (reader, writer):
        for _ in range(2):
            writer.write(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
            writer.write(bytes(1_000_000))
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_requests_behind_one_another_are_bounded() -> None:
    """A server that queues whatever is sent fills its memory, for a caller without a key."""
    begun: list[Scope] = []

    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        del send
        begun.append(scope)
        while (await receive())["type"] != "http.disconnect":
            pass

    async with _connected(hangs) as (reader, writer), asyncio.timeout(10):
        writer.write(_HEAD * 1000)
        assert await _is_cut(reader)
    assert len(begun) == 1


async def test_a_few_requests_behind_one_another_are_answered() -> None:
    async with _connected(_answers) as (reader, writer):
        writer.write(_HEAD * PIPELINED_MAX)
        for _ in range(PIPELINED_MAX):
            assert b"200" in await reader.readuntil(b"ok")


async def test_what_is_no_request_is_told_as_a_problem() -> None:
    async with _connected(_answers) as (reader, writer):
        writer.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
        answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "malformed_request"
    assert f"content-length: {len(body)}".encode() in head


async def test_a_connection_that_nobody_uses_makes_room() -> None:
    """Whoever opens many and says nothing keeps out nobody, nor a probe of this process."""
    config = uvicorn.Config(_answers, lifespan="off", log_config=None, access_log=False)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    kind = make_protocol_class(head_timeout_s=60, idle_timeout_s=60, max_connections=3)
    server = await loop.create_server(
        lambda: kind(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_HEAD)
    assert b"200" in await reader.readuntil(b"ok")
    assert len(state.connections) <= 3
    for _, each in [*silent, (reader, writer)]:
        each.transport.abort()
    server.close()
    for _ in range(500):
        if not state.connections:
            break
        await asyncio.sleep(0.01)
