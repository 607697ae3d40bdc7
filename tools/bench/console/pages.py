"""How long the console takes for each page of a large deployment (SPEC 16).

10,000 projects with real keyrings, which a control worker reads and reports; the ends of thousands
of sweeps; 100,000 dead letters. One client reads page after page, so a figure is the time from
request to the last byte on loopback. Meanwhile events arrive, so that what the console keeps for
the next reader is out of date all the time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import aio_pika

from tools.bench.console.processes import PERSON, console
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError, worker
from tools.harness import console_events, console_letters, console_projects
from tools.harness.console_client import console_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.harness.console import ConsoleDeployment
    from tools.harness.console_client import ConsoleClient

EVENTS_PER_S: Final = 100
_AIM_MS: Final = 150.0
_COMPLETE_S: Final = 180
_WARM: Final = 5
_LETTER_BYTES: Final = 2**33


def percentile(values: list[float], per_cent: float) -> float:
    """The value that so many per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * per_cent / 100))]


def pages(project: str) -> dict[str, str]:
    """The paths to measure by the names of their pages."""
    return {
        "now": "/",
        "projects": "/projects",
        "projects, last page": "/projects?page=100",
        "projects, searched": "/projects?text=harbor-000",
        "project": f"/projects/{project}",
        "sweeps": "/sweeps",
        "master keys": "/keys",
        "dead letters": "/dead",
        "queues and workers": "/queues",
        "audit": "/audit",
    }


async def measure(
    deployment: ConsoleDeployment,
    scratch: Path,
    *,
    projects: int,
    letters: int,
    requests: int,
) -> list[Row]:
    """Two rows for each page: half of the requests, and 99 of 100, took no longer."""
    names = console_projects.names(projects)
    await console_projects.put_keyrings(deployment, names)
    env = deployment.worker_env(DEAD_MAX_BYTES=str(_LETTER_BYTES))
    async with worker(env, scratch / "control.log", "control"):
        await _fill(deployment, names, letters)
        async with (
            console(deployment, scratch, "console") as running,
            console_client(running.url, PERSON) as client,
        ):
            await _complete(client, projects, letters)
            await running.settled()
            async with _events_arrive(deployment, names):
                return [
                    row
                    for name, path in pages(names[0]).items()
                    for row in await _rows(client, name, path, requests, f"{projects:,} projects")
                ]


@asynccontextmanager
async def _events_arrive(deployment: ConsoleDeployment, names: list[str]) -> AsyncIterator[None]:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        arriving = asyncio.create_task(
            console_events.keep_storing(channel, deployment, names, EVENTS_PER_S)
        )
        try:
            yield
            if arriving.done():
                arriving.result()
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)


async def _fill(deployment: ConsoleDeployment, names: list[str], letters: int) -> None:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        sweeps = console_events.ended_sweeps(names, len(names) // 2)
        await console_events.publish(channel, deployment, sweeps)
        await console_letters.publish(channel, console_letters.refused_uploads(deployment, letters))


async def _complete(client: ConsoleClient, projects: int, letters: int) -> None:
    """Wait until the pages show all projects and all dead letters."""
    until = time.monotonic() + _COMPLETE_S
    wanted = {"/projects": f"of {projects:,} projects", "/dead": f"{letters:,}"}
    async with client.events():
        while wanted:
            shown = {path: (await client.get(path)).text for path in wanted}
            wanted = {path: text for path, text in wanted.items() if text not in shown[path]}
            if time.monotonic() > until:
                raise BenchError(f"not shown within {_COMPLETE_S} s: {wanted}")
            await asyncio.sleep(1)


async def _rows(client: ConsoleClient, name: str, path: str, requests: int, size: str) -> list[Row]:
    times = []
    for number in range(_WARM + requests):
        began = time.perf_counter()
        answer = await client.get(path)
        if number >= _WARM:
            times.append(1000 * (time.perf_counter() - began))
        if answer.status != 200:
            raise BenchError(f"{path} answered {answer.status}")
    return [
        Row(
            f"console, {name} at {size}, {label}",
            "-",
            "ms",
            Spread((percentile(times, per_cent),)),
            at_most=_AIM_MS,
        )
        for label, per_cent in (("p50", 50), ("p99", 99))
    ]
