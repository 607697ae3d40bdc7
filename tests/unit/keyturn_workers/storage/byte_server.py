"""A server on loopback that sends exactly the bytes of its script, and a client for it.

For what a well-formed response cannot show: interim responses, broken heads, early responses.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiobotocore.credentials import AioCredentials

from keyturn_workers.storage.s3_connections import open_pool
from keyturn_workers.storage.s3_http import S3HttpClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Seen: yes\r\n\r\ndone"


@dataclass
class ByteServer:
    """Reads requests, and sends the next bytes of its script after each; none hang up."""

    port: int = 0
    script: list[bytes] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    """What it sends before its script, each piece by itself."""
    heads: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    reads_bodies: bool = True
    hangs_up: bool = False
    """After what it sends next."""

    @property
    def connections(self) -> int:
        return len(self.writers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while await self._respond(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        _, _, length = head.partition(b"content-length: ")
        if length and self.reads_bodies:
            await reader.readexactly(int(length.split(b"\r\n")[0]))
        if self.pieces:
            while self.pieces:
                writer.write(self.pieces.pop(0))
                await asyncio.sleep(0)
            return True
        sent = self.script.pop(0) if self.script else OK
        writer.write(sent)
        await writer.drain()
        return bool(sent) and not self.hangs_up


@asynccontextmanager
async def open_client(
    base_url: str, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[S3HttpClient]:
    """A client with its own connections."""
    async with open_pool(base_url, 4, tls=tls) as pool:
        yield S3HttpClient(
            pool,
            base_url=base_url,
            bucket="bucket",
            region="us-east-1",
            credentials=AioCredentials("AKID", "secret"),
        )


@asynccontextmanager
async def connected(
    *script: bytes, reads_bodies: bool = True
) -> AsyncIterator[tuple[ByteServer, S3HttpClient]]:
    """A running server, and a client of it."""
    served = ByteServer(script=list(script), reads_bodies=reads_bodies)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with open_client(f"http://127.0.0.1:{served.port}/bucket/") as client:
        yield served, client
    server.close()
