"""What traces cost an upload worker: off, and with one in a hundred recorded (SPEC 6.11).

The sides take turns in one run, and each round drains a queue of its own. What counts is the
worker's own CPU time for each upload; the receiver is in the bench's process. With `--before`,
the same rounds also run the code of an earlier checkout, which knows no traces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.bench import uploads
from tools.bench.processes import BenchError
from tools.harness.otlp_receiver import otlp_receiver

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.bench.uploads import Rate
    from tools.harness.deployment import Deployment

OFF: Final = "traces off"
SAMPLED: Final = "1 % of traces"
BEFORE: Final = "the code before traces"
# Below 3 % of the CPU time, and nothing that can be measured.
_SAMPLED_AIM: Final = 0.97
_OFF_AIM: Final = 0.99


async def measure(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int, before: Path | None = None
) -> list[Row]:
    """The rows: CPU time for each upload, which has an aim, and throughput, which has none."""
    await uploads.enroll(deployment, scratch)
    found: dict[str, list[Rate]] = {}
    with otlp_receiver() as receiver:
        sides: dict[str, dict[str, str]] = {
            OFF: {},
            SAMPLED: receiver.env("parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0.01"),
        }
        if before is not None:
            sides[BEFORE] = {"PYTHONPATH": f"{before}/contracts:{before}/workers"}
        await uploads.ours(deployment, scratch, "warm", count)
        for turn in range(rounds):
            # Whichever side comes later finds more in the bucket: they take turns in that too.
            order = list(sides) if turn % 2 == 0 else list(reversed(sides))
            for side in order:
                name = f"t{turn}-{list(sides).index(side)}"
                rate = await uploads.ours(deployment, scratch, name, count, environ=sides[side])
                found.setdefault(side, []).append(rate)
        if not receiver.spans:
            raise BenchError("no trace arrived: nothing was measured")
    return rows(deployment.s3.kind, found)


def rows(server: str, found: Mapping[str, list[Rate]]) -> list[Row]:
    """What the rounds gave, side by side."""
    found_rows = uploads.compared(
        f"4 KiB uploads, {SAMPLED}",
        server,
        found[SAMPLED],
        found[OFF],
        OFF,
        cpu_aim=_SAMPLED_AIM,
    )
    if BEFORE in found:
        found_rows += uploads.compared(
            f"4 KiB uploads, {OFF}", server, found[OFF], found[BEFORE], BEFORE, cpu_aim=_OFF_AIM
        )
    return found_rows
