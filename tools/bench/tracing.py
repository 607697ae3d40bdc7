"""What traces cost an upload worker: off, and with one in a hundred recorded (SPEC 6.11).

All sides serve one queue at the same time, each in a worker process of its own: whatever else the
machine does, it does to all of them. What counts is each process's own CPU time for each upload
that it stored, in the middle of the drain. Two processes of one kind differ by several per cent, so
each round has fresh ones, and the side without traces is there twice. Sampled traces are
compared with the mean of those two; the difference between the two is the noise.

The last row counts Python instructions for each upload. The count varies by about 1 % between runs,
whatever the load, but it is not CPU time: native code and the exporter's thread are not counted. So
it has no aim. One recorded upload in a hundred is too few to count,
so the row is computed from workers that record no trace and every trace.

With `--before`, one of the sides is the code of an earlier checkout, which has no tracing. The
receiver is in the bench's process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tools.bench import instruction_counter, uploads
from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.processes import BenchError, serving, worker
from tools.harness.otlp_receiver import otlp_receiver
from tools.harness.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractConnection

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.otlp_receiver import Received

OFF: Final = "traces off"
AGAIN: Final = "traces off, once more"
SAMPLED: Final = "1 % of traces"
BEFORE: Final = "the code before traces"
NONE: Final = "0 % of traces"
ALL: Final = "100 % of traces"
_SHARE: Final = 0.01
# Below 3 % of the CPU time, and nothing that can be measured.
_SAMPLED_AIM: Final = 0.97
_OFF_AIM: Final = 0.99
_FIRST: Final = 0.15
_LAST: Final = 0.95
_LOOK_S: Final = 0.1
_ROUND_S: Final = 600
_COUNTED: Final = 256
_COUNTED_WARM: Final = 64
_COUNTED_ROUNDS: Final = 3
_STORED: Final = b'"event":"upload.stored"'


@dataclass(frozen=True)
class Mark:
    """What one worker had done at one moment: uploads, and CPU time in seconds."""

    uploads: int
    cpu_s: float


class _Served:
    """Counts the uploads of one worker by its log."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._log = running.log.open("rb")
        self._rest = b""
        self._count = 0

    def mark(self) -> Mark:
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        self._count += sum(_STORED in line for line in lines)
        return Mark(self._count, self._running.exact_cpu_s())

    def close(self) -> None:
        self._log.close()


async def measure(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int, before: Path | None = None
) -> list[Row]:
    """CPU time for each upload, as rows; `count` is what each side serves in a round."""
    await uploads.enroll(deployment, scratch)
    found: dict[str, list[float]] = {}
    with otlp_receiver() as receiver:
        sides = list(_sides(receiver, before).items())
        for turn in range(rounds):
            # They take turns in who starts first.
            order = sides[turn % len(sides) :] + sides[: turn % len(sides)]
            for side, cpu_ms in (await _round(deployment, scratch, turn, order, count)).items():
                found.setdefault(side, []).append(cpu_ms)
        counts: dict[str, list[float]] = {}
        for turn in range(min(rounds, _COUNTED_ROUNDS)):
            for number, (side, environ) in enumerate(_counted_sides(receiver).items()):
                count_one = _count_instructions(deployment, scratch, f"i{turn}-{number}", environ)
                counts.setdefault(side, []).append(await count_one)
        if not receiver.spans:
            raise BenchError("no trace arrived: nothing was measured")
    kind = deployment.s3.kind
    return [*rows(kind, found), instruction_row(kind, counts)]


def _sides(receiver: Received, before: Path | None) -> dict[str, dict[str, str]]:
    sides: dict[str, dict[str, str]] = {
        OFF: {},
        AGAIN: {},
        SAMPLED: _sampling(receiver, str(_SHARE)),
    }
    if before is not None:
        sides[BEFORE] = {"PYTHONPATH": f"{before}/contracts:{before}/workers"}
    return sides


def _sampling(receiver: Received, share: str) -> dict[str, str]:
    return receiver.env(
        "parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG=share,
        OTEL_BSP_SCHEDULE_DELAY="5000",  # OpenTelemetry's own default
    )


def _counted_sides(receiver: Received) -> dict[str, dict[str, str]]:
    return {OFF: {}, NONE: _sampling(receiver, "0"), ALL: _sampling(receiver, "1")}


async def _round(
    deployment: Deployment,
    scratch: Path,
    turn: int,
    order: Sequence[tuple[str, Mapping[str, str]]],
    count: int,
) -> dict[str, float]:
    name, total = f"t{turn}", count * len(order)
    async with (
        await aio_pika.connect(deployment.amqp_url) as connection,
        AsyncExitStack() as stack,
    ):
        wire = Wire(await connection.channel(on_return_raises=True), [])
        began = datetime.now(UTC)
        served: dict[str, _Served] = {}
        for number, (side, environ) in enumerate(order):
            env = deployment.worker_env(UPLOAD_CONCURRENCY=str(uploads.CONCURRENCY))
            starting = worker({**env, **environ}, scratch / f"{name}-{number}.log")
            served[side] = _Served(await stack.enter_async_context(starting))
            stack.callback(served[side].close)
        publishing = asyncio.create_task(uploads.fill(wire, deployment, name, total))
        first = await _reached(served, total * _FIRST)
        last = await _reached(served, total * _LAST)
        await publishing
        reported = await uploads.count_events(connection, deployment, name, total, since=began)
        if reported != total or await wire.depth(dead_letter_name(UPLOAD_QUEUE)):
            raise BenchError(f"of {total} uploads {reported} were reported")
    return {side: cpu_ms(first[side], last[side]) for side in served}


async def _count_instructions(
    deployment: Deployment, scratch: Path, name: str, environ: Mapping[str, str]
) -> float:
    """Python instructions per upload in a fresh, warmed-up worker."""
    env = {**deployment.worker_env(UPLOAD_CONCURRENCY=str(uploads.CONCURRENCY)), **environ}
    result = scratch / f"{name}.count"
    module = [instruction_counter.__name__, str(result)]
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        wire = Wire(await connection.channel(on_return_raises=True), [])
        log = scratch / f"{name}.log"
        async with serving(env, log, module, ready="worker started") as running:
            await _upload(connection, wire, deployment, f"{name}-warm", _COUNTED_WARM)
            running.process.send_signal(instruction_counter.BEGIN)
            await _upload(connection, wire, deployment, name, _COUNTED)
            running.process.send_signal(instruction_counter.END)
    return int(result.read_text()) / _COUNTED


async def _upload(
    connection: AbstractConnection, wire: Wire, deployment: Deployment, name: str, count: int
) -> None:
    began = datetime.now(UTC)
    await uploads.fill(wire, deployment, name, count)
    reported = await uploads.count_events(connection, deployment, name, count, since=began)
    if reported != count:
        raise BenchError(f"of {count} uploads {reported} were reported")


async def _reached(served: Mapping[str, _Served], total: float) -> dict[str, Mark]:
    """What each worker has done once all of them stored so many uploads."""
    until = time.perf_counter() + _ROUND_S
    while time.perf_counter() < until:
        marks = {side: each.mark() for side, each in served.items()}
        if sum(mark.uploads for mark in marks.values()) >= total:
            return marks
        await asyncio.sleep(_LOOK_S)
    raise BenchError(f"the workers were not done within {_ROUND_S} s")


def cpu_ms(first: Mark, last: Mark) -> float:
    """CPU milliseconds for each upload between two moments."""
    if last.uploads <= first.uploads:
        raise BenchError("a worker got no upload: more of them are needed")
    return 1000 * (last.cpu_s - first.cpu_s) / (last.uploads - first.uploads)


def rows(server: str, found: Mapping[str, Sequence[float]]) -> list[Row]:
    """The results of all rounds; the last of these rows is the noise."""
    off = [statistics.fmean(pair) for pair in zip(found[OFF], found[AGAIN], strict=True)]
    pairs = [
        (SAMPLED, found[SAMPLED], f"{OFF}, two workers", off, _SAMPLED_AIM),
        (AGAIN, found[AGAIN], OFF, found[OFF], None),
    ]
    if BEFORE in found:
        pairs.insert(1, (f"{OFF}, two workers", off, BEFORE, found[BEFORE], _OFF_AIM))
    return [
        _row(f"4 KiB uploads, {side}, CPU", server, "ms/object", ours, against, theirs, aim)
        for side, ours, against, theirs, aim in pairs
    ]


def instruction_row(server: str, counts: Mapping[str, Sequence[float]]) -> Row:
    """Python instructions per upload if 1 % are recorded."""
    sampled = [
        (1 - _SHARE) * none + _SHARE * all_of_them
        for none, all_of_them in zip(counts[NONE], counts[ALL], strict=True)
    ]
    figure = f"4 KiB uploads, {SAMPLED}, Python instructions"
    return _row(figure, server, "/object", sampled, OFF, counts[OFF], aim=None)


def _row(
    figure: str,
    server: str,
    unit: str,
    ours: Sequence[float],
    against: str,
    theirs: Sequence[float],
    aim: float | None,
) -> Row:
    ratios = lower_is_better(ours, theirs)
    return Row(
        figure, server, unit, Spread(tuple(ours)), Spread(tuple(theirs)), against, ratios,
        at_least=aim,
    )  # fmt: skip
