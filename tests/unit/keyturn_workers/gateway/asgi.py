"""A client for ASGI applications, in place of a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import ASGIApp, Message


@dataclass
class Connection:
    """One request on a separate connection, and its response.

    A piece of the body that is None never comes. `gone` is set where the client leaves,
    `takes` cleared where it takes nothing.
    """

    body: list[bytes | None] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    ended: bool = False
    aborted: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.takes.set()

    def document(self) -> Any:
        return json.loads(self.content)

    def abort(self) -> None:
        assert not self.ended, "a complete response must not be reset"
        self.aborted = True

    async def receive(self) -> Message:
        if self.body:
            piece = self.body.pop(0)
            if piece is not None:
                return {"type": "http.request", "body": piece, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "a response starts once"
            self.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower()
                assert name.decode() not in self.headers or name == b"set-cookie"
                self.headers[name.decode()] = value.decode("latin-1")
            return
        assert self.status, "a response begins with its start"
        assert not self.ended, "nothing comes after the end"
        assert not self.aborted, "nothing comes after a reset"
        self.content += bytes(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.content:
            self.began.set()
        await self.takes.wait()


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes | None] = b"",
    on: Connection | None = None,
) -> Connection:
    """Send one request on the given connection or a new one, and await its end."""
    connection = on or Connection()
    connection.body = [body] if isinstance(body, bytes) else list(body)
    pairs = headers if isinstance(headers, list | tuple) else dict(headers).items()
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in pairs],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
        "state": {"keyturn.abort": connection.abort},
    }
    await app(scope, connection.receive, connection.send)
    if connection.ended and method != "HEAD" and "content-length" in connection.headers:
        assert len(connection.content) == int(connection.headers["content-length"])
    return connection
