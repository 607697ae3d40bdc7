"""4 KiB uploads: one worker process against a bare put loop on the same server (SPEC 7).

The queue is full before the worker starts. What counts is the middle: from the sample at
which a fifth of the queue is gone to the one at which hardly any is left, so that neither
start-up nor the last few in flight count. The queue's depth and the worker's CPU time are
read from outside at the same moment. Afterwards every object must be stored, every event must
have been published, and there must be no dead letter.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aio_pika

from keyturn.crypto import VerifyKey
from keyturn.topology import EVENTS_STREAM, UPLOAD_QUEUE, dead_letter_name
from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.layers import Sampled
from tools.bench.processes import BenchError, bare, worker
from tools.harness import requests, stored_objects
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.wire import Wire

CONCURRENCY = 64
PROJECT = "bench"
BODY = bytes(range(256)) * 16
_PUBLISHED_AT_ONCE = 256
_SAMPLE_S = 0.05
_DRAIN_S = 180
_BARE_WARM = 200
_THROUGHPUT_AIM = 0.65
_CPU_AIM = 1.3


@dataclass(frozen=True)
class Sample:
    """The queue's depth and the worker's CPU time at one moment, in seconds."""

    at_s: float
    depth: int
    cpu_s: float


@dataclass(frozen=True)
class Rate:
    """Objects a second, and CPU milliseconds an object."""

    per_s: float
    cpu_ms: float


@dataclass
class Rounds:
    """What alternating rounds gave."""

    ours: list[Rate] = field(default_factory=list)
    theirs: list[Rate] = field(default_factory=list)
    same: list[Rate] = field(default_factory=list)
    reads: float = 0.0


def steady(samples: Sequence[Sample], count: int) -> Rate:
    """The rate between a fifth of `count` taken and a twentieth left.

    Raises:
        ValueError: too few samples in between.
    """
    first = next((s for s in samples if s.depth <= count * 0.8), None)
    last = next((s for s in reversed(samples) if s.depth >= count * 0.05), None)
    if first is None or last is None or last.depth >= first.depth:
        raise ValueError("the worker was done before it could be sampled: more objects are needed")
    done = first.depth - last.depth
    return Rate(done / (last.at_s - first.at_s), 1000 * (last.cpu_s - first.cpu_s) / done)


async def enroll(deployment: Deployment, scratch: Path) -> None:
    """Enroll the bench's project; the worker that does it declares the topology too."""
    env = deployment.worker_env()
    async with worker(env, scratch / "control.log", "control"), open_wire(deployment) as wire:
        document = requests.enroll(deployment, PROJECT)
        body = requests.encode(document)
        await wire.publish(
            "enroll.requested", body, requests.headers(body, deployment.publisher_key)
        )
        event = await wire.outcome(document["request_id"])
    if event["type"] != "project.enrolled":
        raise BenchError(f"the project was not enrolled: {event}")


async def fill(
    wire: Wire,
    deployment: Deployment,
    prefix: str,
    count: int,
    projects: Sequence[str] = (PROJECT,),
) -> None:
    """Publish `count` good requests, each confirmed; projects take turns."""
    for first in range(0, count, _PUBLISHED_AT_ONCE):
        publishing = []
        for number in range(first, min(first + _PUBLISHED_AT_ONCE, count)):
            project = projects[number % len(projects)]
            made = requests.upload(deployment, project, f"{prefix}/{number}", BODY)
            body = requests.encode(made.document)
            headers = requests.headers(body, deployment.publisher_key)
            publishing.append(wire.publish("upload.requested", body, headers))
        await asyncio.gather(*publishing)


async def drain(wire: Wire, running: Running, queue: str = UPLOAD_QUEUE) -> list[Sample]:
    """Samples until the queue is empty.

    Raises:
        BenchError: it is not in time.
    """
    samples: list[Sample] = []
    until = time.perf_counter() + _DRAIN_S
    while time.perf_counter() < until:
        depth = await wire.depth(queue)
        samples.append(Sample(time.perf_counter(), depth, running.cpu_s()))
        if depth == 0:
            return samples
        await asyncio.sleep(_SAMPLE_S)
    raise BenchError(f"the worker was not done within {_DRAIN_S} s")


async def ours(
    deployment: Deployment,
    scratch: Path,
    name: str,
    count: int,
    *,
    samples: Path | None = None,
    url: str = "",
    projects: Sequence[str] = (PROJECT,),
) -> Rate:
    """One round of the worker, which finds the storage at `url` where one is given.

    Raises:
        BenchError: an upload was not stored, not reported, or is a dead letter.
    """
    # Not open_wire: following all events would take CPU time from what is measured.
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        from tools.harness.wire import Wire  # noqa: PLC0415

        wire = Wire(await connection.channel(on_return_raises=True), [])
        began = datetime.now(UTC)
        await fill(wire, deployment, name, count, projects)
        more = {"S3_ENDPOINT_URL": url} if url else {}
        env = deployment.worker_env(UPLOAD_CONCURRENCY=str(CONCURRENCY), **more)
        async with worker(env, scratch / f"{name}.log", samples=samples) as running:
            seen = await drain(wire, running)
            # The queue is empty before the last uploads are done: a worker that is stopped then
            # returns what it has not begun.
            reported = await count_events(connection, deployment, name, count, since=began)
        # One project's by its prefix; of many, one listing of everything is cheaper.
        under = f"{PROJECT}/{name}/" if tuple(projects) == (PROJECT,) else ""
        # In a thread: a long listing would keep this loop from answering the broker heartbeats.
        keys = await asyncio.to_thread(stored_objects.list_keys, deployment, under)
        stored = sum(f"/{name}/" in key for key in keys)
        dead = await wire.depth(dead_letter_name(UPLOAD_QUEUE))
    if (stored, reported, dead) != (count, count, 0):
        raise BenchError(
            f"of {count} uploads {stored} stored, {reported} reported, {dead} dead letters"
        )
    return steady(seen, count)


async def count_events(
    connection: aio_pika.abc.AbstractConnection,
    deployment: Deployment,
    name: str,
    count: int,
    *,
    since: datetime,
) -> int:
    """The number of signed events of the round's uploads in the stream.

    It reads from the round's beginning: the whole stream of many rounds would take too long.
    """
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)
    keys: set[str] = set()
    complete = asyncio.Event()

    async def look(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        signature = str(message.headers.get("keyturn-signature"))
        event = json.loads(message.body)
        if event["type"] == "upload.stored" and event["key"].startswith(f"{name}/"):
            verify.verify_event(deployment.name, message.body, signature)
            keys.add(event["key"])
            if len(keys) == count:
                complete.set()
        await message.ack()

    channel = await connection.channel()
    await channel.set_qos(prefetch_count=500)
    stream = await channel.get_queue(EVENTS_STREAM, ensure=False)
    tag = await stream.consume(look, arguments={"x-stream-offset": since})
    try:
        async with asyncio.timeout(30):
            await complete.wait()
    except TimeoutError:
        pass
    finally:
        # First the consumer: an acknowledgment on a closed channel would cost the connection.
        await stream.cancel(tag)
        await channel.close()
    return len(keys)


async def theirs(
    deployment: Deployment, name: str, count: int, reads: float = 0.0, *, url: str = ""
) -> Rate:
    """One round of the bare loop: puts, and `reads` reads of a record for each."""
    elsewhere = {"KEYTURN_S3_ENDPOINT_URL": url} if url else {}
    report = await bare(
        deployment.s3_env() | elsewhere,
        "uploads",
        f"bare-{name}",
        count=count,
        warm=_BARE_WARM,
        concurrency=CONCURRENCY,
        reads=reads,
    )
    return Rate(report["done"] / report["wall_s"], 1000 * report["cpu_s"] / report["done"])


async def sampled(
    deployment: Deployment, scratch: Path, count: int
) -> tuple[dict[str, float], float]:
    """Milliseconds an object by layer, and reads of a keyring an upload, in a separate round."""
    samples = scratch / "samples.json"
    rate = await ours(deployment, scratch, "sampled", count, samples=samples)
    seen = Sampled.written(samples)
    return seen.an_object(per_s=rate.per_s, cpu_ms=rate.cpu_ms), seen.reads / count


async def measure(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> tuple[list[Row], dict[str, float]]:
    """The rows for one server, and where the worker's CPU time went in a separate round."""
    await enroll(deployment, scratch)
    layers, reads = await sampled(deployment, scratch, count)
    found = Rounds(reads=reads)
    for number in range(rounds):
        found.ours.append(await ours(deployment, scratch, f"r{number}", count))
        found.theirs.append(await theirs(deployment, f"r{number}", count))
        found.same.append(await theirs(deployment, f"s{number}", count, reads))
    return rows(deployment.s3.kind, found), layers


def rows(server: str, found: Rounds) -> list[Row]:
    """Throughput and CPU time as rows: against only puts, and against the same requests.

    The aims are for a loop of the same requests, so a loop of only puts has none.
    """
    same = f"the same and {found.reads:.2f} GETs each"
    return [
        *compared("4 KiB uploads", server, found.ours, found.theirs, "bare aioboto3 put loop"),
        *compared(
            "4 KiB uploads",
            server,
            found.ours,
            found.same,
            same,
            rate_aim=_THROUGHPUT_AIM,
            cpu_aim=_CPU_AIM,
        ),
    ]


def compared(
    figure: str,
    server: str,
    ours: Sequence[Rate],
    theirs: Sequence[Rate],
    against: str,
    *,
    rate_aim: float | None = None,
    cpu_aim: float | None = None,
) -> list[Row]:
    """Two sides' throughput and CPU time."""
    our_rate, their_rate = [rate.per_s for rate in ours], [rate.per_s for rate in theirs]
    our_cpu, their_cpu = [rate.cpu_ms for rate in ours], [rate.cpu_ms for rate in theirs]
    return [
        Row(
            figure,
            server,
            "objects/s",
            Spread(tuple(our_rate)),
            Spread(tuple(their_rate)),
            against,
            higher_is_better(our_rate, their_rate),
            at_least=rate_aim,
        ),
        Row(
            f"{figure}, CPU",
            server,
            "ms/object",
            Spread(tuple(our_cpu)),
            Spread(tuple(their_cpu)),
            against,
            lower_is_better(our_cpu, their_cpu),
            at_least=cpu_aim,
        ),
    ]
