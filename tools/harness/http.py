"""HTTP by plain sockets: whatever bytes a test likes go out, and how an answer ends is seen.

A library would tidy paths up, refuse odd ones, and hide how a connection came to its end.
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
class Answer:
    """What came back: `end` is clean where all came that `Content-Length` told of.

    `status` is 0 where the connection ended before a head came.
    """

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = field(default=b"", repr=False)
    end: End = "clean"

    @property
    def headers(self) -> dict[str, str]:
        """By name, in lower case."""
        return dict(self.fields)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document; a refusal is always one."""
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
    """The bytes of a request; the target and the values go out as they are."""
    fields = list(headers.items()) if not isinstance(headers, list) else headers
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    """The next answer of a connection, and how it ends."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return Answer(0, end="short")
    except ConnectionError:
        return Answer(0, end="reset")
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
    return Answer(status, fields, bytes(body), end)


async def exchange(host: str, port: int, raw: bytes, *, head_only: bool = False) -> Answer:
    """Send these bytes on a connection of their own, and read one answer."""
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(raw)
            return await read_answer(reader, head_only=head_only)
        finally:
            writer.transport.abort()


@dataclass(frozen=True)
class Client:
    """Asks one gateway with one API key."""

    process: GatewayProcess
    api_key: str = field(repr=False)

    async def ask(
        self,
        project: str,
        key: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        token: str | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Ask for an object, with the client's own API key or the one given."""
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
    ) -> Answer:
        """Ask for any path."""
        said = {"Authorization": f"Bearer {token or self.api_key}", **(headers or {})}
        if body:
            said.setdefault("Content-Length", str(len(body)))
        raw = request(method, target, said, body)
        return await exchange(self.process.host, self.process.port, raw, head_only=method == "HEAD")
