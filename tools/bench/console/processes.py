"""A console process of the bench, and a person who looks at it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tools.bench.processes import BenchError, Running, serving
from tools.harness.console import Account, write_passwords
from tools.harness.console_client import ConsoleClient, console_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.harness.console import ConsoleDeployment

PERSON: Final = Account("bench", "operate")
_STARTED: Final = "console started"
_SETTLED_S: Final = 60
_WINDOW_S: Final = 1.0
_BUSY: Final = 0.1


@dataclass(frozen=True)
class RunningConsole:
    """A console process and its address."""

    running: Running
    url: str

    async def settled(self) -> None:
        """Wait until it has read what it reads at its start, and is idle.

        Raises:
            BenchError: it is busy for too long.
        """
        until = time.monotonic() + _SETTLED_S
        while time.monotonic() < until:
            before = self.running.cpu_s()
            await asyncio.sleep(_WINDOW_S)
            if self.running.cpu_s() - before < _BUSY * _WINDOW_S:
                return
        raise BenchError(f"the console was busy for {_SETTLED_S} s after its start")


@asynccontextmanager
async def console(
    deployment: ConsoleDeployment, scratch: Path, name: str, **more: str
) -> AsyncIterator[RunningConsole]:
    """Run `keyturn console` until the block ends, ready to serve `PERSON`."""
    passwords = scratch / "passwords"
    write_passwords(passwords, [PERSON])
    env = deployment.console_env(passwords, **more)
    log = scratch / f"{name}.log"
    async with serving(env, log, ["keyturn_workers", "console"], ready=_STARTED) as running:
        line = next(line for line in log.read_text().splitlines() if _STARTED in line)
        started = json.loads(line)
        yield RunningConsole(running, f"http://{started['host']}:{started['port']}")


@asynccontextmanager
async def looked_at(console: RunningConsole, path: str = "/") -> AsyncIterator[None]:
    """Somebody looks at a page: events come, and for each the page is read again."""
    async with console_client(console.url, PERSON) as client:
        watching = asyncio.create_task(_watch(client, path))
        try:
            yield
            if watching.done():
                raise BenchError(f"the stream of events ended: {watching.exception()!r}")
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


async def _watch(client: ConsoleClient, path: str) -> None:
    async with client.events() as stream:
        async for line in stream:
            if line.startswith(b"data:"):
                await client.get(path)
