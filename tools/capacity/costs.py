"""What an object costs in a rotation and in a download, and all together: `measured.json`.

CPU time is read from outside the process, over a queue or a list of objects that it works
off with its defaults. The servers' own time comes from a run of a few objects at once.
Requests to the storage are counted by a proxy, in runs that are not timed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench import rotation
from tools.bench.delay_proxy import delay_proxy
from tools.bench.gateway import opened, run_job
from tools.bench.uploads import enroll
from tools.bench.world import key_of, open_world, pages_of
from tools.capacity import upload_costs
from tools.capacity.check import calibrated
from tools.capacity.measured import AtSize, Measured, Operation
from tools.capacity.simulation import AT_ONCE, page_side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.bench.delay_proxy import Seen
    from tools.bench.gateway import Sides
    from tools.harness.deployment import Deployment
    from tools.servers import RabbitMQ

_KIB, _MIB = 2**10, 2**20
# Bytes of a download, and how many of them.
DOWNLOADED: Mapping[int, int] = {4 * _KIB: 3000, _MIB: 600, 16 * _MIB: 60}
_SMALL = 4 * _KIB
_FEW = 600
_COUNTED = 1000
_SWEPT = 3000
_READ_AT_ONCE = 32
_PAGES, _READ = "costs-pages", "costs-read"


async def _passes(deployment: Deployment, scratch: Path) -> tuple[Operation, Operation, float]:
    """Writing, proving, and a page's requests besides those of its objects."""
    async with open_world(deployment) as world:
        await world.enroll(_PAGES)
        await world.load(_PAGES, _SWEPT, _SMALL)
        all_pages = pages_of([key_of(number) for number in range(_SWEPT)], rotation.PAGE_KEYS)
        async with rotation.run_page_worker(world, scratch, "costs") as ours:
            await world.turn(_PAGES)
            cpu_ms = (
                (await ours.write(_PAGES, all_pages)).cpu_ms,
                (await ours.prove(_PAGES, all_pages)).cpu_ms,
            )
        under = f"/{deployment.bucket}/{_PAGES}/"
        async with (
            delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under=under) as between,
            rotation.run_page_worker(world, scratch, "counted", url=between.url) as ours,
        ):
            await world.turn(_PAGES)
            await between.seen()
            await ours.write(_PAGES, all_pages)
            written = await between.seen()
            await ours.prove(_PAGES, all_pages)
            proven = await between.seen()
    async with page_side(deployment, scratch, most=1) as side:
        await side.run(1, 0)
        near = {
            name: calibrated(name, ran.per_s, ran.cpu_ms)
            for name, ran in (await side.run(1, 0)).items()
        }
    other = written.requests - written.under + proven.requests - proven.under
    return (
        _of_pass(cpu_ms[0], near["writing"].own_ms, written),
        _of_pass(cpu_ms[1], near["proving"].own_ms, proven),
        other / (2 * len(all_pages)),
    )


def _of_pass(cpu_ms: float, own_ms: float, seen: Seen) -> Operation:
    """An object's part of a pass."""
    writes = (seen.under - seen.reads) / _SWEPT
    return Operation((AtSize(_SMALL, cpu_ms),), own_ms, writes, seen.reads / _SWEPT)


async def _read(deployment: Deployment, scratch: Path) -> Operation:
    """Downloads of whole objects."""
    async with open_world(deployment) as world:
        await world.enroll(_READ)
        await world.load(_READ, DOWNLOADED[_SMALL], _SMALL)
        for size in DOWNLOADED:
            await world.load_large(_READ, str(size), size)
        async with opened(world, _READ, scratch, "read") as sides:
            keys = {size: [str(size)] for size in DOWNLOADED}
            keys[_SMALL] = [key_of(number) for number in range(DOWNLOADED[_SMALL])]
            cpu = [
                AtSize(size, (await _asked(sides, keys[size], count, _READ_AT_ONCE))[1])
                for size, count in DOWNLOADED.items()
            ]
            near = await _asked(sides, keys[_SMALL], _FEW, AT_ONCE)
        async with (
            delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
            opened(world, _READ, scratch, "counted", S3_ENDPOINT_URL=between.url) as sides,
        ):
            await between.seen()
            await _asked(sides, keys[_SMALL], _COUNTED, _READ_AT_ONCE)
            reads = (await between.seen()).reads / _COUNTED
    own_ms = calibrated("reads", *near).own_ms
    return Operation(tuple(cpu), own_ms, writes=0.0, reads=round(reads, 2))


async def _asked(sides: Sides, keys: list[str], count: int, at_once: int) -> tuple[float, float]:
    """Objects a second, and the gateway's CPU milliseconds an object."""
    targets = [sides.ours(key) for key in keys]
    # What is imported or opened at first is there.
    await run_job("many", targets, count=at_once, concurrency=at_once, warm=0)
    cpu_s = sides.gateway.cpu_s()
    report = await run_job("many", targets, count=count, concurrency=at_once, warm=0)
    cpu_s = sides.gateway.cpu_s() - cpu_s
    return report["done"] / report["wall_s"], 1000 * cpu_s / count


async def measure(deployment: Deployment, scratch: Path, rabbitmq: RabbitMQ) -> Measured:
    """Everything, on one deployment; takes some minutes.

    Raises:
        BenchError: something was not done.
    """
    folders = {name: scratch / name for name in ("broker", "upload", "staged", "pages", "read")}
    for folder in folders.values():
        folder.mkdir()
    await enroll(deployment, scratch)
    broker, small = await upload_costs.of_broker(deployment, folders["broker"], rabbitmq)
    upload = await upload_costs.of_small(deployment, folders["upload"], small)
    staged = await upload_costs.of_staged(deployment, folders["staged"])
    writing, proving, page_requests = await _passes(deployment, folders["pages"])
    read = await _read(deployment, folders["read"])
    return Measured(
        machine=f"{os.cpu_count()} cores shared with storage and broker, {_model()}",
        upload=upload,
        staged=staged,
        writing=writing,
        proving=proving,
        read=read,
        broker=broker,
        page_requests=page_requests,
    )


def _model() -> str:
    """The processor's name, as Linux reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if "model name" in line), "unknown")
