"""Drains a long queue while workers or the broker are stopped and started (SPEC 6.2, 7.1).

| part | what happens while the queue is drained |
| --- | --- |
| `restart` | all workers get SIGTERM at once, and new ones start |
| `deploy` | each worker in turn gets a successor that serves, and SIGTERM |
| `broker` | the broker is stopped and started; the workers stay |
| `broker-kill` | the broker is killed and started; the workers stay |

A proxy in front of the storage counts successful puts by target, so that the bucket is not the
only evidence that no upload was stored twice. Events are published at least once: duplicates are
counted, and after only SIGTERM there must be none.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import aio_pika
from aio_pika.exceptions import AMQPException

from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tools.bench.delay_proxy import delay_proxy
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError
from tools.bench.uploads import CONCURRENCY, PROJECT, enroll
from tools.harness.wire import Wire
from tools.load.outcome import Outcome, read_outcome
from tools.load.queue_filler import fill
from tools.load.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tools.bench.delay_proxy import DelayProxy
    from tools.harness.deployment import Deployment
    from tools.load.uploads import Uploads
    from tools.load.worker_pool import WorkerPool
    from tools.servers import RabbitMQ

_LOOK_S = 0.1
_START_S = 60
_SLOWEST_PER_S = 40
_SAMPLE_OPENED = 30
_BACK_S = 60
_MIB = 2**20
_HELD_MS = 1000

GRACEFUL = ("restart", "deploy")
BROKEN = ("broker", "broker-kill")


@dataclass(frozen=True)
class DisruptionResult:
    """The result of a disrupted drain.

    `times` counts disruptions while the queue was not empty, `created` the successful puts,
    `created_again` those whose target had been created before, `unanswered` the puts whose client
    was gone before the response, `served_again` the redeliveries that a worker served, and
    `peak_mib` is the largest peak memory of a worker.
    """

    part: str
    times: int
    wall_s: float
    created: int
    created_again: int
    unanswered: int
    served_again: int
    peak_mib: float
    outcome: Outcome

    def check(self) -> None:
        """Check that no upload was stored or, after graceful stops, reported twice.

        Raises:
            BenchError: one was, or the outcome is incomplete.
        """
        self.outcome.check()
        # A broker stop cancels the handlers, which then never see their puts' responses.
        connections = self.created + (self.unanswered if self.part in BROKEN else 0)
        if connections < self.outcome.uploads or self.created > self.outcome.uploads:
            raise BenchError(f"{self.part}: the puts do not match the uploads: {asdict(self)}")
        if self.created_again:
            raise BenchError(f"{self.part}: an upload was stored twice: {asdict(self)}")
        if self.part in BROKEN:
            return
        if self.outcome.reported_again:
            raise BenchError(f"{self.part}: an upload was reported twice: {asdict(self)}")
        if self.unanswered:
            raise BenchError(f"{self.part}: a put was interrupted: {asdict(self)}")


async def measure(
    deployment: Deployment,
    scratch: Path,
    uploads: Uploads,
    part: str,
    *,
    workers: int,
    times: int,
    broker: RabbitMQ | None = None,
    delay_ms: int = 0,
    at_once: int = CONCURRENCY,
) -> DisruptionResult:
    """Fill the queue, drain it with `times` disruptions spread over it, and check the outcome.

    Args:
        deployment: A deployment whose bucket has none of these uploads.
        scratch: Folder for logs.
        uploads: What is published first.
        part: A part of the table above.
        workers: The number of workers.
        times: The maximum number of disruptions; for a deploy, rounds that replace each worker.
        broker: The deployment's broker, to be stopped.
        delay_ms: The proxy's delay of each storage request; if set, puts are delayed further while
            a successor starts.
        at_once: Concurrent uploads per worker.

    Raises:
        BenchError: an upload was lost, stored twice, or reported twice without a crash.
    """
    await enroll(deployment, scratch)
    await fill(deployment, uploads)
    under = f"/{deployment.bucket}/{PROJECT}/"
    async with delay_proxy(deployment.s3.endpoint_url, delay_ms=delay_ms, under=under) as between:
        env = deployment.worker_env(UPLOAD_CONCURRENCY=str(at_once), S3_ENDPOINT_URL=between.url)
        async with worker_pool(env, scratch) as running:
            await running.start(workers)
            disturb = _disturbance(part, running, workers, broker, between, delay_ms)
            began = time.perf_counter()
            under_load = await _drain(deployment, uploads.count, times, disturb)
            wall_s = time.perf_counter() - began
            await running.wait_until_all_served(uploads)
            await running.stop()
            again = sum(bool(line["again"]) for line in running.served())
            peak_mib = max(running.peaks_bytes) / _MIB
        seen = await between.seen()
    ended = await read_outcome(deployment, uploads, sample=_SAMPLE_OPENED)
    found = DisruptionResult(
        part,
        under_load,
        wall_s,
        seen.created,
        seen.created_again,
        seen.unheard,
        again,
        peak_mib,
        ended,
    )
    found.check()
    return found


def _disturbance(
    part: str,
    running: WorkerPool,
    workers: int,
    broker: RabbitMQ | None,
    between: DelayProxy,
    delay_ms: int,
) -> Callable[[], Awaitable[None]]:
    async def restart() -> None:
        await running.stop()
        await running.start(workers)

    async def deploy() -> None:
        for each in list(running.running):
            # Otherwise a slow machine would drain a short queue before the successor has started.
            await between.delay(delay_ms, under_ms=_HELD_MS if delay_ms else 0)
            await running.start()
            await between.delay(delay_ms)
            await running.stop(each)

    async def restart_broker() -> None:
        assert broker is not None
        await asyncio.to_thread(broker.restart)

    async def kill_broker() -> None:
        assert broker is not None
        await asyncio.to_thread(_kill_and_restart, broker)

    return {
        "restart": restart,
        "deploy": deploy,
        "broker": restart_broker,
        "broker-kill": kill_broker,
    }[part]


def _kill_and_restart(broker: RabbitMQ) -> None:
    for queue in (UPLOAD_QUEUE, dead_letter_name(UPLOAD_QUEUE)):
        broker.wait_until_registered(queue)
    broker.wait_until_streams_registered()
    broker.kill()
    broker.start()


async def _drain(
    deployment: Deployment, count: int, times: int, disturb: Callable[[], Awaitable[None]]
) -> int:
    """Wait until the queue is empty; disrupt while its first half is drained, or a little later.

    Returns how many disruptions ended before the queue was empty.

    Raises:
        BenchError: none did, or the queue was not drained in time.
    """
    under_load = 0
    for number in range(1, times + 1):
        await _wait_for_depth(deployment, count - number * count // (2 * times + 1), count)
        await disturb()
        if await _depth(deployment) == 0:
            break
        under_load = number
    if not under_load:
        raise BenchError("the queue was empty before the first disruption ended")
    await _wait_for_depth(deployment, 0, count)
    return under_load


async def _wait_for_depth(deployment: Deployment, target: int, count: int) -> None:
    until = time.perf_counter() + _START_S + count / _SLOWEST_PER_S
    async with _wire(deployment) as wire:
        while time.perf_counter() < until:
            if await wire.depth(UPLOAD_QUEUE) <= target:
                return
            await asyncio.sleep(_LOOK_S)
    raise BenchError(f"the queue did not shrink to {target} messages in time")


async def _depth(deployment: Deployment) -> int:
    async with _wire(deployment) as wire:
        return await wire.depth(UPLOAD_QUEUE)


@asynccontextmanager
async def _wire(deployment: Deployment) -> AsyncIterator[Wire]:
    """A connection, as soon as the broker and its queue are available."""
    until = time.perf_counter() + _BACK_S
    while True:
        try:
            connection = await aio_pika.connect(deployment.amqp_url)
            wire = Wire(await connection.channel(), [])
            await wire.depth(UPLOAD_QUEUE)
            break
        except (OSError, AMQPException):
            if time.perf_counter() > until:
                raise
            await asyncio.sleep(_LOOK_S)
    async with connection:
        yield wire


def rows(server: str, found: DisruptionResult) -> list[Row]:
    """The rows of the result, with the targets of SPEC 7: each object and event exactly once."""
    ended = found.outcome
    once = 0 if found.part in GRACEFUL else None
    made = [
        Row(f"{found.part}: {figure}", server, unit, Spread((value,)))
        for figure, unit, value in (
            ("uploads", "", ended.uploads),
            ("disruptions under load", "", found.times),
            ("time", "s", found.wall_s),
            ("successful puts", "", found.created),
            ("peak memory of a worker", "MiB", found.peak_mib),
        )
    ]
    return made + [
        Row(f"{found.part}: {figure}", server, "", Spread((value,)), at_most=at_most)
        for figure, value, at_most in (
            ("puts of an existing target", found.created_again, 0),
            ("uploads without an object", ended.uploads - ended.stored, 0),
            ("uploads without an event", ended.uploads - ended.reported, 0),
            ("events beyond an upload's first", ended.reported_again, once),
            ("puts without a waiting client", found.unanswered, once),
            ("served after an earlier delivery", found.served_again, None),
            ("dead letters", ended.dead, 0),
        )
    ]
