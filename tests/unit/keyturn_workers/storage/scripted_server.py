"""An HTTP server on loopback that responds by script and records its requests.

For what no real server does on demand: dropping a kept connection after reading a request,
errors inside a 200, redirects, silence.
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
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


PROXY_PAGE = b"<html><body>404 Not Found</body></html>"
ETAG = "0123456789abcdef0123456789abcdef"
SECRET = "s3cr3t/do+not+show" + "x" * 20


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
