"""A storage that is further away: a proxy that holds every request back, and counts.

`python -m tools.bench.delay_proxy HOST PORT --delay-ms N --under PATH` listens on
loopback, prints its port, and for each line on standard input prints what it saw since the line
before. A line of two numbers begins no new count: these are the delays from then on, in
milliseconds, of every request, and what is added to it under the path. It ends with its input. Only
latency is added, no limit of bandwidth: any number of requests is under way at once. It keeps what
it has not sent in memory, so it is for small bodies.

A client here sends a request only after the answer to the one before on that connection,
so what comes from it after an answer is a request's beginning. Nothing else is parsed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import uvloop

from tools.bench.processes import BenchError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ROOT = Path(__file__).parents[2]
_ANSWER_S = 30
_READS = (b"GET", b"HEAD")
_COPY = b"x-amz-copy-source:"
_DONE = b"HTTP/1.1 2"
_CONTINUE = b"HTTP/1.1 100"


@dataclass
class Seen:
    """What went through: requests, those under the path that was named, bytes of answers.

    `reads` are those of them that only read. `created` are puts among them, copies apart, that
    were answered as done; `created_again` those of them whose target had been put before,
    since the proxy began; `unheard` such puts whose client was gone before the answer.
    """

    requests: int = 0
    under: int = 0
    received_bytes: int = 0
    reads: int = 0
    created: int = 0
    created_again: int = 0
    unheard: int = 0


@dataclass
class Way:
    """What all connections share: to where, how late, what is counted, and every target put.

    `held_s` comes on top of the delay for requests under the path.
    """

    upstream: tuple[str, int]
    delay_s: float
    under: bytes
    held_s: float = 0.0
    seen: Seen = field(default_factory=Seen)
    made: set[bytes] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """One client's connection, and the one to the server that it is given."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._delay_s = 0.0
        self._target = b""
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._answered = True
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._client = cast("asyncio.Transport", transport)
        self._task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        """Connect to the server, and stay until both sides are lost."""
        loop = asyncio.get_running_loop()
        answers = _Answers(self)
        try:
            self._server, _ = await loop.create_connection(lambda: answers, *self._way.upstream)
        except OSError:
            self.close()
            await self._lost.wait()
            return
        for data in self._waiting:
            self._server.write(data)
        if self._lost.is_set():
            self.close()
        await self._lost.wait()
        await answers.lost.wait()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            self._answered = False
            self._way.seen.requests += 1
            method, _, rest = data.partition(b" ")
            under = rest.startswith(self._way.under)
            self._delay_s = self._way.delay_s + (self._way.held_s if under else 0)
            self._way.seen.under += under
            self._way.seen.reads += under and method in _READS
            puts = under and method == b"PUT" and _COPY not in data.lower()
            self._target = re.split(rb"[? ]", rest, maxsplit=1)[0] if puts else b""
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._forward, data)
        else:
            self._forward(data)

    def _forward(self, data: bytes) -> None:
        if self._server is None:
            self._waiting.append(data)
        elif not self._server.is_closing():
            self._server.write(data)

    def answer(self, data: bytes) -> None:
        """Bytes of the server, passed on at once."""
        # After that a body comes, and no request.
        if not data.startswith(_CONTINUE):
            self._count(data)
        self._way.seen.received_bytes += len(data)
        if self._client is not None and not self._client.is_closing():
            self._client.write(data)

    def _count(self, data: bytes) -> None:
        if self._target and data.startswith(_DONE):
            self._way.seen.created += 1
            self._way.seen.created_again += self._target in self._way.made
            self._way.made.add(self._target)
        self._target = b""
        self._answered = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._way.seen.unheard += bool(self._target)
        self._target = b""
        self._lost.set()
        self.close()

    def close(self) -> None:
        """End both sides."""
        for side in (self._client, self._server):
            if side is not None:
                side.close()

    async def ended(self) -> None:
        """Wait until nothing of it is left; of one that was made and never used, at once."""
        if self._task is not None:
            await self._task


class _Answers(asyncio.Protocol):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._connection.answer(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.lost.set()
        self._connection.close()


@asynccontextmanager
async def forwarding(
    host: str, port: int, *, delay_s: float, under: str
) -> AsyncIterator[tuple[int, Way]]:
    """Forward until the block ends; the port on loopback, and what goes through."""
    way = Way((host, port), delay_s, under.encode())
    connections: list[Connection] = []

    def connection() -> Connection:
        connections.append(Connection(way))
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], way
    finally:
        server.close()
        for each in connections:
            each.close()
        await asyncio.gather(*(each.ended() for each in connections))


async def _serve(given: argparse.Namespace) -> None:
    delay_s = given.delay_ms / 1000
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    between = forwarding(given.host, given.port, delay_s=delay_s, under=given.under)
    async with between as (port, way):
        print(json.dumps({"port": port}), flush=True)
        while line := await lines.readline():
            print(json.dumps(asdict(way.seen)), flush=True)
            if line.strip():
                way.delay_s, way.held_s = (float(each) / 1000 for each in line.split())
            else:
                vars(way.seen).update(vars(Seen()))


@dataclass(frozen=True)
class DelayProxy:
    """The proxy's process; `url` is its address."""

    url: str
    _process: asyncio.subprocess.Process

    async def seen(self) -> Seen:
        """What went through since the previous call."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return Seen(**await _line(self._process))

    async def delay(self, delay_ms: int, *, under_ms: int = 0) -> None:
        """Hold requests back for this long from now on, and those under the path for longer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay_ms} {under_ms}\n".encode())
        await _line(self._process)


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            if line := await process.stdout.readline():
                report: dict[str, Any] = json.loads(line)
                return report
    raise BenchError("the proxy does not answer")


@asynccontextmanager
async def delay_proxy(url: str, *, delay_ms: int, under: str) -> AsyncIterator[DelayProxy]:
    """Run the proxy before the server at `url`, until the block ends.

    Args:
        url: The server's.
        delay_ms: By which each request comes later.
        under: The beginning of paths that are counted apart.

    Raises:
        BenchError: it did not start, or does not answer.
    """
    behind = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(behind.hostname), str(behind.port or 80)),
        *("--delay-ms", str(delay_ms), "--under", under),
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        port = (await _line(process))["port"]
        yield DelayProxy(f"http://127.0.0.1:{port}", process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """Forward until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=int, default=0)
    parser.add_argument("--under", default="/")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
