"""Servers on loopback that send what a test scripts, and record what they receive.

For what no real server does on demand: `ScriptedServer` responds with errors inside a 200, with
redirects or with silence, and drops kept connections. `ByteServer` sends exactly its bytes:
interim responses, broken heads, early responses.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from keyturn.settings import S3Settings
from keyturn_workers.storage.credentials import Credentials
from keyturn_workers.storage.s3_connections import open_pool
from keyturn_workers.storage.s3_http import S3HttpClient
from tools.servers.process import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterable

PROXY_PAGE = b"<html><body>404 Not Found</body></html>"
ETAG = "0123456789abcdef0123456789abcdef"
SECRET = "s3cr3t/do+not+show" + "x" * 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Seen: yes\r\n\r\ndone"


@dataclass(frozen=True)
class Reply:
    """One response. Status 0 drops the connection; -1 never responds."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    """How many bytes of the body are missing when the connection is dropped."""


DROP = Reply(0)


SILENCE = Reply(-1)


@dataclass(frozen=True)
class Request:
    """One request as it was received."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class ScriptedServer:
    """Responds in the order of its script, and after its end with 200 and an ETag."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.requests: list[Request] = []
        self.port = free_port()
        self._connections = 0

    def settings(self) -> S3Settings:
        """The settings of a storage on this server."""
        return S3Settings.model_validate(
            {
                "s3_endpoint_url": f"http://127.0.0.1:{self.port}",
                "s3_bucket": "bucket",
                "s3_access_key_id": "AKID",
                "s3_secret_access_key": SECRET,
            }
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive until the script drops it."""
        self._connections += 1
        number = self._connections
        try:
            while await self._one(reader, writer, number):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        self.requests.append(Request(method, target, headers, body, number))
        reply = self.script.pop(0) if self.script else Reply()
        if reply.status == 0:
            return False
        if reply.status < 0:
            await reader.read(1)  # until the client hangs up
            return False
        writer.write(_encoded(reply, bodiless=method == "HEAD"))
        await writer.drain()
        return not reply.cut


def _encoded(reply: Reply, *, bodiless: bool) -> bytes:
    now = format_datetime(datetime.now(UTC), usegmt=True)
    headers = {
        "ETag": f'"{ETAG}"',
        "Date": now,
        "Last-Modified": now,
        "Content-Length": str(len(reply.body)),
        **reply.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sent = b"" if bodiless else reply.body[: len(reply.body) - reply.cut]
    return f"HTTP/1.1 {reply.status} Said\r\n{lines}\r\n".encode() + sent


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    """A running one."""
    script = ScriptedServer()
    server = await asyncio.start_server(script.serve, "127.0.0.1", script.port)
    try:
        yield script
    finally:
        server.close()


TIME = "2026-11-24T10:00:00.000Z"


ENCODED = "<EncodingType>url</EncodingType>"


def listed(
    *keys: str, folders: Iterable[str] = (), more: str = "", encoded: str = ENCODED
) -> Reply:
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>{TIME}</LastModified>"
        f"<ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"
        for key in keys
    )
    rows += "".join(
        f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders
    )
    truncated = "true" if more else "false"
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    body = (
        f"<ListBucketResult>{encoded}<IsTruncated>{truncated}</IsTruncated>{token}{rows}"
        "</ListBucketResult>"
    )
    return Reply(200, body.encode(), {"Content-Type": "application/xml"})


def query_values(server: ScriptedServer, name: str) -> list[str | None]:
    queries = [parse_qs(urlsplit(request.target).query) for request in server.requests]
    return [query.get(name, [None])[0] for query in queries]


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
            credentials=Credentials("AKID", "secret"),
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
