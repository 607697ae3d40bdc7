"""Drains a long queue undisturbed: rate, memory and CPU time by tenths of the drain.

All uploads are confirmed before the first worker starts. The clock runs from the moment when all
workers serve until the queue is empty.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import aio_pika

from keyturn.topology import UPLOAD_QUEUE
from tools.bench.figures import Row, Spread, number
from tools.bench.processes import BenchError
from tools.bench.uploads import CONCURRENCY, enroll
from tools.harness.wire import Wire
from tools.load.drain_summary import DrainSummary, Sample, summarize
from tools.load.outcome import Outcome, read_outcome
from tools.load.queue_filler import fill
from tools.load.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.harness.deployment import Deployment
    from tools.load.uploads import Uploads
    from tools.load.worker_pool import WorkerPool

_SAMPLE_S = 0.2
_START_S = 60
_SLOWEST_PER_S = 50
_MIB = 2**20
_SAMPLE_OPENED = 50
_STEADY_AIM = 0.8
_FLAT_AIM = 1.1


@dataclass(frozen=True)
class DrainResult:
    """The result of one drain; memory in MiB, `filled` from `queue_filler.fill`."""

    workers: int
    drained: DrainSummary
    peak_mib: float
    filled: Mapping[str, float]
    outcome: Outcome


async def measure(
    deployment: Deployment, scratch: Path, uploads: Uploads, *, workers: int
) -> DrainResult:
    """Fill and drain the queue, and check the outcome.

    Raises:
        BenchError: an upload was not stored, not reported, reported twice, or is a dead letter.
    """
    await enroll(deployment, scratch)
    filled = await fill(deployment, uploads)
    env = deployment.worker_env(UPLOAD_CONCURRENCY=str(CONCURRENCY))
    async with (
        await aio_pika.connect(deployment.amqp_url) as connection,
        worker_pool(env, scratch) as running,
    ):
        wire = Wire(await connection.channel(), [])
        if (depth := await wire.depth(UPLOAD_QUEUE)) != uploads.count:
            raise BenchError(f"{depth} of {uploads.count} uploads are queued")
        await running.start(workers)
        samples = await sample_until_drained(
            wire, running, timeout_s=_START_S + uploads.count / _SLOWEST_PER_S
        )
        await running.wait_until_all_served(uploads)
        await running.stop()
        found = await read_outcome(deployment, uploads, sample=_SAMPLE_OPENED)
        found.check()
        if found.reported_again:
            raise BenchError(
                f"{found.reported_again} events were published twice without a failure"
            )
        return DrainResult(
            workers, summarize(samples), max(running.peaks_bytes) / _MIB, filled, found
        )


async def sample_until_drained(
    wire: Wire, running: WorkerPool, *, timeout_s: float
) -> list[Sample]:
    """Sample until the queue is empty.

    Raises:
        BenchError: it took too long.
    """
    samples: list[Sample] = []
    until = time.perf_counter() + timeout_s
    while time.perf_counter() < until:
        depth = await wire.depth(UPLOAD_QUEUE)
        samples.append(
            Sample(
                time.perf_counter(),
                depth,
                tuple(each.cpu_s() for each in running.running),
                tuple(each.rss_bytes() for each in running.running),
            )
        )
        if depth == 0:
            return samples
        await asyncio.sleep(_SAMPLE_S)
    raise BenchError(f"the queue was not drained in {timeout_s:.0f} s")


def rows(server: str, found: Mapping[int, DrainResult]) -> list[Row]:
    """The rows by number of workers: rate, steadiness, memory, CPU time, and scaling."""
    made: list[Row] = []
    for workers, one in found.items():
        name = f"{one.outcome.uploads:,} uploads, {workers} worker{'s' if workers > 1 else ''}"
        drain = one.drained

        for figure, unit, value, at_least, at_most in (
            ("rate", "objects/s", drain.per_s, None, None),
            ("last tenth against first", "times", drain.steady, _STEADY_AIM, None),
            ("memory in the second half", "times", drain.growth, None, _FLAT_AIM),
            ("peak memory of a worker", "MiB", one.peak_mib, None, None),
            ("CPU of all workers", "ms/object", drain.cpu_ms, None, None),
        ):
            row = Row(f"{name}: {figure}", server, unit, Spread((value,)))
            made.append(replace(row, at_least=at_least, at_most=at_most))
        if 1 in found and workers > 1:
            times = drain.per_s / found[1].drained.per_s
            figure = f"{name}: rate against one worker"
            made.append(Row(figure, server, "times", Spread((times,))))
    return made


def notes(found: Mapping[int, DrainResult]) -> list[str]:
    """The rates by tenth, memory, and the cost of filling the queue."""
    lines: list[str] = []
    for workers, one in found.items():
        drain, filled = one.drained, one.filled
        per_s = ", ".join(number(tenth.per_s) for tenth in drain.tenths)
        cpu_ms = 1000 * filled["cpu_s"] / filled["done"]
        lines += [
            f"{workers} workers: published in {filled['wall_s']:.0f} s, {cpu_ms:.2f} CPU ms each",
            f"{workers} workers: objects/s in each tenth: {per_s}",
        ]
        for n, start in enumerate(drain.start_bytes):
            held = ", ".join(number(tenth.rss_bytes[n] / _MIB) for tenth in drain.tenths)
            lines.append(
                f"{workers} workers, worker {n + 1}: MiB at the start {number(start / _MIB)}, "
                f"after each tenth {held}"
            )
    return lines
