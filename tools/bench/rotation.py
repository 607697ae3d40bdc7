"""One page worker against a bare loop of the same requests on the same server (SPEC 8.2, 8.5).

A real `keyturn worker sweep` does a writing pass over pages of 4 KiB objects, and a
proving pass; a process of plain aioboto3 does a HEAD and a self-copy of as many objects
of the same size, and a HEAD. They alternate. Requests and bytes are counted in a pass of
its own, by a proxy in between.

The bench acts as the reconciler: it writes the project's record with all pages of a round as
sent, and sends them, and no step; so the workers do pages and nothing else. What each
page found is read from its sealed record afterwards. A pass that did not do all that it
should is no measurement.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.counts import Counts
from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.core.sweep_record import OpenPage, Round
from keyturn_workers.keys.sweep_records import record_path
from keyturn_workers.pipeline.sweep.messages import SweepPage, encode
from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.processes import BenchError, Traffic, bare, worker
from tools.chaos.fault_proxy import run_fault_proxy
from tools.harness.world import key_of, open_world, pages_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractChannel

    from keyturn_workers.core.sweep_record import ProjectRecord
    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.world import World

CONCURRENCY: Final = 64
PAGE_KEYS: Final = 500
PROJECT: Final = "pages"
_BODY_BYTES: Final = 4096
_RATE_AIM: Final = 1.0
_WRITING_CPU_AIM: Final = 4.0
_PROVING_CPU_AIM: Final = 3.5
_KIB: Final = 1024
_MOST_KIB: Final = 2
_LOOK_S: Final = 0.02
_PASS_S: Final = 600
_SHOWN: Final = 4000


@dataclass(frozen=True)
class Pass:
    """The cost of a pass: seconds from the first page sent to the last one done, CPU seconds."""

    objects: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Objects a second."""
        return self.objects / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of all workers an object."""
        return 1000 * self.cpu_s / self.objects

    @property
    def rate(self) -> Rate:
        """Both."""
        return Rate(self.per_s, self.cpu_ms)


@dataclass(frozen=True)
class PageWorkers:
    """The page workers of a measurement, and how pages reach them."""

    world: World
    channel: AbstractChannel
    workers: tuple[Running, ...]

    async def write(self, project: str, pages: Sequence[tuple[str, str]]) -> Pass:
        """A pass that finds every object to be brought to the desired state.

        Raises:
            BenchError: it did not rewrap each of them, or took too long.
        """
        wall_s, cpu_s, counts = await self._take(project, pages)
        return _checked(wall_s, cpu_s, counts, counts.rewrapped)

    async def prove(self, project: str, pages: Sequence[tuple[str, str]]) -> Pass:
        """A pass that finds every object as desired.

        Raises:
            BenchError: it wrote something or missed something, or took too long.
        """
        wall_s, cpu_s, counts = await self._take(project, pages)
        return _checked(wall_s, cpu_s, counts, counts.current - counts.rewrapped)

    async def _take(
        self, project: str, pages: Sequence[tuple[str, str]]
    ) -> tuple[float, float, Counts]:
        record, of = await self._planned(project, pages)
        bodies = [
            encode(SweepPage(project=project, round=of.id, page=n, attempt=0))
            for n in range(len(pages))
        ]
        cpu_s = sum(worker.cpu_s() for worker in self.workers)
        began = time.perf_counter()
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await self.channel.default_exchange.publish(message, SWEEP_QUEUE)
        await self._done(of)
        wall_s = time.perf_counter() - began
        cpu_s = sum(worker.cpu_s() for worker in self.workers) - cpu_s
        results = await self.world.store.results(record)
        if len(results) != len(pages) or any(r.state != record.state for r in results.values()):
            raise BenchError(f"{len(results)} of {len(pages)} pages were reported")
        counts = sum((result.counts for result in results.values()), Counts())
        await self.world.store.delete_folder(project, of.id)
        await self.world.storage.delete(record_path(project))
        return wall_s, cpu_s, counts

    async def _planned(
        self, project: str, pages: Sequence[tuple[str, str]]
    ) -> tuple[ProjectRecord, Round]:
        """A project's record in the bucket, with a round all of whose pages are sent."""
        moment = datetime.now(UTC)
        open_pages = tuple(
            OpenPage(page=n, after=after, last=last, sent_at=moment, sends=1)
            for n, (after, last) in enumerate(pages)
        )
        record, of = await self.world.record_with(project, open_pages)
        await self.world.store.create(record, record.state.master_key)
        return record, of

    async def _done(self, of: Round) -> None:
        """Wait until the workers' logs show every page as done."""
        until = time.perf_counter() + _PASS_S
        while time.perf_counter() < until:
            logs = [worker.log.read_text() for worker in self.workers]
            if sum(pages_done(log, of.id) for log in logs) >= len(of.open_pages):
                return
            await asyncio.sleep(_LOOK_S)
        shown = "\n".join(log[-_SHOWN:] for log in logs)
        raise BenchError(f"the page workers were not done within {_PASS_S} s:\n{shown}")


def pages_done(log: str, round_id: str) -> int:
    """The number of a round's pages that a worker's log shows as done."""
    return sum('"page done"' in line and round_id in line for line in log.splitlines())


def _checked(wall_s: float, cpu_s: float, counts: Counts, done: int) -> Pass:
    if counts.failed or counts.objects != done:
        raise BenchError(f"a pass did not do what it should: {counts}")
    return Pass(done, wall_s, cpu_s)


@dataclass
class Rounds:
    """What alternating rounds gave, of the writing pass and of the proving pass."""

    written: list[Rate] = field(default_factory=list)
    copied: list[Rate] = field(default_factory=list)
    proven: list[Rate] = field(default_factory=list)
    headed: list[Rate] = field(default_factory=list)


@asynccontextmanager
async def run_page_worker(
    world: World, scratch: Path, name: str, *, samples: Path | None = None, url: str = ""
) -> AsyncIterator[PageWorkers]:
    """One page worker of the default concurrency, which finds the storage at `url` if given."""
    more = {"S3_ENDPOINT_URL": url} if url else {}
    env = world.deployment.worker_env(SWEEP_CONCURRENCY=str(CONCURRENCY), **more)
    async with (
        worker(env, scratch / f"{name}.log", "sweep", samples=samples) as running,
        await aio_pika.connect(world.deployment.amqp_url) as connection,
    ):
        yield PageWorkers(world, await connection.channel(), (running,))


async def _rounds(world: World, scratch: Path, count: int, warm: int, rounds: int) -> Rounds:
    # The other side's first objects do not count either: connections are made meanwhile.
    keys = [key_of(number) for number in range(warm + count)]
    first, pages = (
        pages_of(keys[:warm], warm),
        pages_of(keys[warm:], PAGE_KEYS, after=keys[warm - 1]),
    )

    async def theirs(what: str) -> Rate:
        bounds = {"count": count, "warm": warm, "concurrency": CONCURRENCY}
        return await bare(world.deployment.s3_env(), what, "bare", **bounds)

    await theirs("puts")
    found = Rounds()
    async with run_page_worker(world, scratch, "pages") as ours:
        for _ in range(rounds):
            await world.turn(PROJECT)
            await ours.write(PROJECT, first)
            found.written.append((await ours.write(PROJECT, pages)).rate)
            found.copied.append(await theirs("copies"))
            await ours.prove(PROJECT, first)
            found.proven.append((await ours.prove(PROJECT, pages)).rate)
            found.headed.append(await theirs("heads"))
    return found


async def _counted(world: World, scratch: Path, count: int) -> tuple[Traffic, Traffic]:
    """What a writing pass and a proving pass sent, in passes that are not timed."""
    pages = pages_of([key_of(number) for number in range(count)], PAGE_KEYS)
    async with (
        run_fault_proxy(world.deployment.s3.endpoint_url) as between,
        run_page_worker(world, scratch, "counted", url=between.url) as ours,
    ):
        await world.turn(PROJECT)
        Traffic.take(between)
        await ours.write(PROJECT, pages)
        written = Traffic.take(between)
        await ours.prove(PROJECT, pages)
        return written, Traffic.take(between)


async def sampled(world: World, scratch: Path, name: str, count: int) -> tuple[Path, Rate]:
    """A page worker's samples of the pass "writing" or "proving", and what that pass took."""
    pages = pages_of([key_of(number) for number in range(count)], PAGE_KEYS)
    samples = scratch / f"{name}.json"
    async with run_page_worker(world, scratch, name, samples=samples) as ours:
        if name == "writing":
            await world.turn(PROJECT)
            done = await ours.write(PROJECT, pages)
        else:
            done = await ours.prove(PROJECT, pages)
    return samples, done.rate


async def measure(deployment: Deployment, scratch: Path, *, count: int, rounds: int) -> list[Row]:
    """The rows for one server."""
    warm = max(1, count // 15)
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load(PROJECT, warm + count, _BODY_BYTES)
        found = await _rounds(world, scratch, count, warm, rounds)
        written, proven = await _counted(world, scratch, warm + count)
    server = deployment.s3.kind
    return [
        *rows(server, found),
        *wire_rows(server, "writing pass", written, warm + count, most_requests=2),
        *wire_rows(server, "proving pass", proven, warm + count, most_requests=1),
    ]


def rows(server: str, found: Rounds) -> list[Row]:
    """Throughput and CPU time of both passes."""
    writing = Comparison(
        "rotation, writing pass",
        server,
        "bare aioboto3 HEAD + self-copy",
        found.written,
        found.copied,
    )
    proving = Comparison(
        "rotation, proving pass", server, "bare aioboto3 HEAD", found.proven, found.headed
    )
    return [
        writing.throughput(_RATE_AIM),
        writing.cpu(_WRITING_CPU_AIM),
        proving.throughput(_RATE_AIM),
        proving.cpu(_PROVING_CPU_AIM),
    ]


def wire_rows(
    server: str, name: str, seen: Traffic, objects: int, *, most_requests: int
) -> list[Row]:
    """Requests to an object itself, and bytes received for it, listings and records included."""
    return [
        Row(
            f"rotation, {name}, requests to an object",
            server,
            "requests",
            Spread((seen.to_objects / objects,)),
            at_most=most_requests,
        ),
        Row(
            f"rotation, {name}, bytes received an object",
            server,
            "KiB",
            Spread((seen.received_bytes / objects / _KIB,)),
            at_most=_MOST_KIB,
        ),
    ]
