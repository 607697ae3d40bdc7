"""A TCP proxy before a server: it counts what the server sends, holds it up, and cuts it off."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tools.harness.loopback_server import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PIECE_BYTES = 64 * 1024
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Counting:
    """Forwards to one server.

    `received_bytes` is what the server sent in all; `cut_after` cuts each connection that has
    brought so much, `cuts` times in all; `served` is how many connections there were.
    """

    host: str
    port: int
    url: str = ""
    received_bytes: int = 0
    cut_after: int | None = None
    cuts: int = 0
    was_cut: int = 0
    served: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    async def has_received(self, size_bytes: int, *, timeout_s: float = 30) -> None:
        """Wait until the server has sent this much in all."""
        async with asyncio.timeout(timeout_s), self._moved:
            await self._moved.wait_for(lambda: self.received_bytes >= size_bytes)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind = await asyncio.open_connection(self.host, self.port)
            try:
                await self._forward((reader, writer), (behind_reader, behind))
            finally:
                behind.transport.abort()
        finally:
            writer.transport.abort()

    async def _forward(self, front: _Streams, behind: _Streams) -> None:
        self._open.add(front[1])
        self.served += 1
        there = asyncio.create_task(self._there(front[0], behind[1]))
        back = asyncio.create_task(self._back(behind[0], front[1]))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(front[1])
            for each in (there, back):
                each.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                writer.write(piece)
                await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        brought = 0
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                # Count first: once the last piece is written, the test continues.
                brought += len(piece)
                async with self._moved:
                    self.received_bytes += len(piece)
                    self._moved.notify_all()
                writer.write(piece)
                await writer.drain()
                if self.cut_after is not None and brought > self.cut_after and self.cuts:
                    self.cuts -= 1
                    self.was_cut += 1
                    return


@asynccontextmanager
async def counting(url: str) -> AsyncIterator[Counting]:
    """A proxy before the server at this address."""
    at = urlsplit(url)
    assert at.hostname is not None
    running = Counting(at.hostname, at.port or 80)
    async with loopback_server(running._serve) as running.url:
        yield running
