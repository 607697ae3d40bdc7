"""One page worker against a bare loop of the same requests on the same server (SPEC 8.2, 8.5).

A real `keyturn worker sweep` does a writing pass over pages of 4 KiB objects, and a
proving pass; a process of plain aioboto3 does a HEAD and a self-copy of as many objects
of the same size, and a HEAD. They alternate. Requests and bytes are counted in a pass of
its own, by a proxy in between.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aio_pika

from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.layers import Sampled
from tools.bench.processes import bare, worker
from tools.bench.rotation.delay_proxy import delay_proxy
from tools.bench.rotation.passes import PageWorkers
from tools.bench.rotation.world import key_of, open_world, pages_of
from tools.bench.uploads import Rate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.bench.rotation.delay_proxy import Seen
    from tools.bench.rotation.passes import Pass
    from tools.bench.rotation.world import World
    from tools.harness.deployment import Deployment

CONCURRENCY = 64
PAGE_KEYS = 500
PROJECT = "pages"
_TAGGED = "tagged"
_TAGS = {"team": "blue", "kind": "report"}
_BODY_BYTES = 4096
_RATE_AIM = 1.0
_CPU_AIM = 2.5
_MOST_BYTES = 2048
_KIB = 1024


@dataclass
class Rounds:
    """What alternating rounds gave, of the writing pass and of the proving pass."""

    written: list[Rate] = field(default_factory=list)
    copied: list[Rate] = field(default_factory=list)
    proven: list[Rate] = field(default_factory=list)
    headed: list[Rate] = field(default_factory=list)


@dataclass(frozen=True)
class Counted:
    """What one object cost on the wire: requests to it, all requests, bytes of answers."""

    to_it: float
    requests: float
    received_bytes: float

    @classmethod
    def of(cls, seen: Seen, objects: int) -> Counted:
        """An object's share of what a pass over `objects` of them sent."""
        return cls(seen.under / objects, seen.requests / objects, seen.received_bytes / objects)


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


def _rate(done: Pass) -> Rate:
    return Rate(done.per_s, done.cpu_ms)


async def _theirs(deployment: Deployment, what: str, count: int, warm: int) -> Rate:
    report = await bare(
        deployment.s3_env(), what, "bare", count=count, warm=warm, concurrency=CONCURRENCY
    )
    return Rate(report["done"] / report["wall_s"], 1000 * report["cpu_s"] / report["done"])


async def _rounds(world: World, scratch: Path, count: int, warm: int, rounds: int) -> Rounds:
    # The other side's first objects do not count either: connections are made meanwhile.
    keys = [key_of(number) for number in range(warm + count)]
    first, pages = (
        pages_of(keys[:warm], warm),
        pages_of(keys[warm:], PAGE_KEYS, after=keys[warm - 1]),
    )
    found = Rounds()
    async with run_page_worker(world, scratch, "pages") as ours:
        for _ in range(rounds):
            await world.turn(PROJECT)
            await ours.write(PROJECT, first)
            found.written.append(_rate(await ours.write(PROJECT, pages)))
            found.copied.append(await _theirs(world.deployment, "copies", count, warm))
            await ours.prove(PROJECT, first)
            found.proven.append(_rate(await ours.prove(PROJECT, pages)))
            found.headed.append(await _theirs(world.deployment, "heads", count, warm))
    return found


async def _counted(
    world: World, scratch: Path, project: str, count: int
) -> tuple[Counted, Counted]:
    """What an object cost on the wire in a separate writing pass and proving pass."""
    pages = pages_of([key_of(number) for number in range(count)], PAGE_KEYS)
    under = f"/{world.deployment.bucket}/{project}/"
    async with (
        delay_proxy(world.deployment.s3.endpoint_url, delay_ms=0, under=under) as between,
        run_page_worker(world, scratch, f"counted-{project}", url=between.url) as ours,
    ):
        await world.turn(project)
        await between.seen()
        await ours.write(project, pages)
        written = Counted.of(await between.seen(), count)
        await ours.prove(project, pages)
        return written, Counted.of(await between.seen(), count)


async def sampled(world: World, scratch: Path, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds an object by layer in a page worker, in passes that are not timed."""
    pages = pages_of([key_of(number) for number in range(count)], PAGE_KEYS)
    layers: dict[str, dict[str, float]] = {}
    for name in ("writing", "proving"):
        samples = scratch / f"{name}.json"
        async with run_page_worker(world, scratch, name, samples=samples) as ours:
            if name == "writing":
                await world.turn(PROJECT)
                done = await ours.write(PROJECT, pages)
            else:
                done = await ours.prove(PROJECT, pages)
        seen = Sampled.written(samples)
        layers[name] = seen.an_object(per_s=done.per_s, cpu_ms=done.cpu_ms)
    return layers


async def measure(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """The rows for one server, and where the worker's CPU time went."""
    warm, tagged = max(1, count // 15), max(1, count // 10)
    async with open_world(deployment) as world:
        for project, number in ((PROJECT, warm + count), (_TAGGED, tagged)):
            await world.enroll(project)
            tags = _TAGS if project == _TAGGED else None
            await world.load(project, number, _BODY_BYTES, tags=tags)
        await _theirs(deployment, "puts", count, warm)
        found = await _rounds(world, scratch, count, warm, rounds)
        written, proven = await _counted(world, scratch, PROJECT, warm + count)
        retagged, _ = await _counted(world, scratch, _TAGGED, tagged)
        shares = await sampled(world, scratch, warm + count)
        keeps_tags = world.storage.capabilities.copy_keeps_tags
    server = deployment.s3.kind
    most = 2 if keeps_tags else 4
    return [
        *rows(server, found),
        *wire_rows(server, "writing pass", written, at_most=2),
        *wire_rows(server, "writing pass, tagged", retagged, at_most=most),
        *wire_rows(server, "proving pass", proven, at_most=1),
    ], shares


def rows(server: str, found: Rounds) -> list[Row]:
    """Throughput and CPU time of both passes, with the aims of throughput and CPU time."""
    made: list[Row] = []
    for name, ours, theirs, against in (
        ("writing pass", found.written, found.copied, "bare aioboto3 HEAD + self-copy"),
        ("proving pass", found.proven, found.headed, "bare aioboto3 HEAD"),
    ):
        made += _compared(name, server, ours, theirs, against)
    return made


def _compared(
    name: str, server: str, ours: list[Rate], theirs: list[Rate], against: str
) -> list[Row]:
    our_rate, their_rate = [r.per_s for r in ours], [r.per_s for r in theirs]
    our_cpu, their_cpu = [r.cpu_ms for r in ours], [r.cpu_ms for r in theirs]
    return [
        Row(
            f"rotation, {name}",
            server,
            "objects/s",
            Spread(tuple(our_rate)),
            Spread(tuple(their_rate)),
            against,
            higher_is_better(our_rate, their_rate),
            at_least=_RATE_AIM,
        ),
        Row(
            f"rotation, {name}, CPU",
            server,
            "ms/object",
            Spread(tuple(our_cpu)),
            Spread(tuple(their_cpu)),
            against,
            lower_is_better(our_cpu, their_cpu),
            at_least=_CPU_AIM,
        ),
    ]


def wire_rows(server: str, name: str, counted: Counted, *, at_most: float) -> list[Row]:
    """Requests and bytes an object.

    The aims are of requests to the object itself, and of all bytes: listings, records and
    keyrings count in the second and third row.
    """
    return [
        Row(
            f"rotation, {name}, requests to an object",
            server,
            "requests",
            Spread((counted.to_it,)),
            at_most=at_most,
        ),
        Row(
            f"rotation, {name}, all requests an object",
            server,
            "requests",
            Spread((counted.requests,)),
        ),
        Row(
            f"rotation, {name}, bytes received an object",
            server,
            "KiB",
            Spread((counted.received_bytes / _KIB,)),
            at_most=_MOST_BYTES / _KIB,
        ),
    ]
