"""Seconds to the first byte: small, large, and one byte in the middle (SPEC 9.2).

Samples of all sides alternate one by one, each on an open connection, from the request to the
first byte of the body. A range of the gateway opens the header and the
last chunk first, so that its length is known: three reads where the storage does one.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.gateway.downloads import LARGE, PASSED, PROJECT
from tools.bench.gateway.sides import opened, run_job
from tools.bench.rotation.sizes import name_of
from tools.bench.rotation.world import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.rotation.world import World

_SMALL_BYTES = 4096
# What was cut short is still being ended on the other side.
_PAUSE_S = 0.03
_ONE_BYTE = "one byte"
_STORED = "the storage itself"


async def measure(
    world: World, scratch: Path, *, size_bytes: int, samples: int, rounds: int
) -> list[Row]:
    """The rows for one server."""
    small, large = name_of(_SMALL_BYTES), name_of(size_bytes)
    middle = f"bytes={size_bytes // 2}-{size_bytes // 2}"
    ranged = f"{_ONE_BYTE} in the middle of {large}"
    found: dict[str, list[list[list[float]]]] = {small: [], large: [], ranged: []}
    async with opened(world, PROJECT, scratch, "first") as sides:
        targets = {
            small: [sides.ours(key_of(0)), sides.passed(key_of(0)), sides.bare(key_of(0))],
            large: [sides.ours(LARGE), sides.passed(LARGE), sides.bare(LARGE)],
            ranged: [sides.ours(LARGE, range=middle), sides.bare(LARGE, range=middle)],
        }
        await run_job("first", targets[small], count=5, pause_s=_PAUSE_S)
        for _ in range(rounds):
            for name, sides_of_it in targets.items():
                report = await run_job("first", sides_of_it, count=samples, pause_s=_PAUSE_S)
                found[name].append(report["seconds"])
    return [
        row for name, each in found.items() for row in rows(world.deployment.s3.kind, name, each)
    ]


def rows(kind: str, name: str, found: Sequence[Sequence[Sequence[float]]]) -> list[Row]:
    """Medians and 95th percentiles in ms; a round's samples give one of each."""
    made = []
    for label, of in (("median", statistics.median), ("p95", p95)):
        sides = [[1000 * of(one) for one in side] for side in zip(*found, strict=True)]
        for theirs, against in zip(sides[1:], _against(len(sides)), strict=True):
            made.append(
                Row(
                    f"first byte, {name}, {label}",
                    kind,
                    "ms",
                    Spread(tuple(sides[0])),
                    Spread(tuple(theirs)),
                    against,
                    lower_is_better(sides[0], theirs),
                )
            )
    return made


def p95(samples: Sequence[float]) -> float:
    """The 95th percentile of at least two samples."""
    return statistics.quantiles(samples, n=20, method="inclusive")[-1]


def _against(sides: int) -> list[str]:
    return [PASSED, _STORED][3 - sides :]
