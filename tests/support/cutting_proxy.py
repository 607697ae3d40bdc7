"""A TCP proxy that cuts off requests: of each body the server gets only the beginning."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tools.harness.loopback_server import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PIECE_BYTES = 64 * 1024
_HEAD_END = b"\r\n\r\n"
# How long a server may take to notice that no more follows.
_NOTICE_S = 10


@asynccontextmanager
async def cutting_proxy(url: str, body_bytes: int) -> AsyncIterator[str]:
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
            interim.cancel()
            await asyncio.gather(interim, return_exceptions=True)
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
