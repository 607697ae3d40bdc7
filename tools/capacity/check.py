"""The model against the simulation: from one worker and no latency, everything else.

Of each operation one run calibrates: one worker, no latency. What it shows of the servers'
own time is all that the predictions for other latencies and more workers take from here.
Rows in which the cores were nearly full are shown, and are no part of the claim: the model
gives each worker its own core.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench.uploads import enroll
from tools.capacity import model
from tools.capacity.simulation import (
    AT_ONCE,
    PAGE_KEYS,
    objects,
    page_side,
    upload_side,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.capacity.measured import Measured
    from tools.harness.deployment import Deployment

CHECKED = Path(__file__).with_name("checked.json")
PARTS = ("uploads", "pages")
DELAYS_MS = (5, 20, 80)
WORKERS = (1, 2, 4)
FULL = 0.85
_RUN_S = 8
_LEAST = 120
_WAITS: dict[str, Callable[[float, float], float]] = {
    "uploads": model.upload_wait_ms,
    "staged": model.staged_wait_ms,
    "writing": model.writing_wait_ms,
    "proving": model.proving_wait_ms,
    "reads": model.proving_wait_ms,
}


@dataclass(frozen=True)
class Compared:
    """One run: what was predicted and seen, in objects a second; `busy` of all cores."""

    operation: str
    delay_ms: int
    workers: int
    predicted: float
    seen: float
    busy: float

    @property
    def error(self) -> float:
        """By what fraction the prediction exceeds the measurement."""
        return self.predicted / self.seen - 1

    @property
    def claimed(self) -> bool:
        """Whether the cores left room, so that the row counts."""
        return self.busy < FULL


@dataclass(frozen=True)
class Calibrated:
    """What the run without latency showed of one object: CPU time, and the rest."""

    operation: str
    cpu_ms: float
    own_ms: float

    def per_s(self, workers: int, delay_ms: float) -> float:
        """The model's prediction."""
        wait_ms = _WAITS[self.operation](self.own_ms, delay_ms)
        return workers * model.loop(AT_ONCE, wait_ms, self.cpu_ms)


def calibrated(operation: str, per_s: float, cpu_ms: float) -> Calibrated:
    """From one worker without latency, `AT_ONCE` objects under way: its objects' own time."""
    # What the formula adds by itself where there is no latency.
    added_ms = _WAITS[operation](0.0, 0.0)
    low, high = 0.0, 1000 * AT_ONCE / per_s
    while high - low > 1e-6:
        middle = (low + high) / 2
        if model.loop(AT_ONCE, middle, cpu_ms) > per_s:
            low = middle
        else:
            high = middle
    return Calibrated(operation, cpu_ms, max(0.0, low - added_ms))


async def of_uploads(
    deployment: Deployment, scratch: Path, *, workers: Sequence[int] = WORKERS
) -> tuple[Calibrated, list[Compared]]:
    """Uploads of 4 KiB."""
    compared: list[Compared] = []
    await enroll(deployment, scratch)
    async with upload_side(deployment, scratch) as side:
        near = await side.run(1, 0, _LEAST * 5)
        first = calibrated("uploads", near.per_s, near.cpu_ms)
        for number in workers:
            for delay_ms in DELAYS_MS:
                per_s = first.per_s(number, delay_ms)
                ran = await side.run(number, delay_ms, max(_LEAST, round(per_s * _RUN_S)))
                compared.append(Compared("uploads", delay_ms, number, per_s, ran.per_s, ran.busy))
    return first, compared


async def of_pages(
    deployment: Deployment,
    scratch: Path,
    measured: Measured,
    *,
    workers: Sequence[int] = WORKERS,
) -> tuple[list[Calibrated], list[Compared]]:
    """Both passes of a sweep."""
    compared: list[Compared] = []
    async with page_side(deployment, scratch, most=max(workers)) as side:
        await side.run(1, 0)  # connections are made, modules imported
        near = await side.run(1, 0)
        calibrations = {name: calibrated(name, ran.per_s, ran.cpu_ms) for name, ran in near.items()}
        for number in workers:
            for delay_ms in DELAYS_MS:
                ran = await side.run(number, delay_ms)
                compared += [
                    Compared(
                        name,
                        delay_ms,
                        number,
                        _with_edge(calibrations[name], number, delay_ms, measured.page_requests),
                        ran[name].per_s,
                        ran[name].busy,
                    )
                    for name in calibrations
                ]
    return list(calibrations.values()), compared


def _with_edge(first: Calibrated, workers: int, delay_ms: float, page_requests: float) -> float:
    """A short pass's rate: before its first object and after its last, a page's own requests."""
    done = objects(workers)
    seconds = done / first.per_s(workers, delay_ms) + page_requests * delay_ms / 1000
    return done / seconds


def worst(compared: Sequence[Compared]) -> float:
    """The largest error of the rows that count; 0 where there are none."""
    return max((abs(row.error) for row in compared if row.claimed), default=0.0)


def as_json(calibrations: Sequence[Calibrated], compared: Sequence[Compared]) -> str:
    """Both as the text of `checked.json`."""
    document = {
        "at_once": AT_ONCE,
        "page_keys": PAGE_KEYS,
        "calibrations": [asdict(each) for each in calibrations],
        "compared": [asdict(each) for each in compared],
    }
    return json.dumps(document, indent=2) + "\n"


def committed() -> tuple[list[Calibrated], list[Compared]]:
    """The content of `checked.json`."""
    document: dict[str, Any] = json.loads(CHECKED.read_text())
    return (
        [Calibrated(**each) for each in document["calibrations"]],
        [Compared(**each) for each in document["compared"]],
    )


def measure(
    deployment: Deployment, scratch: Path, measured: Measured, part: str
) -> tuple[list[Calibrated], list[Compared]]:
    """One of `PARTS`, on a separate deployment.

    Raises:
        BenchError: something was not done.
    """
    if part == "pages":
        return asyncio.run(of_pages(deployment, scratch, measured))
    first, compared = asyncio.run(of_uploads(deployment, scratch))
    return [first], compared


def keep(calibrations: list[Calibrated], compared: list[Compared]) -> None:
    """Write them into `checked.json`; what it holds of other operations stays."""
    if CHECKED.exists():
        before, rows = committed()
        anew = {each.operation for each in calibrations}
        calibrations = calibrations + [each for each in before if each.operation not in anew]
        compared = compared + [row for row in rows if row.operation not in anew]
    CHECKED.write_text(as_json(calibrations, compared))
