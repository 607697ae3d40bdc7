"""HTTP over plain sockets: sends arbitrary bytes and reports how a response ends.

An HTTP library would normalize paths, reject invalid ones, and hide how a connection was closed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.harness.process import GatewayProcess

_READ_BYTES = 64 * 1024
_TIMEOUT_S = 60

End = Literal["clean", "short", "reset"]


@dataclass(frozen=True)
class Response:
    """A response; `end` is clean if the whole body of its `Content-Length` arrived.

    `status` is 0 if the connection ended before the response head.
    """

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = field(default=b"", repr=False)
    end: End = "clean"

    @property
    def headers(self) -> dict[str, str]:
        """Headers by lower-case name."""
        return dict(self.fields)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document that every error response carries."""
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert isinstance(found, dict)
        assert found["status"] == self.status
        return found

    @property
    def code(self) -> str | None:
        """The code of SPEC 12."""
        return self.problem.get("code")


def object_target(project: str, key: str) -> str:
    """The path of an object."""
    return f"/v1/projects/{project}/objects/{quote(key, safe='/-_.~')}"


def request(
    method: str, target: str, headers: Mapping[str, str] | list[tuple[str, str]], body: bytes = b""
) -> bytes:
    """The bytes of a request; target and header values are sent unchanged."""
    fields = list(headers.items()) if not isinstance(headers, list) else headers
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def read_response(reader: asyncio.StreamReader, *, head_only: bool = False) -> Response:
    """The next response of a connection, and how it ends."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return Response(0, end="short")
    except ConnectionError:
        return Response(0, end="reset")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    parted = (line.partition(":") for line in lines)
    fields = [(name.lower(), value.strip()) for name, _, value in parted]
    status, length = int(first.split(" ")[1]), int(dict(fields).get("content-length", "0"))
    if head_only or status in (204, 304):
        length = 0
    body = bytearray()
    end: End = "clean"
    while len(body) < length:
        try:
            piece = await reader.read(min(_READ_BYTES, length - len(body)))
        except ConnectionError:
            end = "reset"
            break
        if not piece:
            end = "short"
            break
        body += piece
    return Response(status, fields, bytes(body), end)


async def exchange(host: str, port: int, raw: bytes, *, head_only: bool = False) -> Response:
    """Send these bytes on a new connection, and read one response."""
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(raw)
            return await read_response(reader, head_only=head_only)
        finally:
            writer.transport.abort()


@dataclass(frozen=True)
class Client:
    """Sends requests to one gateway with one API key."""

    process: GatewayProcess
    api_key: str = field(repr=False)

    async def request(
        self,
        project: str,
        key: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        token: str | None = None,
        body: bytes = b"",
    ) -> Response:
        """Request an object, with the client's API key or another `token`."""
        target = object_target(project, key)
        return await self.send(method, target, headers, token=token, body=body)

    async def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        body: bytes = b"",
    ) -> Response:
        """Send a request for any target."""
        all_headers = {"Authorization": f"Bearer {token or self.api_key}", **(headers or {})}
        if body:
            all_headers.setdefault("Content-Length", str(len(body)))
        raw = request(method, target, all_headers, body)
        return await exchange(self.process.host, self.process.port, raw, head_only=method == "HEAD")
