"""A TCP server on loopback for test proxies: one task per connection."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_LIMIT_BYTES = 2**16


@asynccontextmanager
async def loopback_server(
    serve: Serve, *, limit_bytes: int = _LIMIT_BYTES, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Listen on loopback and yield the URL. Open connections are canceled at the end."""
    tasks: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            if tls is not None:  # nothing waits for the end of TLS
                writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(served(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=limit_bytes, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        # A certificate is for a name.
        yield f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    finally:
        server.close()
        await asyncio.sleep(0)  # lets connections that were just accepted become tasks
        while tasks:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
