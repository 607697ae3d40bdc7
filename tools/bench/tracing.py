"""What traces cost an upload worker: off, and with one in a hundred recorded (SPEC 6.11).

All sides serve one queue at the same time, each in a worker process of its own: whatever else the
machine does, it does to all of them. What counts is each process's own CPU time for each upload
that it stored, in the middle of the drain. Two processes of one kind differ by a few per cent, so
each round has fresh ones, and one side is there twice: what those two differ by is the noise.

With `--before`, one of the sides is the code of an earlier checkout, which knows no traces. The
receiver is in the bench's process.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.topology import UPLOAD_QUEUE, dead_letter_name
from tools.bench import uploads
from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.processes import BenchError, worker
from tools.harness.otlp_receiver import otlp_receiver
from tools.harness.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.otlp_receiver import Received

OFF: Final = "traces off"
AGAIN: Final = "traces off, once more"
SAMPLED: Final = "1 % of traces"
BEFORE: Final = "the code before traces"
# Below 3 % of the CPU time, and nothing that can be measured.
_SAMPLED_AIM: Final = 0.97
_OFF_AIM: Final = 0.99
_FIRST: Final = 0.15
_LAST: Final = 0.95
_LOOK_S: Final = 0.1
_ROUND_S: Final = 600
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
        if not receiver.spans:
            raise BenchError("no trace arrived: nothing was measured")
    return rows(deployment.s3.kind, found)


def _sides(receiver: Received, before: Path | None) -> dict[str, dict[str, str]]:
    sides: dict[str, dict[str, str]] = {
        OFF: {},
        AGAIN: {},
        SAMPLED: receiver.env(
            "parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0.01",
            OTEL_BSP_SCHEDULE_DELAY="5000",  # OpenTelemetry's own default
        ),
    }
    if before is not None:
        sides[BEFORE] = {"PYTHONPATH": f"{before}/contracts:{before}/workers"}
    return sides


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
    """What the rounds gave, side by side; the last row is the noise."""
    pairs = [(SAMPLED, OFF, _SAMPLED_AIM), (OFF, BEFORE, _OFF_AIM), (AGAIN, OFF, None)]
    return [
        Row(
            f"4 KiB uploads, {ours}, CPU",
            server,
            "ms/object",
            Spread(tuple(found[ours])),
            Spread(tuple(found[theirs])),
            theirs,
            lower_is_better(found[ours], found[theirs]),
            at_least=aim,
        )
        for ours, theirs, aim in pairs
        if theirs in found
    ]
