"""TCP servers on loopback, and a proxy whose connections a test can drop and slow down."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_LIMIT_BYTES = 2**16
_PIECE_BYTES = 64 * 1024


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
        while ending := list(tasks):
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            # From Python 3.12 on, `gather` of tasks that are done does not let the event loop run,
            # so their callbacks do not run either.
            tasks.difference_update(ending)


@dataclass
class Proxy:
    """Forwards to one port; each client may send `bytes_per_s` per connection."""

    target_port: int
    bytes_per_s: float | None = None
    port: int = 0
    url: str = ""
    """The way to the server through the proxy, if it began with `proxy_before`."""
    sent_bytes: int = 0
    is_down: bool = False
    """Whether new connections are dropped, as those of a server that is not running."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def cut(self) -> int:
        """Drop every connection as a network failure would; returns how many."""
        clients = list(self._writers)
        for writer in clients:
            writer.transport.abort()
        return len(clients)

    def stop(self) -> None:
        """Drop every connection, and each new one until `resume`."""
        self.is_down = True
        self.cut()

    def resume(self) -> None:
        """Accept connections again."""
        self.is_down = False

    async def has_sent(self, size_bytes: int, *, timeout_s: float = 30) -> None:
        """Wait until clients have sent this many bytes in total."""
        async with asyncio.timeout(timeout_s), self._moved:
            await self._moved.wait_for(lambda: self.sent_bytes >= size_bytes)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        if writer.is_closing():  # it was cut meanwhile
            behind.transport.abort()
        pair = {writer, behind}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, behind))
                both.create_task(self._forward(behind_reader, writer, back=True))
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False
    ) -> None:
        # An aborted transport raises OSError in asyncio and RuntimeError in uvloop.
        with suppress(OSError, RuntimeError):
            while piece := await reader.read(_PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
                if back:
                    continue
                async with self._moved:
                    self.sent_bytes += len(piece)
                    self._moved.notify_all()
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
            writer.write_eof()


@asynccontextmanager
async def proxy(target_port: int) -> AsyncIterator[Proxy]:
    """Run a proxy for the duration of the block."""
    running = Proxy(target_port)
    async with loopback_server(running._serve) as url:
        running.port = int(url.rpartition(":")[2])
        yield running


@asynccontextmanager
async def proxy_before(url: str) -> AsyncIterator[Proxy]:
    """Run a proxy before a server on loopback; its `url` is the server's, credentials included."""
    at = urlsplit(url)
    assert at.port is not None
    credentials, separator, _ = at.netloc.rpartition("@")
    async with proxy(at.port) as running:
        host = f"{credentials}{separator}127.0.0.1:{running.port}"
        running.url = at._replace(netloc=host).geturl()
        yield running
