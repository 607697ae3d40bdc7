"""Keyring requests of a gateway whose projects are all active at once (SPEC 8.4, 9.1).

One object is read from each project in every period of the cache, so that every keyring must be
known anew each time. A proxy counts: what is not under a project's prefix is about keyrings.
Without listings there would be a request for each project in each period.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tools.bench.figures import Row, Spread
from tools.bench.gateway.sides import opened, run_job
from tools.bench.processes import BenchError
from tools.bench.rotation.delay_proxy import delay_proxy
from tools.bench.rotation.world import key_of, open_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.rotation.delay_proxy import DelayProxy
    from tools.bench.rotation.world import World
    from tools.harness.deployment import Deployment

PROJECTS: Final = (100, 1_000)
QUICK_PROJECTS: Final = (50,)
CACHE_S: Final = 2.0
_PREFIX: Final = "tenant-"
_SHOWN_BY_A_LISTING: Final = 1_000
_AIM_A_LISTING: Final = 1.0
_BODY_BYTES: Final = 4096
_AT_ONCE: Final = 32
_PERIODS: Final = 5


async def measure(
    deployment: Deployment, scratch: Path, *, numbers: Sequence[int], rounds: int
) -> list[Row]:
    """Keyring requests per cache period, for each number of active projects."""
    rows: list[Row] = []
    async with open_world(deployment) as world:
        projects = [f"{_PREFIX}{number:05}" for number in range(max(numbers))]
        for first in range(0, len(projects), _AT_ONCE):
            await asyncio.gather(*(_fill(world, name) for name in projects[first:][:_AT_ONCE]))
        under = f"/{deployment.bucket}/{_PREFIX}"
        async with delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under=under) as between:
            for number in numbers:
                of = projects[:number]
                found = [
                    await _a_round(world, scratch, f"keyrings-{number}-{turn}", of, between)
                    for turn in range(rounds)
                ]
                rows.append(row(deployment.s3.kind, number, found))
    return rows


async def _fill(world: World, project: str) -> None:
    await world.enroll(project)
    await world.load(project, 1, _BODY_BYTES)


async def _a_round(
    world: World, scratch: Path, name: str, projects: Sequence[str], between: DelayProxy
) -> float:
    """Keyring requests per cache period of a separate gateway, once it knows every keyring.

    Raises:
        BenchError: an object was not read from the storage.
    """
    async with opened(
        world,
        projects[0],
        scratch,
        name,
        S3_ENDPOINT_URL=between.url,
        KEYRING_CACHE_S=str(CACHE_S),
    ) as sides:
        targets = [replace(sides, project=each).ours(key_of(0)) for each in projects]
        job: dict[str, float] = {"count": len(targets), "concurrency": _AT_ONCE, "warm": 0}
        await run_job("many", targets, **job)
        await between.seen()
        began = time.perf_counter()
        for period in range(1, _PERIODS + 1):
            await run_job("many", targets, **job)
            await asyncio.sleep(max(0.0, began + period * CACHE_S - time.perf_counter()))
        passed_s = time.perf_counter() - began
        seen = await between.seen()
    if seen.under < _PERIODS * len(targets):
        raise BenchError(f"{seen.under} objects were read, not {_PERIODS * len(targets)}")
    return a_period(seen.requests - seen.under, passed_s)


def a_period(requests: int, passed_s: float) -> float:
    """Requests per cache period: a slow machine takes several for one pass over the projects."""
    return requests * CACHE_S / passed_s


def row(server: str, projects: int, found: Sequence[float]) -> Row:
    """One number of projects: the aim is the number of listings that show them all."""
    listings = -(-projects // _SHOWN_BY_A_LISTING)
    return Row(
        f"gateway, {projects:,} active projects, keyring requests per {CACHE_S:g} s of cache",
        server,
        "requests",
        Spread(tuple(found)),
        at_most=_AIM_A_LISTING * listings,
    )
