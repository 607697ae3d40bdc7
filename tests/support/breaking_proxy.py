"""A TCP proxy whose connections each end after some bytes of response."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BUFFER_BYTES = 64 * 1024
_PAUSE_S = 0.1


@asynccontextmanager
async def breaking_proxy(url: str, after_bytes: int) -> AsyncIterator[str]:
    """Yield the address of a proxy that resets each connection after so many bytes to its client.

    Args:
        url: The server behind it.
        after_bytes: What one connection delivers in all, heads of responses included.
    """
    server = urlsplit(url)
    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        behind, onward = await asyncio.open_connection(server.hostname, server.port)
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_forward(reader, onward))
                await _forward(behind, writer, after_bytes)
                sending.cancel()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            onward.transport.abort()
            writer.transport.abort()
            under_way.discard(task)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most_bytes: int | None = None
) -> None:
    left_bytes = most_bytes
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_BUFFER_BYTES):
            writer.write(data if left_bytes is None else data[:left_bytes])
            await writer.drain()
            if left_bytes is not None:
                left_bytes -= len(data)
                if left_bytes <= 0:
                    # What was written must arrive, and be read: a browser forgets what it has
                    # received of a body once that breaks.
                    await asyncio.sleep(_PAUSE_S)
                    writer.close()
                    await writer.wait_closed()
                    return
