"""What one object costs each kind of process, measured: the model's `measured.json`.

CPU time is read from outside the process, over a queue or a list of objects that it works
off with its defaults. The servers' own time comes from a run of a few objects at once.
Requests to the storage are counted by a proxy, in runs that are not timed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from contracts.sealing import b64, sealed_size
from tests.bench.gateway.sides import ask, opened
from tests.bench.rotation import pages
from tests.bench.rotation.delaying import delaying
from tests.bench.rotation.world import key_of, open_world, pages_of
from tests.bench.uploads import PROJECT, enrol
from tests.capacity.check import calibrated
from tests.capacity.measured import AtSize, Broker, Measured, Operation
from tests.capacity.simulation import AT_ONCE, page_side, upload_side
from tests.load.crew import crew
from tests.load.filling import fill
from tests.load.uploads import Uploads
from tests.support import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.bench.gateway.sides import Sides
    from tests.bench.rotation.delaying import Seen
    from tests.servers import RabbitMQ
    from tests.support.deployment import Deployment

_KIB, _MIB = 2**10, 2**20
# Bytes of an upload, and how many of them.
INLINE: Mapping[int, int] = {4 * _KIB: 10_000, 64 * _KIB: 800, 256 * _KIB: 300}
STAGED: Mapping[int, int] = {_MIB: 200, 16 * _MIB: 24}
DOWNLOADED: Mapping[int, int] = {4 * _KIB: 3000, _MIB: 600, 16 * _MIB: 60}
_SMALL = 4 * _KIB
_FEW = 600
_FEW_STAGED = 60
_COUNTED = 500
_SWEPT = 3000
_READ_AT_ONCE = 32
_PAGES, _READ = "costs-pages", "costs-read"


@dataclass(frozen=True)
class _Uploaded:
    """What a number of uploads took: CPU milliseconds of each kind, and objects a second."""

    cpu_ms: float
    publisher_cpu_ms: float
    per_s: float


async def _uploaded(
    deployment: Deployment,
    scratch: Path,
    size_bytes: int,
    count: int,
    *,
    full: Callable[[], None] = lambda: None,
) -> _Uploaded:
    """So many uploads by one worker with its defaults, on a queue that is full before.

    `full` is called while all of them wait.
    """
    uploads = Uploads(f"cost-{size_bytes}", count, size_bytes)
    folder = scratch / uploads.name
    folder.mkdir()
    filled = await fill(deployment, uploads)
    full()
    async with crew(deployment.worker_env(), folder) as running:
        await running.start()
        cpu_s = running.running[0].cpu_s()
        await running.served_all(uploads)
        cpu_s = running.running[0].cpu_s() - cpu_s
        await running.stop()
        moments = sorted(datetime.fromisoformat(line["timestamp"]) for line in running.served())
    # The first ones and the last ones are fewer at once.
    first, last = count // 5, count - 1 - count // 5
    per_s = (last - first) / (moments[last] - moments[first]).total_seconds()
    return _Uploaded(1000 * cpu_s / count, 1000 * filled["cpu_s"] / count, per_s)


async def _counted(deployment: Deployment, scratch: Path, size_bytes: int, count: int) -> Seen:
    """The requests of a worker that serves already, for so many uploads."""
    uploads = Uploads(f"counted-{size_bytes}", count, size_bytes)
    async with (
        delaying(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
        crew(deployment.worker_env(S3_ENDPOINT_URL=between.url), scratch) as running,
    ):
        await running.start()
        await between.seen()
        await fill(deployment, uploads)
        await running.served_all(uploads)
        return await between.seen()


async def _upload(deployment: Deployment, scratch: Path, small: _Uploaded) -> Operation:
    cpu = [AtSize(_SMALL, small.cpu_ms)]
    for size, count in INLINE.items():
        if size != _SMALL:
            cpu.append(AtSize(size, (await _uploaded(deployment, scratch, size, count)).cpu_ms))
    counted = await _counted(deployment, scratch, _SMALL, _COUNTED)
    async with upload_side(deployment, scratch) as side:
        ran = await side.run(1, 0, _FEW)
    near = calibrated("uploads", ran.per_s, ran.cpu_ms)
    # All of its reads are of keyrings, which are no object's own: the model counts them by time.
    writes = (counted.requests - counted.reads) / _COUNTED
    return Operation(tuple(cpu), near.own_ms, writes, reads=0.0)


async def _staged(deployment: Deployment, scratch: Path) -> Operation:
    took = {
        size: await _uploaded(deployment, scratch, size, count) for size, count in STAGED.items()
    }
    small = min(STAGED)
    counted = await _counted(deployment, scratch, small, _FEW_STAGED)
    writes = (counted.requests - counted.reads) / _FEW_STAGED
    near = calibrated("staged", took[small].per_s, took[small].cpu_ms)
    cpu = tuple(AtSize(size, one.cpu_ms) for size, one in took.items())
    # Its first read is of staging; of the keyring's, as of every upload, the model takes care.
    return Operation(cpu, near.own_ms, writes, reads=1.0)


async def _passes(deployment: Deployment, scratch: Path) -> tuple[Operation, Operation, float]:
    """Writing, proving, and a page's requests beside those of its objects."""
    async with open_world(deployment) as world:
        await world.enrol(_PAGES)
        await world.load(_PAGES, _SWEPT, _SMALL)
        all_pages = pages_of([key_of(number) for number in range(_SWEPT)], pages.PAGE_KEYS)
        async with pages.crew(world, scratch, "costs") as ours:
            await world.turn(_PAGES)
            cpu_ms = (
                (await ours.write(_PAGES, all_pages)).cpu_ms,
                (await ours.prove(_PAGES, all_pages)).cpu_ms,
            )
        under = f"/{deployment.bucket}/{_PAGES}/"
        async with (
            delaying(deployment.s3.endpoint_url, delay_ms=0, under=under) as between,
            pages.crew(world, scratch, "counted", url=between.url) as ours,
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
    beside = written.requests - written.under + proven.requests - proven.under
    return (
        _of_pass(cpu_ms[0], near["writing"].own_ms, written),
        _of_pass(cpu_ms[1], near["proving"].own_ms, proven),
        beside / (2 * len(all_pages)),
    )


def _of_pass(cpu_ms: float, own_ms: float, seen: Seen) -> Operation:
    """An object's part; what is read beside the objects counts as the page's."""
    reads = min(seen.reads, _SWEPT) / _SWEPT
    return Operation((AtSize(_SMALL, cpu_ms),), own_ms, seen.under / _SWEPT - reads, reads)


async def _read(deployment: Deployment, scratch: Path) -> Operation:
    """Downloads of whole objects."""
    async with open_world(deployment) as world:
        await world.enrol(_READ)
        await world.load(_READ, DOWNLOADED[_SMALL], _SMALL)
        for size in DOWNLOADED:
            await world.load_large(_READ, str(size), size)
        async with opened(world, _READ, scratch, "read") as sides:
            keys = {size: [str(size)] for size in DOWNLOADED}
            keys[_SMALL] = [key_of(number) for number in range(DOWNLOADED[_SMALL])]
            cpu = [
                AtSize(size, (await _asked(sides, keys[size], count, _READ_AT_ONCE)).cpu_ms)
                for size, count in DOWNLOADED.items()
            ]
            near = await _asked(sides, keys[_SMALL], _FEW, AT_ONCE)
        async with (
            delaying(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
            opened(world, _READ, scratch, "counted", S3_ENDPOINT_URL=between.url) as sides,
        ):
            await between.seen()
            await _asked(sides, keys[_SMALL], _COUNTED, _READ_AT_ONCE)
            reads = (await between.seen()).reads / _COUNTED
    own_ms = calibrated("reads", near.per_s, near.cpu_ms).own_ms
    return Operation(tuple(cpu), own_ms, writes=0.0, reads=round(reads, 2))


async def _asked(sides: Sides, keys: list[str], count: int, at_once: int) -> _Uploaded:
    targets = [sides.ours(key) for key in keys]
    # What is imported or opened at first is there.
    await ask("many", targets, count=at_once, concurrency=at_once, warm=0)
    cpu_s = sides.gateway.cpu_s()
    told = await ask("many", targets, count=count, concurrency=at_once, warm=0)
    cpu_s = sides.gateway.cpu_s() - cpu_s
    return _Uploaded(1000 * cpu_s / count, 0.0, told["done"] / told["wall_s"])


async def _broker(
    deployment: Deployment, scratch: Path, rabbitmq: RabbitMQ
) -> tuple[Broker, _Uploaded]:
    """The broker's side of small uploads, and the worker's."""
    empty = requests.upload(deployment, PROJECT, Uploads("size", 1).key(0), b"")
    body = requests.encode(empty.document)
    headers = requests.headers(body, deployment.publisher_key)
    message_bytes = len(body) + sum(len(text) for pair in headers.items() for text in pair)
    message_bytes -= len(b64(empty.sealed_body))
    count = INLINE[_SMALL]
    waiting_bytes = count * (message_bytes + 4 / 3 * sealed_size(_SMALL))
    looks = [_Node(rabbitmq)]
    took = await _uploaded(
        deployment, scratch, _SMALL, count, full=lambda: looks.append(_Node(rabbitmq))
    )
    before, full, after = *looks, _Node(rabbitmq)
    found = Broker(
        message_bytes=message_bytes,
        event_bytes=(after.stream_bytes - full.stream_bytes) / count,
        disk_factor=(full.queue_bytes - before.queue_bytes) / waiting_bytes,
        memory_factor=(full.rss_bytes - before.rss_bytes) / waiting_bytes,
        cpu_ms=1000 * (after.cpu_s - before.cpu_s) / count,
        publisher_cpu_ms=took.publisher_cpu_ms,
    )
    return found, took


class _Node:
    """What the broker holds and has used at one moment."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self.queue_bytes = rabbitmq.disk_bytes("quorum")
        self.stream_bytes = rabbitmq.disk_bytes("stream")
        below = psutil.Process(rabbitmq.process.guard_pid).children(recursive=True)
        times = [process.cpu_times() for process in below]
        self.cpu_s = sum(each.user + each.system for each in times)
        self.rss_bytes = sum(process.memory_info().rss for process in below)


async def measure(deployment: Deployment, scratch: Path, rabbitmq: RabbitMQ) -> Measured:
    """Everything, on one deployment; takes some minutes.

    Raises:
        BenchError: something was not done.
    """
    folders = {name: scratch / name for name in ("broker", "upload", "staged", "pages", "read")}
    for folder in folders.values():
        folder.mkdir()
    await enrol(deployment, scratch)
    broker, small = await _broker(deployment, folders["broker"], rabbitmq)
    upload = await _upload(deployment, folders["upload"], small)
    staged = await _staged(deployment, folders["staged"])
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
    """The processor's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if "model name" in line), "unknown")
