"""Keyturn against the plain pipeline: a full queue drained, and latency at a steady rate (SPEC 7).

Both sides get the same bodies, the same storage, the same broker and one worker process, and
take turns within a round. Latency is from the publish to the arrival of the event at a reader of
the stream of events, both in the bench's own process: signatures are made before, so that no
side pays for its requests there.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.topology import EVENTS_STREAM, EXCHANGE
from tools.bench import plain, uploads
from tools.bench.figures import Comparison, Rate, Row, Spread, lower_is_better
from tools.bench.processes import BenchError, serving, worker
from tools.harness import stored_objects
from tools.harness.wire import Wire, documents_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment

_RATES: Final = (20, 50, 150, 300)
AGAINST: Final = "plain FastStream + aioboto3 + AES-GCM worker"
_WARM_S: Final = 2
_LATE_S: Final = 30
_STORED_EVERY_S: Final = 0.2
# Draining a full queue.
_RATE_AIM: Final = 1.7
_CPU_AIM: Final = 2.3
_LATENCY_AIM: Final = 1.0


@dataclass(frozen=True)
class Side:
    """Where one side's requests go, and where its events come."""

    exchange: str
    events: str


OURS: Final = Side(EXCHANGE, EVENTS_STREAM)
PLAIN: Final = Side(plain.EXCHANGE, plain.EVENTS)


@dataclass
class Latencies:
    """Milliseconds from publish to event, of the rounds at one rate."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def add(self, values_ms: Sequence[float]) -> None:
        """Add a round."""
        cuts = statistics.quantiles(values_ms, n=100, method="inclusive")
        self.p50.append(cuts[49])
        self.p99.append(cuts[98])


def _plain_letters(prefix: str, count: int) -> list[uploads.Letter]:
    letters = []
    for number in range(count):
        upload_id = str(uuid.uuid4())
        body = plain.document(upload_id, uploads.PROJECT, f"{prefix}/{number}", uploads.BODY)
        letters.append(uploads.Letter(upload_id, body, {}))
    return letters


def _plain_worker(deployment: Deployment, log: Path) -> AbstractAsyncContextManager[Running]:
    env = {**deployment.s3_env(), "KEYTURN_AMQP_URL": deployment.amqp_url}
    return serving(env, log, ["tools.bench.plain"], ready=plain.READY)


def _our_worker(deployment: Deployment, log: Path) -> AbstractAsyncContextManager[Running]:
    env = deployment.worker_env(UPLOAD_CONCURRENCY=str(uploads.CONCURRENCY))
    return worker(env, log)


async def _drained(deployment: Deployment, scratch: Path, name: str, count: int) -> Rate:
    """One round of the plain worker on a full queue."""
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        wire = Wire(await connection.channel(on_return_raises=True), [])
        exchange = await wire.channel.get_exchange(PLAIN.exchange, ensure=False)
        await uploads.publish_all(exchange, _plain_letters(name, count))
        async with _plain_worker(deployment, scratch / f"{name}.log") as running:
            seen = await uploads.drain(wire, running, plain.QUEUE)
            # The queue is empty before the last ones are stored.
            stored = await _stored(deployment, name, count)
    if stored != count:
        raise BenchError(f"the plain worker stored {stored} of {count} uploads")
    return uploads.steady(seen, count)


async def _stored(deployment: Deployment, name: str, count: int) -> int:
    """How many objects of a round exist, once there are `count`, or after a while."""
    until = time.perf_counter() + _LATE_S
    while True:
        stored = len(stored_objects.list_keys(deployment, f"{uploads.PROJECT}/{name}/"))
        if stored >= count or time.perf_counter() > until:
            return stored
        await asyncio.sleep(_STORED_EVERY_S)


async def _declare(deployment: Deployment, scratch: Path) -> None:
    """Let the plain worker declare its queue once, as ours does at `uploads.enroll`."""
    async with _plain_worker(deployment, scratch / "plain-declare.log"):
        pass


async def measure_drained(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Throughput and CPU time of both on a full queue."""
    await uploads.enroll(deployment, scratch)
    await _declare(deployment, scratch)
    ours, theirs = list[Rate](), list[Rate]()
    for number in range(rounds):
        ours.append(await uploads.ours(deployment, scratch, f"o{number}", count))
        theirs.append(await _drained(deployment, scratch, f"p{number}", count))
    figure = "4 KiB uploads, a full queue"
    compared = Comparison(figure, deployment.s3.kind, AGAINST, ours, theirs)
    return [compared.throughput(_RATE_AIM), compared.cpu(_CPU_AIM)]


async def measure_latency(
    deployment: Deployment, scratch: Path, *, seconds: int, rounds: int
) -> list[Row]:
    """Median and 99th percentile of both at each rate."""
    await uploads.enroll(deployment, scratch)
    await _declare(deployment, scratch)
    rows: list[Row] = []
    for rate in _RATES:
        ours, theirs = Latencies(), Latencies()
        count = rate * (seconds + _WARM_S)
        for number in range(rounds):
            name = f"l{rate}-{number}"
            letters = uploads.letters(deployment, f"o{name}", count)
            async with _our_worker(deployment, scratch / f"o{name}.log"):
                ours.add(await _steady(deployment, OURS, letters, rate))
            letters = _plain_letters(f"p{name}", count)
            async with _plain_worker(deployment, scratch / f"p{name}.log"):
                theirs.add(await _steady(deployment, PLAIN, letters, rate))
        rows += [
            _row(deployment.s3.kind, rate, "p50", ours.p50, theirs.p50),
            _row(deployment.s3.kind, rate, "p99", ours.p99, theirs.p99),
        ]
    return rows


def _row(server: str, rate: int, name: str, ours: list[float], theirs: list[float]) -> Row:
    return Row(
        f"4 KiB uploads at {rate}/s, publish to event, {name}",
        server,
        "ms",
        Spread(tuple(ours)),
        Spread(tuple(theirs)),
        AGAINST,
        lower_is_better(ours, theirs),
        at_least=_LATENCY_AIM,
    )


async def _steady(
    deployment: Deployment, side: Side, letters: Sequence[uploads.Letter], rate: int
) -> list[float]:
    """Milliseconds from publish to event of each request, but for those of the first seconds.

    Raises:
        BenchError: an event did not come.
    """
    async with (
        await aio_pika.connect(deployment.amqp_url) as publishing,
        await aio_pika.connect(deployment.amqp_url) as following,
    ):
        arrived: dict[str, float] = {}
        complete = asyncio.Event()
        expected = {letter.upload_id for letter in letters}

        async def note(message: AbstractIncomingMessage) -> None:
            now = time.perf_counter()
            for event in documents_in(message.body):
                if (upload_id := event.get("upload_id")) in expected:
                    arrived[upload_id] = now
            if len(arrived) == len(expected):
                complete.set()
            await message.ack()

        await _follow(following, side, note)
        sent = await _publish(publishing, side, letters, rate)
        try:
            async with asyncio.timeout(_LATE_S):
                await complete.wait()
        except TimeoutError as exc:
            raise BenchError(f"{len(expected) - len(arrived)} events did not come") from exc
    counted = letters[rate * _WARM_S :]
    return [1000 * (arrived[each.upload_id] - sent[each.upload_id]) for each in counted]


async def _follow(connection: AbstractConnection, side: Side, note: object) -> None:
    """Call `note` with each event from now on."""
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=500)
    stream = await channel.get_queue(side.events, ensure=False)
    await stream.consume(note, arguments={"x-stream-offset": "next"})  # type: ignore[arg-type]


async def _publish(
    connection: AbstractConnection, side: Side, letters: Sequence[uploads.Letter], rate: int
) -> dict[str, float]:
    """Publish at an even rate, whatever the confirmations take; when each was sent."""
    channel = await connection.channel(on_return_raises=True)
    exchange = await channel.get_exchange(side.exchange, ensure=False)
    sent: dict[str, float] = {}
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        async for letter in paced(letters, rate, began):
            message = letter.message()
            sent[letter.upload_id] = time.perf_counter()
            group.create_task(exchange.publish(message, plain.UPLOAD))
    return sent


async def paced(
    letters: Sequence[uploads.Letter], rate: int, began: float
) -> AsyncIterator[uploads.Letter]:
    """The requests, each at its time, or at once where that is over."""
    for number, letter in enumerate(letters):
        wait_s = began + number / rate - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        yield letter
