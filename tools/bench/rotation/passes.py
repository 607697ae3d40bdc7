"""One pass over pages by page workers that run already (SPEC 8.5), and what it took.

The bench acts as the planner: it writes the project's record with all pages of a round as
sent, and sends them, and no step; so the workers do pages and nothing else. What each
page found is read from its sealed record afterwards. A pass that did not do all that it
should is no measurement.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aio_pika

from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.sweep import Counts, ProjectRecord
from keyturn_workers.sweep.hints import SweepPage, encode
from keyturn_workers.sweep.record import OpenPage, Round
from keyturn_workers.sweep.store import record_path
from tools.bench.processes import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractChannel

    from tools.bench.processes import Running
    from tools.bench.rotation.world import World

_LOOK_S = 0.02
_PASS_S = 600
_SHOWN = 4000


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
