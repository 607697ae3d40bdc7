"""A TCP proxy that a test can cut, so that a server behind it is out of reach for a while."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BUFFER_BYTES = 64 * 1024


@dataclass
class Proxy:
    """Forwards `url` to a server while it is up; connections are dropped when it is cut."""

    host: str
    port: int
    url: str = ""
    _server: asyncio.Server | None = None
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _at: int = 0

    async def up(self) -> None:
        """Listen, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._at)
        self._at = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._at}"

    async def cut(self) -> None:
        """Refuse new connections, and drop the open ones."""
        if self._server is None:
            return
        self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            onward_reader, onward_writer = await asyncio.open_connection(self.host, self.port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, onward_writer))
                    group.create_task(_pump(onward_reader, writer))
            finally:
                onward_writer.close()
        except asyncio.CancelledError:
            pass  # cut: the task ends here, and its connections with it
        finally:
            writer.close()
            self._under_way.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_BUFFER_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server at this address."""
    server = urlsplit(url)
    assert server.hostname is not None
    running = Proxy(server.hostname, server.port or 80)
    await running.up()
    try:
        yield running
    finally:
        await running.cut()
