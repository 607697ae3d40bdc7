"""The client: sends requests on open connections, and counts and discards the bodies.

`python -m tools.bench.load_client`, with a job as JSON on its standard input, prints one
JSON object. It shares two cores with what it measures, so it is as cheap as Python allows:
httptools on an asyncio protocol, no session, no buffers. A connection is open before the
clock of a request starts. A response that is not 200 or 206, or not of its announced length,
fails the run.

| job | what it does |
| --- | --- |
| `single` | one GET of the first target, with its SHA-256 where `hash` is on |
| `many` | `count` GETs over the targets, `concurrency` at once, after `warm` that do not count |
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
    from collections.abc import Iterator, Mapping, Sequence

_GOOD = (200, 206)


class LoadClientError(Exception):
    """A response was wrong."""


@dataclass(frozen=True)
class Target:
    """What is requested."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

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
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()


class Connection(asyncio.Protocol):
    """One connection, for one request after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: Any = None
        self._hashed: Any = None
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

    async def request(self, head: bytes, *, hashed: Any = None) -> None:
        """Send a request and read its complete response."""
        assert self._transport is not None
        self.size_bytes, self._hashed = 0, hashed
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


async def _opened(target: Target) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, *target.address)
    return connection


async def single(target: Target, *, hash_it: bool) -> dict[str, Any]:
    """One GET, to its end."""
    hashed = hashlib.sha256() if hash_it else None
    connection, head = await _opened(target), target.head
    began, cpu = time.perf_counter(), time.process_time()
    await connection.request(head, hashed=hashed)
    report = _figures(began, cpu, 1)
    connection.close()
    digest = hashed.hexdigest() if hashed is not None else ""
    return {**report, "size_bytes": connection.size_bytes, "sha256": digest}


async def many(
    targets: Sequence[Target], count: int, *, warm: int, concurrency: int
) -> dict[str, Any]:
    """`count` GETs, `concurrency` at a time, each of these on one connection."""
    heads = [target.head for target in targets]
    connections = [await _opened(targets[0]) for _ in range(concurrency)]
    size_bytes = 0

    async def work(connection: Connection, heads: Iterator[bytes]) -> None:
        nonlocal size_bytes
        for head in heads:
            await connection.request(head)
            size_bytes += connection.size_bytes

    async def span(number: int) -> None:
        one = islice(cycle(heads), number)
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(work(connection, one))

    await span(warm)
    size_bytes = 0
    began, cpu = time.perf_counter(), time.process_time()
    await span(count)
    report = _figures(began, cpu, count)
    for connection in connections:
        connection.close()
    return {**report, "size_bytes": size_bytes}


def _figures(began: float, cpu: float, done: int) -> dict[str, Any]:
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "done": done,
    }


async def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """One job."""
    targets = [Target(each["url"], each["headers"]) for each in job["targets"]]
    if job["what"] == "single":
        return await single(targets[0], hash_it=job["hash"])
    return await many(targets, job["count"], warm=job["warm"], concurrency=job["concurrency"])


def main() -> None:
    """Do what standard input says, and print what it took."""
    print(json.dumps(uvloop.run(do(json.loads(sys.stdin.read())))))


if __name__ == "__main__":
    main()
