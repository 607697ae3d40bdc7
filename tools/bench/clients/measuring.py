"""Alternating rounds of all clients, each in a process of its own, and their table.

All that a client's process costs is CPU time of the client alone; the server has its own.
Ratios are taken within a round, against aioboto3 with its defaults in the same round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table

from tools.bench.clients.side import BASELINE, SIDES
from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better, number
from tools.bench.processes import printed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.harness.deployment import Deployment

CONCURRENCY: Final = 32
_WARM: Final = 100
OPERATIONS: Final = {
    "put": "put 4 KiB",
    "get": "ranged get",
    "head": "head",
    "copy": "self-copy",
}
# client -> operation -> of each round (CPU ms an operation, operations a second)
Found = dict[str, dict[str, list[tuple[float, float]]]]


async def measure(deployment: Deployment, *, count: int, rounds: int) -> Found:
    """So many rounds of every client, in turn.

    Raises:
        BenchError: a client failed, or is not installed.
    """
    env = deployment.s3.environment(deployment.bucket)
    found: Found = {}
    for turn in range(rounds):
        for number_of_side, name in enumerate(SIDES):
            told = await printed(
                env,
                "tools.bench.clients.side",
                name,
                f"clients/{turn}/{number_of_side}",
                *("--count", str(count), "--warm", str(_WARM), "--concurrency", str(CONCURRENCY)),
            )
            of_client = found.setdefault(name, {})
            for operation, took in told.items():
                figures = (1000 * took["cpu_s"] / took["done"], took["done"] / took["wall_s"])
                of_client.setdefault(operation, []).append(figures)
    return found


def rows(server: str, found: Found) -> list[Row]:
    """CPU time and throughput of each client and operation against the baseline's."""
    made = []
    for name, of_client in found.items():
        for operation, ours in of_client.items():
            theirs = found[BASELINE][operation]
            label = f"{OPERATIONS[operation]}, {name}"
            for unit, index, ratio in (
                ("ms/operation, CPU", 0, lower_is_better),
                ("operations/s", 1, higher_is_better),
            ):
                of_ours, of_theirs = ([took[index] for took in side] for side in (ours, theirs))
                made.append(
                    Row(
                        label,
                        server,
                        unit,
                        Spread(tuple(of_ours)),
                        Spread(tuple(of_theirs)),
                        BASELINE,
                        ratio(of_ours, of_theirs),
                    )
                )
    return made


def compared(server: str, made: Sequence[Row]) -> Table:
    """One line a client: CPU ms and its ratio to the baseline's, and operations a second."""
    shown = Table(title=f"S3 clients on {server}: CPU ms an operation (ratio), operations/s")
    shown.add_column("client")
    for label in OPERATIONS.values():
        shown.add_column(label, justify="right")
    cells: dict[str, dict[str, list[str]]] = {}
    for row in made:
        operation, _, name = row.figure.partition(", ")
        ratio = row.ratios.median if row.ratios else 1.0
        cpu = row.unit.endswith("CPU")
        text = f"{number(row.ours.median)} ({number(ratio)})" if cpu else number(row.ours.median)
        cells.setdefault(name, {}).setdefault(operation, []).append(text)
    for name, of_client in cells.items():
        shown.add_row(name, *(", ".join(of_client.get(it, ["-"])) for it in OPERATIONS.values()))
    return shown
