"""4 KiB uploads over many projects, with a provider's key against the same key in the settings.

A side is a fresh worker process and two passes of one upload in each project: in the first it
knows no project (cold), in the second all of them (warm). The worker is stopped by SIGSTOP while
its queue fills, so that both passes begin with a full queue. Sides take turns, in one bucket: a
provider holds the PRK of the same master key, so all sides open the same keyrings.

Calls to the provider are those that the worker itself counts in `keyturn_kms_derivations_total`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tools.bench import uploads
from tools.bench.kms import provider_calls
from tools.bench.kms.providers import Provider, worker_env
from tools.bench.processes import BenchError, worker
from tools.harness import stored_objects
from tools.harness.wire import Wire
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.bench.kms.provider_calls import CallCounter
    from tools.bench.processes import Running
    from tools.bench.uploads import Rate
    from tools.harness.deployment import Deployment

AGAINST: Final = "the same with a local master key"
UNBOUNDED: Final = {"KMS_REQUESTS_PER_S": "100000"}
"""The setting, without its prefix, of a side whose calls have no rate limit but the provider's."""


@dataclass(frozen=True)
class Pass:
    """One upload in each project.

    Attributes:
        rate: Of the middle, as `uploads.steady` gives it.
        calls: To the provider, from before the first upload until no more are made.
        began_s: When the worker went on with its full queue, in seconds of `perf_counter`.
        ended_s: When its queue was empty.
    """

    rate: Rate
    calls: int
    began_s: float
    ended_s: float


@dataclass
class Side:
    """The passes of one side by round."""

    cold: list[Pass] = field(default_factory=list)
    warm: list[Pass] = field(default_factory=list)


@dataclass
class Sides:
    """What one provider is compared with, and itself with and without Keyturn's rate limit."""

    local: Side = field(default_factory=Side)
    bounded: Side = field(default_factory=Side)
    unbounded: Side = field(default_factory=Side)


@dataclass(frozen=True)
class Served:
    """A worker of a side, and how passes reach it."""

    deployment: Deployment
    running: Running
    connection: aio_pika.abc.AbstractConnection
    wire: Wire
    calls: CallCounter

    async def upload(self, name: str, projects: Sequence[str]) -> Pass:
        """One upload in each project; `name` is the first part of their keys.

        Raises:
            BenchError: an upload was not stored, not reported, or is a dead letter.
        """
        count, began = len(projects), datetime.now(UTC)
        before = await self.calls.settled()
        self.running.usage.suspend()
        try:
            await uploads.fill(self.wire, self.deployment, name, count, projects)
        finally:
            self.running.usage.resume()
        began_s = time.perf_counter()
        samples = await uploads.drain(self.wire, self.running)
        reported = await uploads.count_events(
            self.connection, self.deployment, name, count, since=began
        )
        calls = await self.calls.settled() - before
        keys = await asyncio.to_thread(stored_objects.list_keys, self.deployment)
        stored = sum(f"/{name}/" in key for key in keys)
        dead = await self.wire.depth(dead_letter_name(UPLOAD_QUEUE))
        if (stored, reported, dead) != (count, count, 0):
            raise BenchError(
                f"of {count} uploads {stored} stored, {reported} reported, {dead} dead letters"
            )
        return Pass(uploads.steady(samples, count), calls, began_s, samples[-1].at_s)


@asynccontextmanager
async def open_side(
    deployment: Deployment, scratch: Path, provider: Provider, name: str, **more: str
) -> AsyncIterator[Served]:
    """A fresh upload worker whose master key this provider holds; `more` without prefix."""
    port = free_port()
    concurrency = str(uploads.CONCURRENCY)
    env = worker_env(
        deployment, provider, UPLOAD_CONCURRENCY=concurrency, HEALTH_PORT=str(port), **more
    )
    async with (
        await aio_pika.connect(deployment.amqp_url) as connection,
        worker(env, scratch / f"{name}.log") as running,
        provider_calls.counter(port) as calls,
    ):
        wire = Wire(await connection.channel(on_return_raises=True), [])
        yield Served(deployment, running, connection, wire, calls)


async def measure(
    deployment: Deployment,
    scratch: Path,
    *,
    local: Provider,
    provider: Provider,
    projects: Sequence[str],
    rounds: int,
) -> Sides:
    """The rounds of all sides; the projects are enrolled.

    Raises:
        BenchError: as `Served.upload`.
    """
    found = Sides()
    plan: list[tuple[Side, str, Provider, Mapping[str, str]]] = [
        (found.local, "l", local, {}),
        (found.bounded, "b", provider, {}),
        (found.unbounded, "u", provider, UNBOUNDED),
    ]
    for turn in range(rounds):
        # Whichever side comes later finds a bucket that holds more: they take turns in that.
        for side, letter, of, settings in plan[turn % 3 :] + plan[: turn % 3]:
            name = f"{provider.name}-{letter}{turn}"
            async with open_side(deployment, scratch, of, name, **settings) as served:
                side.cold.append(await served.upload(f"{name}-cold", projects))
                side.warm.append(await served.upload(f"{name}-warm", projects))
    return found


async def measure_refresh(
    deployment: Deployment, scratch: Path, provider: Provider, projects: Sequence[str]
) -> int:
    """Calls of one more pass, in which every KEK is due to be derived again but may be used.

    Raises:
        BenchError: as `Served.upload`, or the passes took too long for `KMS_CACHE_S`.
    """
    cache_s = provider_calls.refresh_cache_s(len(projects))
    name = f"{provider.name}-refresh"
    settings = {**UNBOUNDED, "KMS_CACHE_S": str(cache_s)}
    async with open_side(deployment, scratch, provider, name, **settings) as served:
        cold = await served.upload(f"{name}-cold", projects)
        due_s = cold.ended_s + provider_calls.REFRESH_AT * cache_s
        await asyncio.sleep(due_s - time.perf_counter())
        again = await served.upload(f"{name}-again", projects)
        if again.ended_s - cold.began_s >= cache_s:
            raise BenchError(f"KEKs were older than KMS_CACHE_S={cache_s}: this machine is slow")
    return again.calls


def rows(server: str, provider: str, projects: int, found: Sides) -> list[Row]:
    """Throughput and CPU time of each side against the local key."""
    made: list[Row] = []
    for what, ours in (("", found.bounded), (", no rate limit", found.unbounded)):
        for cache, passes, local in (
            ("cold", ours.cold, found.local.cold),
            ("warm", ours.warm, found.local.warm),
        ):
            if cache == "warm" and what:
                continue  # no calls to limit
            figure = f"4 KiB uploads, {projects:,} projects, {provider}, {cache} cache{what}"
            made += uploads.compared(
                figure, server, [p.rate for p in passes], [p.rate for p in local], AGAINST
            )
    return made
