"""TCP proxies before a server that cut connections: when a test says, in responses, in requests."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tools.harness.loopback import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PIECE_BYTES = 64 * 1024
_HEAD_END = b"\r\n\r\n"
# How long a server may take to notice that no more follows.
_NOTICE_S = 10
# How long what was written may take to be read.
_PAUSE_S = 0.1
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


async def _canceled(*tasks: asyncio.Task[None]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
                await self._connect((reader, writer), (behind_reader, behind))
            finally:
                behind.transport.abort()
        finally:
            writer.transport.abort()

    async def _connect(self, front: _Streams, behind: _Streams) -> None:
        self._open.add(front[1])
        self.served += 1
        there = asyncio.create_task(_forward(front[0], behind[1]))
        back = asyncio.create_task(self._back(behind[0], front[1]))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(front[1])
            await _canceled(there, back)

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
    """A proxy before the server at this address: it counts, and cuts off what the test says."""
    at = urlsplit(url)
    assert at.hostname is not None
    running = Counting(at.hostname, at.port or 80)
    async with loopback_server(running._serve) as running.url:
        yield running


@asynccontextmanager
async def cutting_responses(url: str, after_bytes: int) -> AsyncIterator[str]:
    """Yield the address of a proxy that resets each connection after so many bytes to its client.

    Args:
        url: The server behind it.
        after_bytes: What one connection delivers in all, heads of responses included.
    """
    server = urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_connection(server.hostname, server.port)
        sending = asyncio.create_task(_forward(reader, onward))
        try:
            await _forward_beginning(behind, writer, after_bytes)
        finally:
            await _canceled(sending)
            onward.transport.abort()
            writer.transport.abort()

    async with loopback_server(serve) as proxy_url:
        yield proxy_url


async def _forward_beginning(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left_bytes: int
) -> None:
    with contextlib.suppress(ConnectionError):
        while left_bytes > 0 and (data := await reader.read(_PIECE_BYTES)):
            writer.write(data[:left_bytes])
            await writer.drain()
            left_bytes -= len(data)
        if left_bytes <= 0:
            # What was written must arrive, and be read: a browser forgets what it has received of
            # a body once that breaks.
            await asyncio.sleep(_PAUSE_S)
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def cutting_requests(url: str, body_bytes: int) -> AsyncIterator[str]:
    """Yield the address of a proxy that ends each connection after so many bytes of a body.

    The server sees the client's end of the connection closed. The client's own connection is
    dropped once the server has dealt with that, so what it stored is there by then.
    """
    server = urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_connection(server.hostname, server.port)
        interim = asyncio.create_task(_pass_on_interim(behind, writer))
        try:
            head = await reader.readuntil(_HEAD_END)
            onward.write(head)
            left_bytes = body_bytes
            if b"\r\nexpect:" in head.lower() or left_bytes:
                # Waits for the body itself, so that the server has asked for it.
                piece = await reader.read(_PIECE_BYTES)
                while left_bytes and piece:
                    onward.write(piece[:left_bytes])
                    left_bytes -= len(piece[:left_bytes])
                    piece = await reader.read(_PIECE_BYTES) if left_bytes else b""
            await onward.drain()
            onward.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NOTICE_S):
                    await interim
        finally:
            await _canceled(interim)
            onward.transport.abort()
            writer.transport.abort()

    async with loopback_server(serve) as proxy_url:
        yield proxy_url


async def _pass_on_interim(behind: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what asks for the body; the response to the cut request is dropped."""
    with contextlib.suppress(ConnectionError):
        while piece := await behind.read(_PIECE_BYTES):
            if piece.startswith(b"HTTP/1.1 100"):
                writer.write(piece)
                await writer.drain()
