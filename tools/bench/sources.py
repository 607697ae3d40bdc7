"""Objects of a source, against the same bodies in requests; and large ones (SPEC 17).

The source is another bucket of the same server. A worker reads each target first, then the source,
and then puts: three requests where an inline upload has one.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from keyturn.messages import UploadStored
from keyturn.publisher import Publisher
from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.processes import BenchError, worker
from tools.bench.uploads import BODY, PROJECT, Letter, enroll, ours
from tools.chaos.publisher import publisher_settings
from tools.harness import requests
from tools.harness.sources import DropBucket, sources_env

if TYPE_CHECKING:
    from pathlib import Path

    from keyturn.messages import SourceObject
    from tools.harness.deployment import Deployment

_MIB: Final = 2**20
_LARGE_MIB: Final = 64
_LARGE_S: Final = 600
_WRITERS: Final = 16
_MEMORY_AIM_MIB: Final = 256


def _requested(drop: DropBucket, deployment: Deployment, name: str, count: int) -> list[Letter]:
    """Write the objects, and make the requests for them."""

    def one(number: int) -> Letter:
        document = drop.request(deployment, drop.put(f"{name}/{number}", BODY))
        body = requests.encode(document)
        headers = requests.headers(body, deployment.publisher_key)
        return Letter(document["upload_id"], body, headers)

    with ThreadPoolExecutor(_WRITERS) as writers:
        return list(writers.map(one, range(count)))


async def measure_small(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Objects of 4 KiB; errors as `uploads.ours`."""
    await enroll(deployment, scratch)
    drop = DropBucket(deployment.s3, project=PROJECT)
    settings = sources_env(deployment, drop)
    taken_in, inline = list[Rate](), list[Rate]()
    for turn in range(rounds):
        requested = await asyncio.to_thread(_requested, drop, deployment, f"s{turn}", count)
        taken_in.append(
            await ours(
                deployment, scratch, f"s{turn}", count, requested=requested, settings=settings
            )
        )
        inline.append(await ours(deployment, scratch, f"i{turn}", count))
    compared = Comparison(
        "4 KiB from a source", deployment.s3.kind, "the same in requests", taken_in, inline
    )
    return [compared.throughput(), compared.cpu()]


async def _stored(publisher: Publisher, named: SourceObject) -> None:
    object_key = named.key.removeprefix("in/")
    upload_id = await publisher.upload_from_source(PROJECT, object_key, named)
    event = await publisher.wait(upload_id, timeout_s=_LARGE_S)
    if not isinstance(event, UploadStored):
        raise BenchError(f"an object was not stored: {event}")


async def measure_large(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Objects of 64 MiB: MiB a second, CPU, and the worker's peak memory.

    Raises:
        BenchError: an object was not stored.
    """
    drop = DropBucket(deployment.s3, project=PROJECT)
    body = bytes(range(256)) * (_LARGE_MIB * _MIB // 256)
    rates, peaks_mib = list[Rate](), list[float]()
    await enroll(deployment, scratch)
    env = deployment.worker_env(**sources_env(deployment, drop))
    for turn in range(rounds):
        named = [
            await asyncio.to_thread(drop.put, f"l{turn}/{number}", body) for number in range(count)
        ]
        async with (
            worker(env, scratch / f"l{turn}.log") as running,
            Publisher.open(publisher_settings(deployment, deployment.amqp_url)) as publisher,
        ):
            running.forget_peak()
            began_s, cpu_s = time.perf_counter(), running.cpu_s()
            stored = [_stored(publisher, each) for each in named]
            await asyncio.gather(*stored)
            units = count * _LARGE_MIB
            cpu_ms = 1000 * (running.cpu_s() - cpu_s) / units
            rates.append(Rate(units / (time.perf_counter() - began_s), cpu_ms))
            peaks_mib.append(running.peak_bytes() / _MIB)
    figure, server = f"{count} of {_LARGE_MIB} MiB from a source", deployment.s3.kind
    return [
        Row(figure, server, "MiB/s", Spread(tuple(rate.per_s for rate in rates))),
        Row(f"{figure}, CPU", server, "ms/MiB", Spread(tuple(rate.cpu_ms for rate in rates))),
        Row(
            f"{figure}, peak memory",
            server,
            "MiB",
            Spread(tuple(peaks_mib)),
            at_most=_MEMORY_AIM_MIB,
        ),
    ]
