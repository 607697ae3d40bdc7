"""The client of the gateway's bench: it must not count a bad response."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tools.bench.load_client import LoadClientError, Target, do

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request so; gives its URL."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k?a=b"
        await asyncio.gather(*serving)  # the client closed all of them


def _job(url: str, **more: object) -> dict[str, object]:
    target = {"url": url, "headers": {"range": "bytes=0-1"}}
    return {"targets": [target], "count": 1, "warm": 0, "concurrency": 1, **more}


async def test_the_client_counts_what_was_answered() -> None:
    """Bytes, and the hash of a whole body; warming does not count."""
    async with _answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") as url:
        report = await do(_job(url, hash=True))
        assert (report["size_bytes"], report["sha256"]) == (5, hashlib.sha256(b"hello").hexdigest())
        assert (await do(_job(url, count=7, warm=3, concurrency=2)))["size_bytes"] == 35


async def test_a_refusal_is_no_measurement() -> None:
    async with _answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n") as url:
        with pytest.RaisesGroup(LoadClientError):
            await do(_job(url))


def test_a_target_is_sent_unchanged() -> None:
    target = Target("http://127.0.0.1:81/a%20b?c=d", {"authorization": "Bearer x"})
    assert target.address == ("127.0.0.1", 81)
    assert target.head == (
        b"GET /a%20b?c=d HTTP/1.1\r\nhost: 127.0.0.1:81\r\nauthorization: Bearer x\r\n\r\n"
    )
