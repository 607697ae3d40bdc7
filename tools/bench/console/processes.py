"""A console process of the bench, and a process that looks at its page."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tools.bench.console import viewer
from tools.bench.processes import BenchError, Running, serving, stand_aside
from tools.harness.console import Account, write_passwords
from tools.harness.console_client import console_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.harness.console import ConsoleDeployment
    from tools.harness.console_client import ConsoleClient

PERSON: Final = Account("bench", "operate")
_STARTED: Final = "console started"
_SETTLED_S: Final = 60
_WINDOW_S: Final = 1.0
_BUSY: Final = 0.1
_LAG_S: Final = 3.0
_LOOK_S: Final = 0.2
_NEWEST_EVENT: Final = re.compile(
    r'>Events, as they happen<(?:(?!</tr>).)*data-label="Newest"><div><time datetime="([^"]+)"',
    re.DOTALL,
)


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
    module = ["keyturn_workers", "console"]
    async with serving(env, log, module, ready=_STARTED, own_session=True) as running:
        line = next(line for line in log.read_text().splitlines() if _STARTED in line)
        started = json.loads(line)
        yield RunningConsole(running, f"http://{started['host']}:{started['port']}")


@dataclass(frozen=True)
class WatchedConsole:
    """A console whose page *Now* another process looks at; both have the lowest priority."""

    console: RunningConsole
    viewer: Running
    client: ConsoleClient

    def pages(self) -> int:
        """How often the page was read.

        Raises:
            BenchError: it is not looked at any more.
        """
        if self.viewer.process.returncode is not None:
            raise BenchError(f"the viewer ended:\n{self.viewer.log.read_text()}")
        return self.viewer.log.read_text().count(viewer.READ)

    async def lag_s(self) -> float:
        """How old the newest event is that the console has read, to about two seconds."""
        page = await self.client.get("/queues")
        found = _NEWEST_EVENT.search(page.text)
        if found is None:
            return math.inf
        return (datetime.now(UTC) - datetime.fromisoformat(found[1])).total_seconds()


@asynccontextmanager
async def watched_console(
    deployment: ConsoleDeployment, scratch: Path, name: str
) -> AsyncIterator[WatchedConsole]:
    """Run a console and a viewer until the block ends, once it reads events as they come.

    Events of the past are not read: that is work of a console's start.
    """
    person = {viewer.NAME: PERSON.name, viewer.PASSWORD: PERSON.password}
    async with console(deployment, scratch, name, CONSOLE_HISTORY_S="0") as shown:
        module = [viewer.__name__, shown.url]
        log = scratch / f"{name}-viewer.log"
        async with (
            serving(person, log, module, ready=viewer.READ, own_session=True) as looking,
            console_client(shown.url, PERSON) as client,
        ):
            watched = WatchedConsole(shown, looking, client)
            until = time.monotonic() + _SETTLED_S
            while await watched.lag_s() > _LAG_S:
                if time.monotonic() > until:
                    raise BenchError(f"the console reads no events within {_SETTLED_S} s")
                await asyncio.sleep(_LOOK_S)
            for running in (shown.running, looking):
                stand_aside(running)
                await asyncio.sleep(_LOOK_S)  # the kernel takes one weight in a tenth of a second
            yield watched
