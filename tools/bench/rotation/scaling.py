"""1, 2, 4 and 8 page workers on a storage that is 20 ms away (SPEC 8.5).

Each worker looks at few objects at once, so that latency limits it, and not the cores
that it shares with the storage here. How busy the machine was, and with what, says where
more workers stop to help.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aio_pika
import psutil

from tools.bench.figures import Row, Spread, higher_is_better, number
from tools.bench.processes import worker
from tools.bench.rotation.delay_proxy import delay_proxy
from tools.bench.rotation.passes import PageWorkers
from tools.bench.rotation.world import key_of, open_world, pages_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.bench.rotation.delay_proxy import DelayProxy
    from tools.bench.rotation.passes import Pass
    from tools.bench.rotation.world import World
    from tools.harness.deployment import Deployment

WORKERS = (1, 2, 4, 8)
QUICK_WORKERS = (1, 2)
DELAY_MS = 20
CONCURRENCY = 4
PAGE_KEYS = 100
PROJECT = "scaling"
_BODY_BYTES = 4096
_AIM = 0.8
# Of all cores: above that they are what limits.
_FULL = 0.85


@dataclass(frozen=True)
class Load:
    """What ran during a pass, in cores: all of the machine, and what of it was the bench's."""

    machine: float
    workers: float
    proxy: float
    servers: float


@dataclass
class Rounds:
    """Objects a second of the rounds by the number of workers, and what ran in the last one."""

    per_s: dict[int, list[float]] = field(default_factory=dict)
    load: dict[int, Load] = field(default_factory=dict)

    def add(self, workers: int, done: Pass, load: Load) -> None:
        """One round's pass."""
        self.per_s.setdefault(workers, []).append(done.per_s)
        self.load[workers] = load


async def measure(
    deployment: Deployment,
    scratch: Path,
    *,
    workers: Sequence[int],
    objects_a_worker: int,
    rounds: int,
) -> tuple[list[Row], list[str]]:
    """The rows for one server, and what limited each number of workers."""
    found = {"writing pass": Rounds(), "proving pass": Rounds()}
    url = deployment.s3.endpoint_url
    async with (
        open_world(deployment) as world,
        delay_proxy(url, delay_ms=DELAY_MS, under="/") as between,
        await aio_pika.connect(deployment.amqp_url) as connection,
        AsyncExitStack() as stack,
    ):
        await world.enroll(PROJECT)
        await world.load(PROJECT, max(workers) * objects_a_worker, _BODY_BYTES)
        channel = await connection.channel()
        running: list[Running] = []
        for number in workers:
            while len(running) < number:
                starting = _one(world, scratch, f"scaling-{len(running)}", between)
                running.append(await stack.enter_async_context(starting))
            crew = PageWorkers(world, channel, tuple(running))
            keys = [key_of(n) for n in range(number * objects_a_worker)]
            for _ in range(rounds):
                await world.turn(PROJECT)
                for name, take in (("writing pass", crew.write), ("proving pass", crew.prove)):
                    look = Look(between)
                    done = await take(PROJECT, pages_of(keys, PAGE_KEYS))
                    found[name].add(number, done, look.load(done))
    made: list[Row] = []
    lines: list[str] = []
    for name, of_pass in found.items():
        made += rows(deployment.s3.kind, name, of_pass)
        lines += notes(name, of_pass)
    return made, lines


def _one(
    world: World, scratch: Path, name: str, between: DelayProxy
) -> AbstractAsyncContextManager[Running]:
    env = world.deployment.worker_env(
        SWEEP_CONCURRENCY=str(CONCURRENCY), S3_ENDPOINT_URL=between.url
    )
    return worker(env, scratch / f"{name}.log", "sweep")


class Look:
    """From its making on, what the machine, the bench's processes and the proxy use."""

    def __init__(self, between: DelayProxy) -> None:
        self._between = between
        self._proxy_s = between.cpu_s()
        self._ours_s = _started_by_us_s()
        self._busy_s = _busy_s()

    def load(self, done: Pass) -> Load:
        """Cores in use, on average, by the end of this pass."""
        busy_s, ours_s = _busy_s() - self._busy_s, _started_by_us_s() - self._ours_s
        proxy_s = self._between.cpu_s() - self._proxy_s
        return Load(
            machine=busy_s / done.wall_s,
            workers=done.cpu_s / done.wall_s,
            proxy=proxy_s / done.wall_s,
            servers=max(0.0, ours_s - done.cpu_s - proxy_s) / done.wall_s,
        )


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _started_by_us_s() -> float:
    """CPU time of every process that the bench started: servers, workers, proxy."""
    total_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def rows(server: str, name: str, found: Rounds) -> list[Row]:
    """Objects a second against N times what one worker did.

    The aim is only for those numbers of workers that left a core free: the cores limit the others.
    """
    one = found.per_s[min(found.per_s)]
    made = []
    for workers, ours in found.per_s.items():
        linear = [rate * workers / min(found.per_s) for rate in one]
        free = found.load[workers].machine < _FULL * (os.cpu_count() or 1)
        made.append(
            Row(
                f"rotation, {name}, +{DELAY_MS} ms a request, {workers} page workers",
                server,
                "objects/s",
                Spread(tuple(ours)),
                Spread(tuple(linear)),
                f"{workers} times one",
                higher_is_better(ours, linear),
                at_least=_AIM if free else None,
            )
        )
    return made


def notes(name: str, found: Rounds) -> list[str]:
    """What was busy, by the number of workers."""
    return [
        f"{name}, {workers} page workers: {number(load.machine)} of {os.cpu_count()} cores busy, "
        f"of these {number(load.workers)} with the workers, {number(load.servers)} with storage "
        f"and broker, {number(load.proxy)} with the proxy"
        for workers, load in found.load.items()
    ]
