"""What an upload costs its worker, its publisher and the broker, measured.

CPU time is read from outside the processes, over a queue that was full before the worker
started. Requests to the storage are counted by a proxy, in a run that is not timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import psutil

from keyturn.crypto import sealed_size, to_base64
from tools.bench.delay_proxy import delay_proxy
from tools.bench.uploads import PROJECT
from tools.capacity.check import calibrated
from tools.capacity.measured import AtSize, Broker, Operation
from tools.capacity.simulation import upload_side
from tools.harness import requests
from tools.load.queue_filler import fill
from tools.load.uploads import Uploads
from tools.load.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tools.bench.delay_proxy import Seen
    from tools.harness.deployment import Deployment
    from tools.servers import RabbitMQ

_KIB, _MIB = 2**10, 2**20
# Bytes of an upload, and how many of them.
INLINE: Mapping[int, int] = {4 * _KIB: 10_000, 64 * _KIB: 800, 256 * _KIB: 300}
STAGED: Mapping[int, int] = {_MIB: 200, 16 * _MIB: 24}
_SMALL = 4 * _KIB
_FEW = 600
_FEW_STAGED = 60
_COUNTED = 500


@dataclass(frozen=True)
class Uploaded:
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
) -> Uploaded:
    """`count` uploads by one worker with its defaults, on a queue that is full before.

    `full` is called while all of them wait.
    """
    uploads = Uploads(f"cost-{size_bytes}", count, size_bytes)
    folder = scratch / uploads.name
    folder.mkdir()
    filled = await fill(deployment, uploads)
    full()
    async with worker_pool(deployment.worker_env(), folder) as running:
        await running.start()
        cpu_s = running.running[0].cpu_s()
        await running.wait_until_all_served(uploads)
        cpu_s = running.running[0].cpu_s() - cpu_s
        await running.stop()
        moments = sorted(datetime.fromisoformat(line["timestamp"]) for line in running.served())
    # The first ones and the last ones are fewer at once.
    first, last = count // 5, count - 1 - count // 5
    per_s = (last - first) / (moments[last] - moments[first]).total_seconds()
    return Uploaded(1000 * cpu_s / count, 1000 * filled["cpu_s"] / count, per_s)


async def _counted(deployment: Deployment, scratch: Path, size_bytes: int, count: int) -> Seen:
    """The requests of a worker that serves already, for `count` uploads."""
    uploads = Uploads(f"counted-{size_bytes}", count, size_bytes)
    async with (
        delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between,
        worker_pool(deployment.worker_env(S3_ENDPOINT_URL=between.url), scratch) as running,
    ):
        await running.start()
        await between.seen()
        await fill(deployment, uploads)
        await running.wait_until_all_served(uploads)
        return await between.seen()


async def of_small(deployment: Deployment, scratch: Path, small: Uploaded) -> Operation:
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


async def of_staged(deployment: Deployment, scratch: Path) -> Operation:
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


async def of_broker(
    deployment: Deployment, scratch: Path, rabbitmq: RabbitMQ
) -> tuple[Broker, Uploaded]:
    """The broker's side of small uploads, and the worker's."""
    empty = requests.upload(deployment, PROJECT, Uploads("size", 1).key(0), b"")
    body = requests.encode(empty.document)
    headers = requests.headers(body, deployment.publisher_key)
    message_bytes = len(body) + sum(len(text) for pair in headers.items() for text in pair)
    message_bytes -= len(to_base64(empty.sealed_body))
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
        below = psutil.Process(rabbitmq.process.reaper_pid).children(recursive=True)
        times = [process.cpu_times() for process in below]
        self.cpu_s = sum(each.user + each.system for each in times)
        self.rss_bytes = sum(process.memory_info().rss for process in below)
