"""Real workers before a storage that is further away, a few objects at once in each.

With few objects at once it is the way to the storage that limits, and not the cores that
workers, storage and broker share here. Each rate is reported with the load of the cores.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aio_pika
import psutil

from keyturn.topology import UPLOAD_QUEUE
from tools.bench.delay_proxy import delay_proxy
from tools.bench.processes import worker
from tools.bench.rotation import PageWorkers
from tools.bench.uploads import Sample, steady
from tools.bench.world import key_of, open_world, pages_of
from tools.harness.wire import Wire
from tools.load.drain import sample_until_drained
from tools.load.queue_filler import fill
from tools.load.uploads import Uploads
from tools.load.worker_pool import WorkerPool, worker_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.bench.delay_proxy import DelayProxy
    from tools.bench.processes import Running
    from tools.bench.rotation import Pass
    from tools.bench.world import World
    from tools.harness.deployment import Deployment

AT_ONCE = 4
PAGE_KEYS = 50
PAGES_A_WORKER = 8
SWEPT = "swept"
_BODY_BYTES = 4096
# While the queue is filled each worker is held up by its few uploads.
_HELD_MS = 2000
_DRAIN_S = 120


@dataclass(frozen=True)
class Ran:
    """What was measured: objects a second, CPU milliseconds an object, and cores busy of all."""

    per_s: float
    cpu_ms: float
    busy: float


class Busy:
    """From its making on, which part of all cores was busy."""

    def __init__(self) -> None:
        self._began, self._busy_s = time.perf_counter(), _busy_s()

    def share(self) -> float:
        """Of all cores, 0 to 1."""
        took_s = time.perf_counter() - self._began
        return (_busy_s() - self._busy_s) / took_s / (os.cpu_count() or 1)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


@dataclass
class UploadSide:
    """Upload workers; as many as were requested so far."""

    deployment: Deployment
    between: DelayProxy
    wire: Wire
    crew: WorkerPool
    runs: int = 0

    async def run(self, workers: int, delay_ms: int, count: int) -> Ran:
        """`count` uploads on a full queue, each request held back for `delay_ms`."""
        if len(self.crew.running) < workers:
            await self.crew.start(workers - len(self.crew.running))
        self.runs += 1
        await self.between.delay(_HELD_MS)
        await fill(self.deployment, Uploads(f"far-{self.runs}", count))
        waiting = await self.wire.depth(UPLOAD_QUEUE)
        await self.between.delay(delay_ms)
        busy = Busy()
        samples = await sample_until_drained(self.wire, self.crew, timeout_s=_DRAIN_S)
        share = busy.share()
        rate = steady([Sample(s.at_s, s.depth, sum(s.cpu_s)) for s in samples], waiting)
        return Ran(rate.per_s, rate.cpu_ms, share)


@asynccontextmanager
async def upload_side(deployment: Deployment, scratch: Path) -> AsyncIterator[UploadSide]:
    """No worker yet; the project was enrolled."""
    async with (
        delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
        await aio_pika.connect(deployment.amqp_url) as connection,
        worker_pool(
            deployment.worker_env(
                UPLOAD_CONCURRENCY=str(AT_ONCE), S3_ENDPOINT_URL=between.url, SHUTDOWN_GRACE_S="20"
            ),
            scratch,
        ) as running,
    ):
        wire = Wire(await connection.channel(), [])
        yield UploadSide(deployment, between, wire, running)


@dataclass
class PageSide:
    """Page workers; as many as were requested so far, at most `most` on one side."""

    world: World
    between: DelayProxy
    channel: aio_pika.abc.AbstractChannel
    scratch: Path
    _stack: AsyncExitStack
    workers: list[Running] = field(default_factory=list)

    async def run(self, workers: int, delay_ms: int) -> dict[str, Ran]:
        """A writing pass and a proving pass, each request held back for `delay_ms`."""
        while len(self.workers) < workers:
            await self._start()
        pool = PageWorkers(self.world, self.channel, tuple(self.workers))
        pages = pages_of([key_of(n) for n in range(objects(workers))], PAGE_KEYS)
        await self.between.delay(delay_ms)
        await self.world.turn(SWEPT)
        found: dict[str, Ran] = {}
        for name, take in (("writing", pool.write), ("proving", pool.prove)):
            busy = Busy()
            done: Pass = await take(SWEPT, pages)
            found[name] = Ran(done.per_s, done.cpu_ms, busy.share())
        return found

    async def _start(self) -> None:
        env = self.world.deployment.worker_env(
            SWEEP_CONCURRENCY=str(AT_ONCE), S3_ENDPOINT_URL=self.between.url
        )
        log = self.scratch / f"sweep-{len(self.workers)}.log"
        self.workers.append(await self._stack.enter_async_context(worker(env, log, "sweep")))


def objects(workers: int) -> int:
    """How many objects a pass by `workers` has."""
    return workers * PAGES_A_WORKER * PAGE_KEYS


@asynccontextmanager
async def page_side(deployment: Deployment, scratch: Path, *, most: int) -> AsyncIterator[PageSide]:
    """No worker yet; the objects are stored."""
    async with (
        open_world(deployment) as world,
        delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
        await aio_pika.connect(deployment.amqp_url) as connection,
        AsyncExitStack() as stack,
    ):
        await world.enroll(SWEPT)
        await world.load(SWEPT, objects(most), _BODY_BYTES)
        yield PageSide(world, between, await connection.channel(), scratch, stack)
