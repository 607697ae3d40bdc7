"""The client: sends requests on open connections, and counts and discards the bodies.

`python -m tools.bench.load_client`, with a job as JSON on its standard input, prints one
JSON object. It shares two cores with what it measures, so it is as cheap as Python allows:
httptools on an asyncio protocol, no session, no buffers. A connection is open before the
clock of a request starts. A response that is not 200, 201 or 206, or not of its announced length,
fails the run.

A job does `count` GETs over its `targets`, `concurrency` of them at once, after `warm` that do not
count; a target with `body` is a PUT of so many bytes. With `hash`, it also reports the SHA-256 of
all bodies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httptools
import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_GOOD = (200, 201, 206)


class LoadClientError(Exception):
    """A response was wrong."""


@dataclass(frozen=True)
class Target:
    """What is requested."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: int = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where."""
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    @property
    def head(self) -> bytes:
        """The request as it is sent."""
        parts = urlsplit(self.url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        headers = {"host": parts.netloc, **self.headers}
        method = "PUT" if self.body else "GET"
        if self.body:
            headers["content-length"] = str(self.body)
        lines = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + bytes(self.body)


class Connection(asyncio.Protocol):
    """One connection, for one request after the other; each body is added to `hashed`."""

    def __init__(self, hashed: Any = None) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: Any = None
        self._hashed = hashed
        self.size_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ready for a request."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Before the answer's end that is a failure."""
        self._fail(f"the connection was closed: {exc}")

    def on_headers_complete(self) -> None:
        """Only a good answer is counted."""
        status = self._parser.get_status_code()
        if status not in _GOOD:
            self._fail(f"answered {status}")

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(LoadClientError(why))

    def on_body(self, body: bytes) -> None:
        """Count it."""
        self.size_bytes += len(body)
        if self._hashed is not None:
            self._hashed.update(body)

    def on_message_complete(self) -> None:
        """The response is complete: the parser saw the announced number of bytes."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def request(self, head: bytes) -> None:
        """Send a request and read its complete response."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(head)
        try:
            await self._done
        except LoadClientError:
            self.close()
            raise

    def close(self) -> None:
        """At once, whatever is still to come."""
        self._done = None
        if self._transport is not None:
            self._transport.abort()


async def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """One job: the seconds that it took, its bytes, and their SHA-256 if that was asked for."""
    targets = [Target(**each) for each in job["targets"]]
    heads = [target.head for target in targets]
    hashed = hashlib.sha256() if job.get("hash") else None
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Connection(hashed), *targets[0].address))[1]
        for _ in range(job["concurrency"])
    ]

    async def work(connection: Connection, heads: Iterator[bytes]) -> None:
        for head in heads:
            await connection.request(head)

    async def span(number: int) -> int:
        """Bytes of so many GETs, `concurrency` at a time, each of these on one connection."""
        some = islice(cycle(heads), number)
        before = sum(each.size_bytes for each in connections)
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(work(connection, some))
        return sum(each.size_bytes for each in connections) - before

    await span(job["warm"])
    began = time.perf_counter()
    size_bytes = await span(job["count"])
    wall_s = time.perf_counter() - began
    for connection in connections:
        connection.close()
    digest = "" if hashed is None else hashed.hexdigest()
    return {"wall_s": wall_s, "size_bytes": size_bytes, "sha256": digest}


def main() -> None:
    """Do what standard input says, and print what it took."""
    print(json.dumps(uvloop.run(do(json.loads(sys.stdin.read())))))


if __name__ == "__main__":
    main()
