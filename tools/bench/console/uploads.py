"""An upload worker while a console is looked at, and without one (SPEC 16).

One worker serves from the beginning to the end. Meanwhile a console is started, looked at, and
stopped again, several times. Only windows of a few seconds count: those while it is looked at, and
those between, in which there is no console, and the broker has no consumer of one. What a start
or a stop takes is in no window. Each window with a console is compared with the mean of the two
windows around it, so that a slow drift of the broker or the storage does not count.

Cutting or stopping a console that goes on would be faster, but not the same: to one that is
stopped the broker still delivers, and afterwards it reads what it missed.

In production the console and the browser are on other machines. Here both have the lowest
priority: they get only the time that the worker, the broker and the storage leave. So these figures
are about what a console causes elsewhere: the broker serves one more reader of each event, and
control workers answer it. They do not say what it takes from a worker that shares its cores.

| flow | what it is for |
| --- | --- |
| a full queue | throughput. The cores are busy, so the console may fall behind: its lag is a row |
| half of that rate | CPU time for each upload, and its latency: the cores have time |

At half of the rate, every core is kept busy at the lowest priority, with a console and without one.
Otherwise a console would also slow the core next to its own, which is often the second thread of
the same physical core.

CPU time is read from outside: the worker's for each upload, and the console's for each event, which
includes its share of the pages.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

import aio_pika

from keyturn.topology import EXCHANGE, UPLOAD_QUEUE, dead_letter_name
from tools.bench import against_plain, uploads
from tools.bench.console.processes import watched_console
from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.processes import BenchError, busy_cores, worker
from tools.harness import stored_objects
from tools.harness.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence
    from pathlib import Path

    from tools.bench.console.processes import WatchedConsole
    from tools.bench.processes import Running
    from tools.harness.console import ConsoleDeployment

AGAINST: Final = "no console, before and after"
FIGURE: Final = "4 KiB uploads, a console looked at"
_AIM: Final = 0.99
_WINDOW_S: Final = 5.0
_QUIET_S: Final = 1.0
_WARM_S: Final = 5.0
# Two windows, and a start and a stop of the console on busy cores.
_TURN_S: Final = 2 * _WINDOW_S + 6.0
# A worker is faster in a long drain than in the short one that measures how many it needs.
_SPARE: Final = 1.6
_WARM_UPLOADS: Final = 2000
_LATE_S: Final = 30


@dataclass(frozen=True)
class Mark:
    """What had been done at one moment."""

    at_s: float
    uploads: int
    worker_s: float


@dataclass(frozen=True)
class Window:
    """What one window gave.

    Attributes:
        latencies_ms: From publish to event, of the uploads that were published in it.
        console_s: CPU time of the console.
        lag_s: How old the newest event was, at the end, that the console had read.
        pages: How often its page was read.
    """

    uploads: int
    seconds: float
    worker_s: float
    latencies_ms: tuple[float, ...] = ()
    console_s: float = 0.0
    lag_s: float = 0.0
    pages: int = 0

    @property
    def per_s(self) -> float:
        return self.uploads / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.worker_s / self.uploads

    def latency_ms(self, per_cent: int) -> float:
        """A percentile of the latencies."""
        cuts = statistics.quantiles(self.latencies_ms, n=100, method="inclusive")
        return cuts[per_cent - 1]


@dataclass(frozen=True)
class Turns:
    """Windows in turns: the first and the last are without a console."""

    alone: tuple[Window, ...]
    seen: tuple[Window, ...]

    def against(self, values: Sequence[float]) -> list[float]:
        """For each window with a console, the mean of the values of the windows around it."""
        return [(before + after) / 2 for before, after in pairwise(values)]


class Flow(Protocol):
    """Uploads that are being served."""

    async def mark(self) -> Mark:
        """What has been done until now."""

    async def latencies_ms(self, first: Mark, last: Mark) -> tuple[float, ...]:
        """Of the uploads that were published in between; none if that is not measured."""


@dataclass
class FullQueue:
    """A queue that is full before the worker begins."""

    wire: Wire
    running: Running
    count: int

    async def mark(self) -> Mark:
        """What has been done until now.

        Raises:
            BenchError: the queue is nearly empty.
        """
        depth = await self.wire.depth(UPLOAD_QUEUE)
        if depth < 2 * uploads.CONCURRENCY:
            raise BenchError("the queue was empty before the last window: it was filled too little")
        return Mark(time.perf_counter(), self.count - depth, self.running.exact_cpu_s())

    async def latencies_ms(self, first: Mark, last: Mark) -> tuple[float, ...]:  # noqa: ARG002
        """None: here they are the queue's length."""
        return ()


@dataclass
class EvenRate:
    """Uploads that are published at an even rate, and when their events came."""

    running: Running
    sent: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)

    async def note(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Note an event."""
        now = time.perf_counter()
        upload_id = json.loads(message.body).get("upload_id")
        if upload_id in self.sent:
            self.arrived[upload_id] = now
        await message.ack()

    async def publish(
        self,
        connection: aio_pika.abc.AbstractConnection,
        letters: Sequence[against_plain.Letter],
        rate: int,
    ) -> None:
        """Publish all, whatever the confirmations take."""
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        async with asyncio.TaskGroup() as group:
            async for _, letter in against_plain.paced(letters, rate, time.perf_counter()):
                message = against_plain.message_of(letter)
                self.sent[letter.upload_id] = time.perf_counter()
                group.create_task(exchange.publish(message, "upload.requested"))

    async def mark(self) -> Mark:
        """What has been done until now."""
        return Mark(time.perf_counter(), len(self.arrived), self.running.exact_cpu_s())

    async def latencies_ms(self, first: Mark, last: Mark) -> tuple[float, ...]:
        """Of the uploads that were published in between; waits for their events."""
        ids = [each for each, at in self.sent.items() if first.at_s <= at < last.at_s]
        await self.all_arrived(ids)
        return tuple(1000 * (self.arrived[each] - self.sent[each]) for each in ids)

    async def all_arrived(self, ids: Sequence[str]) -> None:
        """Wait for the events of these uploads.

        Raises:
            BenchError: one does not come.
        """
        until = time.perf_counter() + _LATE_S
        while missing := [each for each in ids if each not in self.arrived]:
            if time.perf_counter() > until:
                raise BenchError(f"{len(missing)} events did not come")
            await asyncio.sleep(0.05)


async def measure(
    deployment: ConsoleDeployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """All rows.

    Args:
        deployment: With a console.
        scratch: For logs.
        count: Uploads of the round that warms up, and says how fast the worker is.
        rounds: Windows with a console in each flow.
    """
    await uploads.enroll(deployment, scratch)
    async with worker(deployment.worker_env(), scratch / "control.log", "control"):
        per_s = (await uploads.ours(deployment, scratch, "warm", max(count, _WARM_UPLOADS))).per_s
        full = await _full_queue(deployment, scratch, per_s, rounds)
        # Half of what it did in the long drain, which says it better than the short one.
        rate = round(statistics.median(window.per_s for window in full.alone) / 2)
        even = await _even_rate(deployment, scratch, rate, rounds)
    server = deployment.s3.kind
    return [
        *rows(f"{FIGURE}, a full queue", server, full),
        *rows(f"{FIGURE}, {rate}/s", server, even),
    ]


async def _full_queue(
    deployment: ConsoleDeployment, scratch: Path, per_s: float, rounds: int
) -> Turns:
    count = int(per_s * _SPARE * (_WARM_S + _WINDOW_S + rounds * _TURN_S))
    # Not open_wire: following all events would take CPU time from what is measured.
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        wire = Wire(await connection.channel(on_return_raises=True), [])
        await uploads.fill(wire, deployment, "full", count)
        env = deployment.worker_env(UPLOAD_CONCURRENCY=str(uploads.CONCURRENCY))
        async with worker(env, scratch / "full.log") as running:
            await asyncio.sleep(_WARM_S)
            turns = await _turns(FullQueue(wire, running, count), deployment, scratch, rounds)
            await uploads.drain(wire, running)
        await _check(deployment, wire, "full", count)
        return turns


async def _even_rate(deployment: ConsoleDeployment, scratch: Path, rate: int, rounds: int) -> Turns:
    count = int(rate * _SPARE * (_WARM_S + _WINDOW_S + rounds * _TURN_S))
    letters = await asyncio.to_thread(against_plain.our_letters, deployment, "even", count)
    env = deployment.worker_env(UPLOAD_CONCURRENCY=str(uploads.CONCURRENCY))
    async with (
        await aio_pika.connect(deployment.amqp_url) as publishing,
        await aio_pika.connect(deployment.amqp_url) as following,
        worker(env, scratch / "even.log") as running,
        busy_cores(scratch),
    ):
        flow = EvenRate(running)
        await against_plain.follow(following, against_plain.OURS, flow.note)
        async with _goes_on(flow.publish(publishing, letters, rate)):
            await asyncio.sleep(_WARM_S)
            turns = await _turns(flow, deployment, scratch, rounds)
        await flow.all_arrived([*flow.sent])
        wire = Wire(await publishing.channel(on_return_raises=True), [])
        await _check(deployment, wire, "even", len(flow.sent))
    return turns


@asynccontextmanager
async def _goes_on(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Work that must go on until the block ends."""
    working = asyncio.create_task(work)
    try:
        yield
        if working.done():
            working.result()
            raise BenchError("the uploads ended before the last window")
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _turns(flow: Flow, deployment: ConsoleDeployment, scratch: Path, rounds: int) -> Turns:
    alone, seen = [await _window(flow)], list[Window]()
    name = type(flow).__name__
    for turn in range(rounds):
        async with watched_console(deployment, scratch, f"{name}-{turn}") as watched:
            await asyncio.sleep(_QUIET_S)
            seen.append(await _window(flow, watched))
        await asyncio.sleep(_QUIET_S)
        alone.append(await _window(flow))
    return Turns(tuple(alone), tuple(seen))


async def _window(flow: Flow, watched: WatchedConsole | None = None) -> Window:
    console = watched.console.running if watched else None
    pages = watched.pages() if watched else 0
    console_s = console.exact_cpu_s() if console else 0.0
    first = await flow.mark()
    await asyncio.sleep(_WINDOW_S)
    last = await flow.mark()
    return Window(
        last.uploads - first.uploads,
        last.at_s - first.at_s,
        last.worker_s - first.worker_s,
        console_s=console.exact_cpu_s() - console_s if console else 0.0,
        pages=watched.pages() - pages if watched else 0,
        lag_s=await watched.lag_s() if watched else 0.0,
        latencies_ms=await flow.latencies_ms(first, last),
    )


async def _check(deployment: ConsoleDeployment, wire: Wire, name: str, count: int) -> None:
    """Every upload must be stored, and no request be a dead letter."""
    until = time.perf_counter() + _LATE_S
    while True:
        # In a thread: a long listing would keep this loop from answering the broker's heartbeats.
        keys = await asyncio.to_thread(
            stored_objects.list_keys, deployment, f"{uploads.PROJECT}/{name}/"
        )
        dead = await wire.depth(dead_letter_name(UPLOAD_QUEUE))
        if (len(keys), dead) == (count, 0):
            return
        if dead or time.perf_counter() > until:
            raise BenchError(f"of {count} uploads {len(keys)} stored, {dead} dead letters")


def rows(figure: str, server: str, turns: Turns) -> list[Row]:
    """What the worker took and did, with aims, and then what the console took."""
    seen_ms = [window.cpu_ms for window in turns.seen]
    alone_ms = turns.against([window.cpu_ms for window in turns.alone])
    found = [
        Row(
            f"{figure}, worker CPU",
            server,
            "ms/upload",
            Spread(tuple(seen_ms)),
            Spread(tuple(alone_ms)),
            AGAINST,
            lower_is_better(seen_ms, alone_ms),
            at_least=_AIM,
        )
    ]
    if any(window.latencies_ms for window in turns.seen):
        found += [_latency(figure, server, turns, per_cent) for per_cent in (50, 99)]
    else:
        seen_per_s = [window.per_s for window in turns.seen]
        alone_per_s = turns.against([window.per_s for window in turns.alone])
        found.append(
            Row(
                f"{figure}, throughput",
                server,
                "uploads/s",
                Spread(tuple(seen_per_s)),
                Spread(tuple(alone_per_s)),
                AGAINST,
                higher_is_better(seen_per_s, alone_per_s),
                at_least=_AIM,
            )
        )
    of_console = [
        ("console CPU", "µs/event", [1e6 * each.console_s / each.uploads for each in turns.seen]),
        ("pages read", "pages/s", [each.pages / each.seconds for each in turns.seen]),
        ("console's lag", "s", [each.lag_s for each in turns.seen]),
    ]
    return found + [
        Row(f"{figure}, {name}", server, unit, Spread(tuple(values)))
        for name, unit, values in of_console
    ]


def _latency(figure: str, server: str, turns: Turns, per_cent: int) -> Row:
    """The time from publish to event; it has no aim, since a few slow writes decide about it."""
    seen = [window.latency_ms(per_cent) for window in turns.seen]
    alone = turns.against([window.latency_ms(per_cent) for window in turns.alone])
    return Row(
        f"{figure}, publish to event, p{per_cent}",
        server,
        "ms",
        Spread(tuple(seen)),
        Spread(tuple(alone)),
        AGAINST,
        lower_is_better(seen, alone),
    )
