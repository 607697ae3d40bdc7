"""The smallest deployment: one `keyturn worker all`, one gateway, one broker, one bucket.

It has `projects` projects, and each round starts both processes anew. First the worker drains a
full queue, as in `uploads`; then one client in another process uploads through the gateway, each
upload until it is stored, and reads the same objects. Memory is the kernel's peak of resident
memory. Everything shares the cores of this machine, the storage and the client too.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aio_pika
import psutil

from keyturn.topology import EXCHANGE
from tools.bench.figures import Row, Spread
from tools.bench.gateway import STARTED, address_of, run_job
from tools.bench.processes import BenchError, serving, worker
from tools.bench.uploads import (
    BODY,
    ENROLLED_AT_ONCE,
    count_events,
    drain,
    enroll,
    letters,
    publish_all,
    steady,
    tenants,
)
from tools.harness.http import object_target
from tools.harness.process import peak_bytes
from tools.harness.wire import Wire
from tools.harness.world import open_world

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.harness.deployment import Deployment

_AT_ONCE: Final = 32
_MIB: Final = 2**20


async def measure(
    deployment: Deployment, scratch: Path, *, projects: int, count: int, rounds: int
) -> list[Row]:
    """What this deployment does a second, and the memory that it needs."""
    await enroll(deployment, scratch)
    names = tenants(projects)
    async with open_world(deployment) as world:
        for first in range(0, projects, ENROLLED_AT_ONCE):
            batch = names[first : first + ENROLLED_AT_ONCE]
            await asyncio.gather(*(world.enroll(name) for name in batch))
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        measured = await _round(deployment, scratch, f"s{number}", names, count, world.api_keys)
        for figure, value in measured.items():
            found.setdefault(figure, []).append(value)
    return [
        Row(
            f"smallest deployment, {projects:,} projects: {figure}",
            deployment.s3.kind,
            unit,
            Spread(tuple(values)),
        )
        for (figure, unit), values in found.items()
    ]


async def _round(
    deployment: Deployment,
    scratch: Path,
    name: str,
    names: Sequence[str],
    count: int,
    api_keys: Mapping[str, str],
) -> dict[tuple[str, str], float]:
    """The figures of one round, by name and unit.

    Raises:
        BenchError: an upload was not reported, or a request of the client failed.
    """
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        wire = Wire(await connection.channel(on_return_raises=True), [])
        began = datetime.now(UTC)
        exchange = await wire.channel.get_exchange(EXCHANGE, ensure=False)
        await publish_all(exchange, letters(deployment, name, count, names))
        started = time.perf_counter()
        async with worker(deployment.worker_env(), scratch / f"{name}.log", "all") as running:
            start_s = time.perf_counter() - started
            uploads = steady(await drain(wire, running), count)
            reported = await count_events(connection, deployment, name, count, since=began)
            if reported != count:
                raise BenchError(f"of {count} uploads {reported} were reported")
            env, log = deployment.gateway_env(), scratch / f"{name}-gateway.log"
            module = ["keyturn_workers", "gateway"]
            async with serving(env, log, module, ready=STARTED) as gateway:
                base = address_of(gateway)
                gets = [
                    _get(base, names[number % len(names)], f"{name}/h/{number}", api_keys)
                    for number in range(count)
                ]
                puts = [{**each, "body": len(BODY)} for each in gets]
                job = {"count": count, "concurrency": _AT_ONCE}
                stored = await run_job(puts, **job)
                read = await run_job(gets, **job)
                gateway_bytes = gateway.peak_bytes()
            return {
                ("4 KiB uploads from the queue", "objects/s"): uploads.per_s,
                ("CPU time of the worker for one of them", "ms"): uploads.cpu_ms,
                ("4 KiB uploads through the gateway", "objects/s"): count / stored["wall_s"],
                ("4 KiB reads through the gateway", "objects/s"): count / read["wall_s"],
                ("start of the worker", "s"): start_s,
                ("peak memory of the worker", "MiB"): running.peak_bytes() / _MIB,
                ("peak memory of the gateway", "MiB"): gateway_bytes / _MIB,
                ("peak memory of RabbitMQ", "MiB"): _broker_bytes(deployment) / _MIB,
            }


def _get(base: str, project: str, key: str, api_keys: Mapping[str, str]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_keys[project]}", "prefer": "wait=30"}
    return {"url": base + object_target(project, key), "headers": headers}


def _broker_bytes(deployment: Deployment) -> int:
    """The peak memory of the process that listens on the broker's port."""
    port = urlsplit(deployment.amqp_url).port
    (pid,) = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    }
    assert pid is not None
    return peak_bytes(pid)
