"""A long queue whose workers and broker are stopped and started in its middle (SPEC 6.2, 7.1).

| part | what happens while the queue is drained |
| --- | --- |
| `restart` | all workers get SIGTERM at once, and new ones start |
| `deploy` | each worker in turn gets a successor that serves, and SIGTERM |
| `broker` | the broker is stopped and started; the workers stay |
| `broker-kill` | the broker is killed and started; the workers stay |

A proxy before the storage counts the puts that made an object, by their target: that no
upload was stored twice is not only the bucket's word. Telling is at least once; how often
an event came twice is counted, and after SIGTERM alone none may.
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
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError
from tools.bench.rotation.delay_proxy import delaying
from tools.bench.uploads import CONCURRENCY, PROJECT, enrol
from tools.harness.wire import Wire
from tools.load.outcome import Outcome, outcome
from tools.load.queue_filler import fill
from tools.load.worker_pool import crew

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tools.bench.rotation.delay_proxy import Delaying
    from tools.harness.deployment import Deployment
    from tools.load.uploads import Uploads
    from tools.load.worker_pool import Crew
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
class Found:
    """What a disturbed drain ended in.

    `times` is how often something was stopped with more in the queue, `created` puts that
    made an object, `created_again` those of a target that was made already, `unheard` puts
    whose answer no worker waited for, `served_again` deliveries that a worker served to the
    end knowing that the message may have come before, `peak_mib` the kernel's largest peak of
    a worker's memory.
    """

    part: str
    times: int
    wall_s: float
    created: int
    created_again: int
    unheard: int
    served_again: int
    peak_mib: float
    outcome: Outcome

    def check(self) -> None:
        """See that no upload was stored twice, and where all ends were graceful none served twice.

        Raises:
            BenchError: one was not, or the outcome is not whole.
        """
        self.outcome.check()
        # A broker that goes takes the worker's handlers with it: nobody hears of their puts.
        heard = self.created + (self.unheard if self.part in BROKEN else 0)
        if heard < self.outcome.uploads or self.created > self.outcome.uploads:
            raise BenchError(f"{self.part}: the puts are not those of the uploads: {asdict(self)}")
        if self.created_again:
            raise BenchError(f"{self.part}: an upload was stored twice: {asdict(self)}")
        if self.part in BROKEN:
            return
        if self.outcome.told_again:
            raise BenchError(f"{self.part}: an upload was told twice: {asdict(self)}")
        if self.unheard:
            raise BenchError(f"{self.part}: a put was cut short: {asdict(self)}")


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
) -> Found:
    """Fill the queue, drain it with `times` disturbances spread over it, look at everything.

    Args:
        deployment: Whose bucket holds none of these uploads.
        scratch: For logs.
        uploads: What is published first.
        part: One of the table above.
        workers: How many serve at once.
        times: Disturbances at most; of a deploy, rounds in which each worker is replaced.
        broker: Whom to stop; the deployment's.
        delay_ms: By which the proxy holds each request to the storage back; where it does, puts
            are held back for longer while a successor starts.
        at_once: Uploads under way in a worker.

    Raises:
        BenchError: an upload was lost, stored twice, or told twice without need.
    """
    await enrol(deployment, scratch)
    await fill(deployment, uploads)
    under = f"/{deployment.bucket}/{PROJECT}/"
    async with delaying(deployment.s3.endpoint_url, delay_ms=delay_ms, under=under) as between:
        env = deployment.worker_env(UPLOAD_CONCURRENCY=str(at_once), S3_ENDPOINT_URL=between.url)
        async with crew(env, scratch) as running:
            await running.start(workers)
            disturb = _disturbance(part, running, workers, broker, between, delay_ms)
            began = time.perf_counter()
            under_load = await _drain(deployment, uploads.count, times, disturb)
            wall_s = time.perf_counter() - began
            await running.served_all(uploads)
            await running.stop()
            again = sum(bool(line["again"]) for line in running.served())
            peak_mib = max(running.peaks_bytes) / _MIB
        seen = await between.seen()
    ended = await outcome(deployment, uploads, sample=_SAMPLE_OPENED)
    found = Found(
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
    running: Crew,
    workers: int,
    broker: RabbitMQ | None,
    between: Delaying,
    delay_ms: int,
) -> Callable[[], Awaitable[None]]:
    async def restart() -> None:
        await running.stop()
        await running.start(workers)

    async def deploy() -> None:
        for each in list(running.running):
            # A short queue would be gone before a slow machine has started the successor.
            await between.delay(delay_ms, under_ms=_HELD_MS if delay_ms else 0)
            await running.start()
            await between.delay(delay_ms)
            await running.stop(each)

    async def restart_broker() -> None:
        assert broker is not None
        await asyncio.to_thread(broker.restart)

    async def kill_broker() -> None:
        assert broker is not None
        await asyncio.to_thread(_kill, broker)

    return {
        "restart": restart,
        "deploy": deploy,
        "broker": restart_broker,
        "broker-kill": kill_broker,
    }[part]


def _kill(broker: RabbitMQ) -> None:
    for queue in (UPLOAD_QUEUE, dead_letter_name(UPLOAD_QUEUE)):
        broker.wait_until_registered(queue)
    broker.wait_until_streams_registered()
    broker.kill()
    broker.start()


async def _drain(
    deployment: Deployment, count: int, times: int, disturb: Callable[[], Awaitable[None]]
) -> int:
    """Wait for the queue's end; disturb while its first half is drained, or a little later.

    Gives how many disturbances were over before the queue was: the last one may not count.

    Raises:
        BenchError: none was, or the queue is not drained in time.
    """
    under_load = 0
    for number in range(1, times + 1):
        await _down_to(deployment, count - number * count // (2 * times + 1), count)
        await disturb()
        if await _depth(deployment) == 0:
            break
        under_load = number
    if not under_load:
        raise BenchError("the queue was empty before the first disturbance was over")
    await _down_to(deployment, 0, count)
    return under_load


async def _down_to(deployment: Deployment, wanted: int, count: int) -> None:
    until = time.perf_counter() + _START_S + count / _SLOWEST_PER_S
    async with _wire(deployment) as wire:
        while time.perf_counter() < until:
            if await wire.depth(UPLOAD_QUEUE) <= wanted:
                return
            await asyncio.sleep(_LOOK_S)
    raise BenchError(f"the queue did not come down to {wanted}")


async def _depth(deployment: Deployment) -> int:
    async with _wire(deployment) as wire:
        return await wire.depth(UPLOAD_QUEUE)


@asynccontextmanager
async def _wire(deployment: Deployment) -> AsyncIterator[Wire]:
    """A connection, as soon as the broker and its queue are there (again)."""
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


def rows(server: str, found: Found) -> list[Row]:
    """What was seen, with the aims of SPEC 7: each object once; told once where none crashed."""
    ended = found.outcome
    once = 0 if found.part in GRACEFUL else None
    made = [
        Row(f"{found.part}: {figure}", server, unit, Spread((value,)))
        for figure, unit, value in (
            ("uploads", "", ended.uploads),
            ("disturbances under load", "", found.times),
            ("time", "s", found.wall_s),
            ("puts that made an object", "", found.created),
            ("peak memory of a worker", "MiB", found.peak_mib),
        )
    ]
    return made + [
        Row(f"{found.part}: {figure}", server, "", Spread((value,)), at_most=at_most)
        for figure, value, at_most in (
            ("puts of a target that stood", found.created_again, 0),
            ("uploads without an object", ended.uploads - ended.stand, 0),
            ("uploads not told", ended.uploads - ended.told, 0),
            ("events beyond an upload's first", ended.told_again, once),
            ("puts whose answer nobody heard", found.unheard, once),
            ("served after an earlier delivery", found.served_again, None),
            ("dead letters", ended.dead, 0),
        )
    ]
