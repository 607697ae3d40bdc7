"""A connection: its limits, and a client that is slow, silent or gone (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from keyturn_workers.process.http_server.client_connection import (
    ClientGoneError,
    ClientSlowError,
    abort,
    read_body,
    run_while_connected,
    with_send_timeout,
)
from keyturn_workers.process.http_server.protocol import (
    MAX_PIPELINED,
    LimitedProtocol,
    make_protocol_class,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
_TIMEOUT_S = 10.0
_SHORT_S = 0.05
_BODY: Message = {"type": "http.response.body", "body": b"x", "more_body": True}
_GONE: Message = {"type": "http.disconnect"}


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

    lost: asyncio.Future[None] = loop.create_future()

    class Observed(LimitedProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set_result(None)

    def made() -> LimitedProtocol:
        return Observed(config=config, server_state=state, app_state={})

    server = await loop.create_server(made, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            yield reader, writer
    finally:
        writer.transport.abort()
        server.close()
        # A request that does not see the disconnect is canceled here, and its test fails.
        async with asyncio.timeout(_TIMEOUT_S):
            await asyncio.gather(*state.tasks, return_exceptions=True)
        await lost


async def _respond_ok(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def _ends_without_response(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without another byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LimitedProtocol, "head_timeout_s", _SHORT_S)


@pytest.mark.usefixtures("short")
async def test_a_connection_without_a_request_is_reset() -> None:
    async with _connected(_respond_ok) as (reader, _):
        assert await _ends_without_response(reader)


@pytest.mark.usefixtures("short")
async def test_a_head_sent_byte_by_byte_is_reset() -> None:
    """The timeout is for the whole head, not for its next byte."""
    async with _connected(_respond_ok) as (reader, writer):

        async def dribble() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(_SHORT_S / 5)  # this is what the test is about

        writer.write(b"GET /")
        dribbling = asyncio.create_task(dribble())
        assert await _ends_without_response(reader)
        dribbling.cancel()


@pytest.mark.usefixtures("short")
async def test_a_later_request_has_the_same_timeout() -> None:
    async with _connected(_respond_ok) as (reader, writer):
        for _ in range(2):
            writer.write(_HEAD)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(_SHORT_S * 2)  # no head timeout applies between two requests
        writer.write(_HEAD[:20])
        assert await _ends_without_response(reader)


async def test_the_head_timeout_does_not_apply_to_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LimitedProtocol, "head_timeout_s", _SHORT_S)
    headed = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        headed.set()
        assert (await receive())["body"] == b"body"
        await _respond_ok(scope, receive, send)

    async with _connected(slow) as (reader, writer):
        writer.write(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n")
        await headed.wait()
        await asyncio.sleep(_SHORT_S * 2)  # this is what the test is about
        writer.write(b"body")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_an_aborted_response_never_looks_complete() -> None:
    async def aborts(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
        abort(scope)

    async with _connected(aborts) as (reader, writer):
        writer.write(_HEAD)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readuntil(b"x" * 1000)


async def test_each_request_has_a_state_of_its_own_with_the_connections_calls() -> None:
    seen: list[Any] = []

    async def records(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])
        await _respond_ok(scope, receive, send)

    async with _connected(records) as (reader, writer):
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
async def test_a_head_without_an_end_is_reset_before_it_fills_the_memory(
    begun: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedProtocol, "head_timeout_s", 60.0)
    async with _connected(_respond_ok) as (reader, writer):
        cut = asyncio.create_task(_ends_without_response(reader))
        writer.write(b"GET /" + begun)
        sent = 0
        while not cut.done():
            assert sent < 50_000_000, "the head is kept without a limit"
            writer.write(more * 10_000)
            sent += len(more) * 10_000
            with suppress(ConnectionResetError):
                await writer.drain()
            await asyncio.sleep(0)
        assert cut.result()


async def test_a_head_below_the_limit_is_served() -> None:
    async with _connected(_respond_ok) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: " + b"a" * 30_000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_the_limit_of_the_head_does_not_apply_to_the_body() -> None:
    async def reads_the_body(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await _respond_ok(scope, receive, send)

    async with _connected(reads_the_body) as (reader, writer):
        for _ in range(2):
            writer.write(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
            writer.write(bytes(1_000_000))
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_too_many_pipelined_requests_reset_the_connection() -> None:
    """An unlimited queue would let a client without an API key fill the memory."""
    begun: list[Scope] = []

    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        del send
        begun.append(scope)
        while (await receive())["type"] != "http.disconnect":
            pass

    async with _connected(hangs) as (reader, writer), asyncio.timeout(10):
        writer.write(_HEAD * 1000)
        assert await _ends_without_response(reader)
    assert len(begun) == 1


async def test_a_few_pipelined_requests_are_served() -> None:
    async with _connected(_respond_ok) as (reader, writer):
        writer.write(_HEAD * MAX_PIPELINED)
        for _ in range(MAX_PIPELINED):
            assert b"200" in await reader.readuntil(b"ok")


async def test_every_pipelined_request_sees_the_disconnect() -> None:
    """Uvicorn reports it to the newest request only, and the first would wait forever."""
    started, disconnected = asyncio.Event(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, send
        started.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    async with _connected(waits) as (_, writer):
        writer.write(_HEAD * MAX_PIPELINED)
        await started.wait()
        writer.transport.abort()
        await disconnected.wait()


async def test_what_is_not_http_gets_a_problem_document() -> None:
    async with _connected(_respond_ok) as (reader, writer):
        writer.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
        response = await reader.read()
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "malformed_request"
    assert f"content-length: {len(body)}".encode() in head


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
    ],
    ids=["no host", "two hosts", "two hosts of 1.0", "an empty host", "no host of 1.0"],
)
async def test_a_request_names_its_host_once(head: bytes, status: bytes) -> None:
    """RFC 9112, 3.2: a proxy in front may have read another host than we would."""
    async with _connected(_respond_ok) as (reader, writer):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n")).split(b" ")[1] == status


async def test_an_idle_connection_is_closed_when_there_are_too_many() -> None:
    """Many silent connections keep out neither other clients nor health probes."""
    config = uvicorn.Config(_respond_ok, lifespan="off", log_config=None, access_log=False)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    protocol_class = make_protocol_class(head_timeout_s=60, max_connections=3)
    server = await loop.create_server(
        lambda: protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_HEAD)
    assert b"200" in await reader.readuntil(b"ok")
    assert len(state.connections) <= 3
    for _, each in [*idle, (reader, writer)]:
        each.transport.abort()
    server.close()
    for _ in range(500):
        if not state.connections:
            break
        await asyncio.sleep(0.01)


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _receiving(*messages: Message) -> Receive:
    """Receive these messages, and then nothing."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


async def _never() -> None:
    await asyncio.Event().wait()


async def test_sending_to_a_client_that_reads_nothing_times_out() -> None:
    sent: list[Message] = []

    async def takes(message: Message) -> None:
        sent.append(message)

    async def takes_nothing(message: Message) -> None:
        del message
        await _never()

    await with_send_timeout(takes, {}, 5)(_BODY)
    assert sent == [_BODY]
    with pytest.raises(ClientSlowError):
        await with_send_timeout(takes_nothing, {}, 0.01)(_BODY)


async def test_an_error_while_sending_is_raised_unchanged() -> None:
    async def fails(message: Message) -> None:
        raise OSError(str(message["type"]))

    with pytest.raises(OSError, match="body"):
        await with_send_timeout(fails, {}, 5)(_BODY)


async def test_a_response_is_sent_to_its_end_while_the_client_is_connected() -> None:
    done = []

    async def sending() -> None:
        await asyncio.sleep(0)
        done.append(1)

    # What is left of the request's body is passed over.
    await run_while_connected(_receiving(_piece(b"left"), _piece(b"", more=False)), sending())
    assert done == [1]


async def test_a_disconnect_cancels_the_sending() -> None:
    ended = asyncio.Event()

    async def sending() -> None:
        try:
            await _never()
        finally:
            ended.set()

    with pytest.raises(ClientGoneError):
        await run_while_connected(_receiving(_piece(b"x"), _GONE), sending())
    assert ended.is_set()


async def test_a_disconnect_after_the_end_is_no_error() -> None:
    async def sending() -> None:
        pass

    await run_while_connected(_receiving(_GONE), sending())


async def test_an_error_is_raised_and_no_task_is_left() -> None:
    async def sending() -> None:
        await asyncio.sleep(0)
        raise ValueError("why")

    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="why"):
        await run_while_connected(_receiving(), sending())
    assert asyncio.all_tasks() == before


async def test_cancellation_cancels_the_sending() -> None:
    ended, began = asyncio.Event(), asyncio.Event()

    async def sending() -> None:
        began.set()
        try:
            await _never()
        finally:
            ended.set()

    before = asyncio.all_tasks()
    task = asyncio.create_task(run_while_connected(_receiving(), sending()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert asyncio.all_tasks() == before


async def _taken(receive: Receive, idle_timeout_s: float = 5) -> list[bytes]:
    return [piece async for piece in read_body(receive, idle_timeout_s)]


async def test_a_body_is_yielded_without_empty_pieces() -> None:
    pieces = [_piece(b"a"), _piece(b""), _piece(b"b"), _piece(b"c", more=False)]
    assert await _taken(_receiving(*pieces)) == [b"a", b"b", b"c"]
    assert await _taken(_receiving(_piece(b"", more=False))) == []
    assert await _taken(_receiving({"type": "http.request"})) == []


async def test_a_truncated_body_never_looks_complete() -> None:
    taking = read_body(_receiving(_piece(b"a"), _GONE), 5)
    assert await anext(taking) == b"a"
    with pytest.raises(ClientGoneError, match="closed"):
        await anext(taking)


async def test_a_stalled_body_times_out() -> None:
    with pytest.raises(ClientGoneError, match="too slowly"):
        await _taken(_receiving(_piece(b"a")), 0.01)


async def test_a_long_body_may_take_long_if_it_keeps_arriving() -> None:
    """The timeout is for each piece, not for the whole body."""

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        left.pop()
        return _piece(b"a" * 1024, more=bool(left))

    left = [1] * 5
    assert len(await _taken(receive, 0.06)) == 5


async def test_a_body_below_the_minimum_rate_times_out() -> None:
    """A byte now and then would otherwise restart the timeout each time."""

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return _piece(b"a", more=True)

    async with asyncio.timeout(5):
        with pytest.raises(ClientGoneError):
            await _taken(receive, 0.1)


def test_abort_resets_the_requests_own_connection() -> None:
    called = []
    abort({"state": {"keyturn.abort": lambda: called.append(1)}})
    assert called == [1]
    with pytest.raises(RuntimeError):
        abort({"state": {}})
