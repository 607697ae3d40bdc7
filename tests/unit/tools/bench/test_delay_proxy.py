"""The proxy in front of a storage: `make load` and the bench believe its counts."""

from __future__ import annotations

import asyncio
import time

from tools.bench.delay_proxy import Seen, delay_proxy, forwarding

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
_REFUSAL = b"HTTP/1.1 412 No\r\ncontent-length: 4\r\n\r\ngone"
_DELAY_S = 0.05


async def _answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if b"waits" in line:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readuntil(b"end")
        writer.write(_REFUSAL if b"refused" in line else _ANSWER)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _ask(port: int, path: str, times: int, *, method: str = "GET", more: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        writer.write(f"{method} {path} HTTP/1.1\r\n{more}".encode())
        await writer.drain()
        writer.write(b"a body in a piece of its own, end")
        answer = await reader.readexactly(len(_ANSWER))
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_proxy_delays_each_request_and_counts_them() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with (
        server,
        forwarding("127.0.0.1", behind, delay_s=_DELAY_S, under="/b/p/") as (port, way),
    ):
        began = time.perf_counter()
        asking = (*(_ask(port, "/b/p/key", 3) for _ in range(4)), _ask(port, "/b", 1))
        assert set(await asyncio.gather(*asking)) == {_ANSWER}
        took_s = time.perf_counter() - began
    assert way.seen == Seen(requests=13, under=12, received_bytes=13 * len(_ANSWER), reads=12)
    # Three one after another on each connection, and all connections at once.
    assert took_s >= 3 * _DELAY_S


async def test_the_proxy_counts_puts_that_made_something_by_their_target() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with (
        server,
        forwarding("127.0.0.1", behind, delay_s=0.0, under="/b/p/") as (port, way),
    ):
        # One object, signed again for its second put, and another one.
        await _ask(port, "/b/p/key?signature=1", 1, method="PUT")
        await _ask(port, "/b/p/key?signature=2", 1, method="PUT")
        await _ask(port, "/b/p/other", 1, method="PUT")
        # None of these makes an object of the project.
        await _ask(port, "/b/p/key", 2)
        await _ask(port, "/b/q/key", 1, method="PUT")
        await _ask(port, "/b/p/key", 1, method="PUT", more="X-Amz-Copy-Source: /b/p/key\r\n")
    assert (way.seen.created, way.seen.created_again) == (3, 1)
    assert (way.seen.requests, way.seen.reads) == (7, 2)


async def test_a_body_that_waited_for_leave_is_no_request_of_its_own() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"PUT /b/p/waits HTTP/1.1\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"a body, end")
            assert await reader.readexactly(len(_ANSWER)) == _ANSWER
        writer.close()
        await writer.wait_closed()
    assert (way.seen.requests, way.seen.created, way.seen.created_again) == (2, 2, 1)


async def test_a_put_whose_client_is_gone_is_counted_separately() -> None:
    requested = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        requested.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT /b/p/key HTTP/1.1\r\n")
        async with asyncio.timeout(10):
            await requested.wait()
        writer.close()
        await writer.wait_closed()
    assert (way.seen.created, way.seen.unheard) == (0, 1)


async def test_a_put_that_was_refused_made_nothing() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        assert await _ask(port, "/b/p/refused", 1, method="PUT") == _REFUSAL
    assert (way.seen.under, way.seen.created) == (1, 0)


async def test_the_proxys_delays_can_be_changed_while_it_runs() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, delay_proxy(url, delay_ms=0, under="/b/p/") as between:
        port = int(between.url.rpartition(":")[2])
        await _ask(port, "/", 1)
        await between.delay(100, under_ms=200)
        took_s = []
        for path in ("/", "/b/p/key"):
            began = time.perf_counter()
            await _ask(port, path, 2)
            took_s.append(time.perf_counter() - began)
        assert took_s[0] >= 0.2
        assert took_s[1] >= 0.6
        # Other delays begin no new count.
        assert (await between.seen()).requests == 5
        assert (await between.seen()).requests == 0


async def test_the_proxy_ends_a_connection_whose_server_cannot_be_reached() -> None:
    closed = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    async with forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
