"""4 KiB uploads of one worker process: against bare puts, and in many projects against one.

The queue is full before the worker starts. What counts is the middle: from the sample at
which a fifth of the queue is gone to the one at which hardly any is left, so that neither
start-up nor the last few in flight count. The queue's depth and the worker's CPU time are
read from outside at the same moment. Afterwards every object must be stored, every event must
have been published, and there must be no dead letter.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.crypto import VerifyKey
from keyturn.publisher.sessions import SealingSession
from keyturn.topology import EVENTS_STREAM, EXCHANGE, UPLOAD_QUEUE, dead_letter_name
from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.processes import BenchError, Traffic, bare, worker
from tools.chaos.fault_proxy import run_fault_proxy
from tools.harness import requests, stored_objects
from tools.harness.wire import SignedPublisher, Wire, documents_in, open_wire, verified_events
from tools.harness.world import open_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractExchange

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment

CONCURRENCY: Final = 64
PROJECT: Final = "bench"
UPLOAD: Final = "upload.requested"
BODY: Final = bytes(range(256)) * 16
_LARGE_BODY: Final = bytes(250_000)
_MIB: Final = 2**20
_MEMORY_AIM_MIB: Final = 256
_PUBLISHED_AT_ONCE: Final = 256
ENROLLED_AT_ONCE: Final = 64
_SAMPLE_S: Final = 0.05
_DRAIN_S: Final = 180
_BARE_WARM: Final = 200
_PUTS_RATE_AIM: Final = 1.1
_PUTS_CPU_AIM: Final = 1.3
_TENANTS_AIM: Final = 0.95
_REQUESTS_AIM: Final = 1.05


@dataclass(frozen=True)
class Sample:
    """The queue's depth and the worker's CPU time at one moment, in seconds."""

    at_s: float
    depth: int
    cpu_s: float


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
        await SignedPublisher(deployment, wire).enroll(PROJECT)


@dataclass(frozen=True)
class Letter:
    """A request ready to be published."""

    upload_id: str
    body: bytes
    headers: dict[str, str]

    def message(self) -> aio_pika.Message:
        """It, as it is published."""
        return aio_pika.Message(
            self.body,
            headers=dict(self.headers),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=self.upload_id,
        )


def letters(
    deployment: Deployment,
    prefix: str,
    count: int,
    projects: Sequence[str] = (PROJECT,),
    body: bytes = BODY,
) -> list[Letter]:
    """`count` good requests, sealed under a session and signed; projects take turns."""
    found = []
    session = SealingSession(deployment.publisher_settings())
    for number in range(count):
        project = projects[number % len(projects)]
        key = f"{prefix}/{number}"
        made = requests.upload(deployment, project, key, body, session=session)
        encoded = requests.encode(made.document)
        headers = requests.headers(encoded, deployment.publisher_key)
        found.append(Letter(made.upload_id, encoded, headers))
    return found


async def publish_all(exchange: AbstractExchange, letters: Sequence[Letter]) -> None:
    """Publish the requests, each confirmed."""
    for first in range(0, len(letters), _PUBLISHED_AT_ONCE):
        batch = letters[first : first + _PUBLISHED_AT_ONCE]
        await asyncio.gather(*(exchange.publish(each.message(), UPLOAD) for each in batch))


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
        wire = Wire(await connection.channel(on_return_raises=True), [])
        began = datetime.now(UTC)
        exchange = await wire.channel.get_exchange(EXCHANGE, ensure=False)
        await publish_all(exchange, letters(deployment, name, count, projects))
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
    timeout_s: float = 30,
) -> int:
    """The number of signed events of the round's uploads in the stream.

    It reads from the round's beginning: the whole stream of many rounds would take too long.
    """
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)
    keys: set[str] = set()
    complete = asyncio.Event()

    async def look(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        signature = str(message.headers.get("keyturn-signature"))
        stored = [event for event in documents_in(message.body) if event["type"] == "upload.stored"]
        if any(event["key"].startswith(f"{name}/") for event in stored):
            verified_events(verify, deployment.name, message.body, signature)
            keys.update(event["key"] for event in stored if event["key"].startswith(f"{name}/"))
            if len(keys) == count:
                complete.set()
        await message.ack()

    channel = await connection.channel()
    await channel.set_qos(prefetch_count=500)
    stream = await channel.get_queue(EVENTS_STREAM, ensure=False)
    tag = await stream.consume(look, arguments={"x-stream-offset": since})
    try:
        async with asyncio.timeout(timeout_s):
            await complete.wait()
    except TimeoutError:
        pass
    finally:
        # First the consumer: an acknowledgment on a closed channel would cost the connection.
        await stream.cancel(tag)
        await channel.close()
    return len(keys)


async def measure(deployment: Deployment, scratch: Path, *, count: int, rounds: int) -> list[Row]:
    """Throughput and CPU time against a loop of aioboto3 puts of the same size."""
    await enroll(deployment, scratch)
    found, puts = list[Rate](), list[Rate]()
    for number in range(rounds):
        found.append(await ours(deployment, scratch, f"r{number}", count))
        puts.append(
            await bare(
                deployment.s3_env(),
                *("puts", f"bare-{number}"),
                count=count,
                warm=_BARE_WARM,
                concurrency=CONCURRENCY,
            )
        )
    compared = Comparison(
        "4 KiB uploads", deployment.s3.kind, "bare aioboto3 put loop", found, puts
    )
    return [compared.throughput(_PUTS_RATE_AIM), compared.cpu(_PUTS_CPU_AIM)]


async def measure_memory(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """One worker's memory under large inline bodies: of uploads, and of unsigned messages."""
    await enroll(deployment, scratch)
    kinds = ("uploads", "unsigned messages")
    peaks: dict[str, list[float]] = {kind: [] for kind in kinds}
    resident: dict[str, list[float]] = {kind: [] for kind in kinds}
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        wire = Wire(await connection.channel(on_return_raises=True), [])
        exchange = await wire.channel.get_exchange(EXCHANGE, ensure=False)
        for number in range(rounds):
            for kind in kinds:
                env, log = deployment.worker_env(), scratch / f"{kind}-{number}.log"
                async with worker(env, log) as running:
                    for first in range(0, count, _PUBLISHED_AT_ONCE):
                        size = min(_PUBLISHED_AT_ONCE, count - first)
                        name = f"memory-{kind}-{number}-{first}"
                        made = letters(deployment, name, size, body=_LARGE_BODY)
                        if kind != "uploads":
                            made = [replace(each, headers={}) for each in made]
                        await publish_all(exchange, made)
                        await drain(wire, running)
                    peaks[kind].append(running.peak_bytes() / _MIB)
                    resident[kind].append(running.rss_bytes() / _MIB)
    server = deployment.s3.kind
    return [
        Row(
            f"{count:,} {kind} of 250 KB, {figure} memory of a worker",
            server,
            "MiB",
            Spread(tuple(found[kind])),
            at_most=_MEMORY_AIM_MIB,
        )
        for kind in kinds
        for figure, found in (("peak", peaks), ("resident", resident))
    ]


def tenants(count: int) -> list[str]:
    """The ids of `count` projects."""
    return [f"tenant-{number:05}" for number in range(count)]


async def measure_projects(
    deployment: Deployment, scratch: Path, *, projects: int, count: int, rounds: int
) -> list[Row]:
    """`count` uploads over so many projects, against as many in one.

    What a project costs is its keyring: read once, then renewed with up to a thousand others by
    one listing.
    """
    await enroll(deployment, scratch)
    names = tenants(projects)
    async with open_world(deployment) as world:
        for first in range(0, projects, ENROLLED_AT_ONCE):
            batch = names[first : first + ENROLLED_AT_ONCE]
            await asyncio.gather(*(world.enroll(name) for name in batch))
    many, one = list[Rate](), list[Rate]()
    for turn in range(rounds):
        # Whichever side comes second finds a bucket that holds more: they take turns in that.
        sides = [(many, f"m{turn}", names), (one, f"o{turn}", [PROJECT])]
        for rates, prefix, of in sides if turn % 2 == 0 else reversed(sides):
            rates.append(await ours(deployment, scratch, prefix, count, projects=of))
    figure, server = f"4 KiB uploads in {projects:,} projects", deployment.s3.kind
    compared = Comparison(figure, server, "the same uploads in one project", many, one)
    async with run_fault_proxy(deployment.s3.endpoint_url) as between:
        await ours(deployment, scratch, "counted", count, url=between.url, projects=names)
        seen = Traffic.take(between)
    # Each keyring must be read once in the life of a process, whatever comes after.
    requests_an_upload = Spread(((seen.requests - projects) / count,))
    return [
        compared.throughput(_TENANTS_AIM),
        compared.cpu(_TENANTS_AIM),
        Row(
            f"{figure}, without the first read of each keyring",
            server,
            "requests an upload",
            requests_an_upload,
            at_most=_REQUESTS_AIM,
        ),
    ]
