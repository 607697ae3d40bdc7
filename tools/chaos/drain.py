"""The profile `load`: upload workers drain a long queue, in peace or while something is stopped.

| part | while the queue is drained (SPEC 6.2, 7) |
| --- | --- |
| `drain` | nothing is stopped; once by each number of workers |
| `restart` | all workers get SIGTERM at once, and new ones start |
| `deploy` | each worker in turn gets a successor that serves, and SIGTERM |
| `broker` | the broker is stopped and started; the workers stay |
| `broker-kill` | the broker is killed and started; the workers stay |

All uploads are confirmed before the first worker starts, and afterwards every object, event and
dead letter is counted. Where something is stopped, a proxy counts the puts as well, so that the
bucket is not the only evidence that no upload was stored twice. Events are published at least once:
after SIGTERM alone, each exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sys
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aio_pika
import psutil
from aio_pika.exceptions import AMQPException, ChannelInvalidStateError
from rich.console import Console

from keyturn import topology
from keyturn.crypto import SealError
from keyturn.publisher import Publisher
from tools.bench.figures import Results, number, table
from tools.chaos.drained import Drained, DrainError, Outcome, Sample, pace_of, steady_per_s
from tools.chaos.evidence import on_broker
from tools.chaos.fault_proxy import run_fault_proxy
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import peak_bytes, worker
from tools.harness.scene import served_uploads
from tools.harness.wire import SignedPublisher, Wire, open_wire
from tools.servers import Servers
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tools.chaos.fault_proxy import FaultProxy
    from tools.harness.process import WorkerProcess
    from tools.servers import RabbitMQ

PROJECT: Final = "load"
PARTS: Final = ("drain", "restart", "deploy", "broker", "broker-kill")
_CONCURRENCY: Final = 64
_SIZE_BYTES: Final = 4096
_NAMESPACE: Final = uuid.UUID("5b1f6c9e-3c0a-4f8e-9d55-2f1d0c7a9b10")
_MIB: Final = 2**20
# What a run of each part has: uploads, and disruptions.
_UPLOADS: Final = {"drain": 50_000} | dict.fromkeys(PARTS[1:], 20_000)
_TIMES: Final = {"restart": 5, "deploy": 5, "broker": 2, "broker-kill": 2}
_QUICK: Final = 6_000
_CREW: Final = 2
_PUBLISH_S: Final = 120.0
_PUBLISHED_AT_ONCE: Final = 256
_STAGED_AT_ONCE: Final = 8
_INLINE_MAX_BYTES: Final = 256 * 1024
_LOOK_S: Final = 0.2
_START_S: Final = 60
_SLOWEST_PER_S: Final = 40
_STOP_S: Final = 90
_SAMPLE_OPENED: Final = 50
_HELD_S: Final = 1.0


@dataclass(frozen=True)
class Uploads:
    """`count` uploads of `size_bytes` each, of the run `name`, by number.

    Key, id and bytes depend only on name and number; ids differ between runs.
    """

    name: str
    count: int
    size_bytes: int = _SIZE_BYTES

    def key(self, number: int) -> str:
        """The object's key."""
        return f"{self.name}/{number:09}"

    def upload_id(self, number: int) -> str:
        """The upload's id."""
        return str(uuid.uuid5(_NAMESPACE, self.key(number)))

    def body(self, number: int) -> bytes:
        """The plaintext; no two uploads have the same."""
        return hashlib.shake_128(self.key(number).encode()).digest(self.size_bytes)


async def enroll(deployment: Deployment) -> None:
    """Enroll the project; the worker that does it declares the topology too."""
    async with (
        worker(deployment.worker_env(), "control") as running,
        open_wire(deployment) as wire,
    ):
        await SignedPublisher(deployment, wire).enroll(PROJECT)
        # Its event comes before its acknowledgment: killed now, the worker could leave it waiting.
        if (exit_status := await running.terminate()) != 0:
            raise DrainError(f"the enrolling worker exited with {exit_status}")


async def fill(deployment: Deployment, uploads: Uploads) -> float:
    """Publish all uploads, each confirmed; returns the publisher's CPU milliseconds for each."""
    began_s, waiting = time.process_time(), iter(range(uploads.count))
    inline = uploads.size_bytes <= _INLINE_MAX_BYTES
    async with Publisher.open(
        deployment.publisher_settings(),
        s3=deployment.s3_settings(),
        publish_timeout_s=_PUBLISH_S,
    ) as publisher:

        async def publish() -> None:
            for each in waiting:
                await publisher.upload(
                    PROJECT,
                    uploads.key(each),
                    uploads.body(each),
                    upload_id=uploads.upload_id(each),
                )

        async with asyncio.TaskGroup() as group:
            for _ in range(_PUBLISHED_AT_ONCE if inline else _STAGED_AT_ONCE):
                group.create_task(publish())
    return 1000 * (time.process_time() - began_s) / uploads.count


@dataclass
class Crew:
    """The upload workers of a drain: started, stopped, replaced."""

    env: dict[str, str]
    stack: AsyncExitStack
    running: list[WorkerProcess] = field(default_factory=list)
    every: list[WorkerProcess] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)

    async def start(self, count: int = 1) -> None:
        """Start `count` more workers; they serve when this returns."""
        starting = [
            self.stack.enter_async_context(worker(self.env, "upload")) for _ in range(count)
        ]
        started = await asyncio.gather(*starting)
        self.running += started
        self.every += started

    async def stop(self, *which: WorkerProcess) -> None:
        """Send SIGTERM to these workers, by default to all, and wait until they exit.

        Raises:
            DrainError: one did not exit in time, or not with status 0.
        """
        stopping = which or tuple(self.running)
        for each in stopping:
            self.peaks_bytes.append(peak_bytes(each.process.pid))
            each.process.send_signal(signal.SIGTERM)
        for each in stopping:
            self.running.remove(each)
            try:
                exit_status = await each.ended(timeout_s=_STOP_S)
            except TimeoutError as exc:
                raise DrainError(f"a worker did not exit within {_STOP_S} s") from exc
            if exit_status != 0:
                raise DrainError(f"a worker exited with {exit_status}: {each.lines[-20:]}")

    def cpu_s(self) -> float:
        """CPU seconds of the present workers so far."""
        times = [psutil.Process(each.process.pid).cpu_times() for each in self.running]
        return sum(each.user + each.system for each in times)

    def served(self) -> list[dict[str, Any]]:
        """The log lines of all uploads that the workers have stored."""
        return [line for each in self.every for line in served_uploads(each)]

    async def wait_until_served(self, uploads: Uploads) -> None:
        """Wait until each upload is acknowledged: an empty queue does not show unacknowledged ones.

        Raises:
            DrainError: it took too long.
        """
        until = time.perf_counter() + _START_S + uploads.count / _SLOWEST_PER_S
        while len({line["upload_id"] for line in self.served()}) < uploads.count:
            if time.perf_counter() > until:
                raise DrainError("not every upload was acknowledged in time")
            await asyncio.sleep(0.5)


async def drain(
    deployment: Deployment,
    uploads: Uploads,
    part: str = "drain",
    *,
    workers: int,
    times: int = 0,
    broker: RabbitMQ | None = None,
    delay_s: float = 0.0,
    at_once: int = _CONCURRENCY,
    full: Callable[[], None] = lambda: None,
) -> Drained:
    """Fill the queue of an enrolled project, drain it, and check the outcome.

    Args:
        deployment: A deployment whose bucket has none of these uploads.
        uploads: What is published first.
        part: One of `PARTS`.
        workers: The number of workers.
        times: The maximum number of disruptions; for a deploy, rounds that replace each worker.
        broker: The deployment's broker, to be stopped.
        delay_s: The delay of each request for an object; if set, they are delayed further while a
            successor starts, so that a short queue is not empty before it serves.
        at_once: Concurrent uploads of each worker.
        full: Called while all uploads wait.

    Raises:
        DrainError: an upload was lost, stored twice, or reported twice without a crash.
    """
    publisher_cpu_ms = await fill(deployment, uploads)
    full()
    async with AsyncExitStack() as stack:
        env = deployment.worker_env(UPLOAD_CONCURRENCY=str(at_once))
        between: FaultProxy | None = None
        if part != "drain":
            between = await stack.enter_async_context(run_fault_proxy(deployment.s3.endpoint_url))
            between.delay_s = delay_s
            env["KEYTURN_S3_ENDPOINT_URL"] = between.url
        crew = Crew(env, stack)
        await crew.start(workers)
        began, cpu_s = time.perf_counter(), crew.cpu_s()
        disturb = _disturbance(part, crew, workers, broker, between)
        queue = await stack.enter_async_context(_Queue(deployment.amqp_url))
        samples, under_load = await _watch(queue, crew, uploads.count, times, disturb)
        wall_s = time.perf_counter() - began
        await crew.wait_until_served(uploads)
        cpu_s = crew.cpu_s() - cpu_s
        await crew.stop()
        served = crew.served()
    puts = Counter[str]() if between is None else between.puts
    found = Drained(
        part,
        workers,
        wall_s,
        await read_outcome(deployment, uploads),
        max(crew.peaks_bytes) / _MIB,
        steady_per_s(served),
        1000 * cpu_s / uploads.count,
        publisher_cpu_ms,
        sum(bool(line["again"]) for line in served),
        under_load,
        created=puts.total(),
        created_again=puts.total() - len(puts),
        unanswered=0 if between is None else between.unanswered,
        pace=pace_of(samples) if part == "drain" else None,
    )
    found.check()
    return found


def _disturbance(
    part: str, crew: Crew, workers: int, broker: RabbitMQ | None, between: FaultProxy | None
) -> Callable[[], Awaitable[None]]:
    async def restart() -> None:
        await crew.stop()
        await crew.start(workers)

    async def deploy() -> None:
        assert between is not None
        usual_s = between.delay_s
        for each in list(crew.running):
            between.delay_s = _HELD_S if usual_s else 0.0
            await crew.start()
            between.delay_s = usual_s
            await crew.stop(each)

    async def restart_broker() -> None:
        assert broker is not None
        await asyncio.to_thread(broker.restart)

    async def kill_broker() -> None:
        assert broker is not None
        for queue in (topology.UPLOAD_QUEUE, topology.dead_letter_name(topology.UPLOAD_QUEUE)):
            await asyncio.to_thread(broker.wait_until_registered, queue)
        await asyncio.to_thread(broker.wait_until_streams_registered)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)

    return {
        "drain": restart,
        "restart": restart,
        "deploy": deploy,
        "broker": restart_broker,
        "broker-kill": kill_broker,
    }[part]


class _Queue:
    """The upload queue's depth, over a connection that is renewed after each loss."""

    def __init__(self, amqp_url: str) -> None:
        self._amqp_url = amqp_url
        self._stack = AsyncExitStack()
        self._wire: Wire | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def depth(self) -> int | None:
        """The number of messages that wait; None while the broker does not tell."""
        try:
            if self._wire is None:
                connection = await aio_pika.connect(self._amqp_url)
                await self._stack.enter_async_context(connection)
                self._wire = Wire(await connection.channel(), [])
            return await self._wire.depth(topology.UPLOAD_QUEUE)
        except (OSError, AMQPException, ChannelInvalidStateError):
            self._wire = None
            return None


async def _watch(
    queue: _Queue, crew: Crew, count: int, times: int, disturb: Callable[[], Awaitable[None]]
) -> tuple[list[Sample], int]:
    """Sample until the queue is empty, and disrupt `times` times in its first half or a bit later.

    Returns the samples, and how many disruptions ended before the queue was empty.

    Raises:
        DrainError: none did, or the queue was not drained in time.
    """
    pending = [count - each * count // (2 * times + 1) for each in range(1, times + 1)]
    samples, under_load = list[Sample](), 0
    until = time.perf_counter() + _START_S + count / _SLOWEST_PER_S
    watched = {id(each): psutil.Process(each.process.pid) for each in crew.running}
    while time.perf_counter() < until:
        depth = await queue.depth()
        if depth == 0:
            samples.append(_sample(0, watched) if not times else Sample(time.perf_counter(), 0))
            if times and not under_load:
                raise DrainError("the queue was empty before the first disruption ended")
            return samples, under_load
        if depth is not None and pending and depth <= pending[0]:
            pending.pop(0)
            await disturb()
            while (left := await queue.depth()) is None and time.perf_counter() < until:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
            under_load += left != 0
        elif depth is not None and not times:
            samples.append(_sample(depth, watched))
        await asyncio.sleep(_LOOK_S)
    raise DrainError("the queue was not drained in time")


def _sample(depth: int, watched: dict[int, psutil.Process]) -> Sample:
    return Sample(
        time.perf_counter(),
        depth,
        tuple(each.memory_info().rss for each in watched.values()),
    )


async def read_outcome(deployment: Deployment, uploads: Uploads) -> Outcome:
    """Count everything, and open some evenly spread objects with both keys.

    Raises:
        DrainError: an object does not open to the uploaded bytes.
    """
    broker = await on_broker(deployment)
    counts, other = count_events(broker.events, uploads)
    some = range(0, uploads.count, max(1, uploads.count // _SAMPLE_OPENED))
    await asyncio.to_thread(_check_objects, deployment, uploads, some)
    stored = await asyncio.to_thread(
        stored_objects.list_keys, deployment, f"{PROJECT}/{uploads.name}/"
    )
    return Outcome(
        uploads=uploads.count,
        stored=len(stored),
        reported=len(counts),
        reported_again=counts.total() - len(counts),
        other_events=other,
        waiting=sum(n for name, n in broker.depths.items() if name not in topology.DEAD_QUEUES),
        dead=len(broker.letters),
    )


def count_events(events: list[dict[str, Any]], uploads: Uploads) -> tuple[Counter[str], int]:
    """The number of `upload.stored` events of each upload, and of other events, of this run."""
    keys = {uploads.upload_id(each): uploads.key(each) for each in range(uploads.count)}
    ours = [event for event in events if event.get("upload_id") in keys]
    stored = Counter(
        event["upload_id"]
        for event in ours
        if event["type"] == "upload.stored" and event["key"] == keys[event["upload_id"]]
    )
    return stored, len(ours) - stored.total()


def _check_objects(deployment: Deployment, uploads: Uploads, numbers: range) -> None:
    for each in numbers:
        key = uploads.key(each)
        for by in ("user", "admin"):
            try:
                plaintext = stored_objects.decrypt(deployment, PROJECT, key, by)
            except SealError as exc:
                raise DrainError(f"{key} does not open with its {by} key") from exc
            if plaintext != uploads.body(each):
                raise DrainError(f"{key} opens to bytes other than the uploaded ones")
        shown = stored_objects.read_object(deployment, PROJECT, key)
        if shown.metadata["enc-upload"] != uploads.upload_id(each):
            raise DrainError(f"{key} belongs to another upload")


# The command.


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos load", description="Load Keyturn.")
    parser.add_argument(
        "--only", type=_parts, default=PARTS, metavar="PART,PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--uploads",
        type=int,
        metavar="N",
        help=f"uploads in the queue ({_UPLOADS['drain']} for drain, {_UPLOADS['broker']} else)",
    )
    parser.add_argument(
        "--bytes", type=int, default=_SIZE_BYTES, metavar="N", help="bytes of an upload"
    )
    parser.add_argument(
        "--workers", type=_numbers, default=[1, 2, 4], metavar="N,N", help="workers for drain"
    )
    parser.add_argument("--quick", action="store_true", help=f"a short run with {_QUICK} uploads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser.parse_args(argv)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown parts: {', '.join(sorted(unknown))}")
    return parts


def _numbers(text: str) -> list[int]:
    numbers = [int(each) for each in text.split(",")]
    if min(numbers) < 1:
        raise ValueError("at least one")
    return numbers


async def _run(part: str, workers: int, given: argparse.Namespace) -> Drained:
    # Fresh servers for each drain: data of an earlier one does not affect it.
    with Servers("ceph", environ={}) as servers:
        deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
        await enroll(deployment)
        count = given.uploads or (_QUICK if given.quick else _UPLOADS[part])
        return await drain(
            deployment,
            Uploads(f"{part}-{workers}", count, given.bytes),
            part,
            workers=workers,
            times=0 if part == "drain" else 1 if given.quick else _TIMES[part],
            broker=servers.rabbitmq,
        )


def main(argv: list[str]) -> int:
    """Run the requested parts, print a table; returns the exit status.

    0 if every upload was handled once, even if an aim was missed. 1 if an upload was lost, stored
    twice, or reported twice without a crash, or if a measurement failed.
    """
    given = _arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 150)
    results, failed, began = Results(), False, time.monotonic()
    for part in given.only:
        try:
            for workers in given.workers if part == "drain" else [_CREW]:
                console.print(f"{part} by {workers} …")
                found = asyncio.run(_run(part, workers, given))
                results.rows += found.rows("ceph")
                if found.pace is not None:
                    rates = ", ".join(map(number, found.pace.tenths_per_s))
                    results.notes.append(f"{workers} workers: objects/s in each tenth: {rates}")
        except (DrainError, ServerError, ValueError) as exc:
            failed = True
            results.notes.append(f"{part}: FAILED: {exc}")
        # After each part: an interrupted run keeps its results.
        if given.json:
            given.json.write_text(results.as_json())
    results.notes.append(
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end, "
        f"{time.monotonic() - began:.0f} s in total"
    )
    console.print(table(results.rows, title="Keyturn load"))
    for note in results.notes:
        console.print(note, markup=False)
    if given.json:
        given.json.write_text(results.as_json())
    return 1 if failed else 0
