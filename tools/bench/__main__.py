"""`python -m tools.bench`: measure, print a table, write JSON (docs/operations/performance.md).

Exit status 0 if everything could be measured, even if targets were missed, which the table and the
JSON show. Exit status 1 if a measurement failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from keyturn_workers.process.background import run_to_end
from tools.bench import (
    against_plain,
    customer_keys,
    deletes,
    export,
    gateway,
    layers,
    rotation,
    smallest,
    sources,
    uploads,
)
from tools.bench.figures import Results, profile_table, table
from tools.bench.processes import BenchError
from tools.harness.deployment import Deployment
from tools.servers import Servers
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tools.bench.figures import Row

_MIB: Final = 2**20
_SMALL: Final = (3000, 600)


@dataclass(frozen=True)
class Part:
    """What is measured, in how many rounds, and its sizes by name: the usual one, a quick one."""

    measure: Callable[..., Coroutine[Any, Any, list[Row]]]
    rounds: int
    sizes: dict[str, tuple[int, int]]

    def options(self, given: argparse.Namespace) -> dict[str, Any]:
        """The arguments of `measure` besides where it measures."""
        rounds = given.rounds or (1 if given.quick else self.rounds)
        return {"rounds": rounds} | {name: size[given.quick] for name, size in self.sizes.items()}


_LAYERS: Final = "layers"
_PARTS: Final = {
    "uploads": Part(uploads.measure, 3, {"count": _SMALL}),
    "memory": Part(uploads.measure_memory, 1, {"count": (2000, 400)}),
    "plain": Part(against_plain.measure_drained, 3, {"count": _SMALL}),
    "latency": Part(against_plain.measure_latency, 3, {"seconds": (10, 4)}),
    "projects-1000": Part(
        uploads.measure_projects, 2, {"projects": (1000, 100), "count": (5000, 600)}
    ),
    "projects-10000": Part(
        uploads.measure_projects, 2, {"projects": (10_000, 1000), "count": (50_000, 5000)}
    ),
    "smallest-100": Part(smallest.measure, 5, {"projects": (100, 10), "count": _SMALL}),
    "smallest-1000": Part(smallest.measure, 5, {"projects": (1000, 100), "count": _SMALL}),
    "rotation": Part(rotation.measure, 3, {"count": _SMALL}),
    "gateway-large": Part(gateway.measure_large, 5, {"size_bytes": (1024 * _MIB, 128 * _MIB)}),
    "gateway-bodies": Part(gateway.measure_bodies, 5, {"size_bytes": (16 * _MIB, _MIB)}),
    "gateway-small": Part(gateway.measure_small, 5, {"count": _SMALL}),
    "gateway-listing": Part(gateway.measure_listing, 5, {"count": (10_000, 2000)}),
    "export-small": Part(export.measure_small, 3, {"count": _SMALL}),
    "export-large": Part(export.measure_large, 3, {"count": (20, 4)}),
    "sources-small": Part(sources.measure_small, 3, {"count": (5000, 600)}),
    "sources-large": Part(sources.measure_large, 3, {"count": (20, 4)}),
    "customer-keys-cost": Part(customer_keys.measure_cost, 5, {"count": _SMALL}),
    "customer-keys-calls": Part(
        customer_keys.measure_calls, 1, {"projects": (1000, 100), "seconds": (225, 75)}
    ),
    "deletes": Part(deletes.measure, 3, {"count": (10_000, 2000)}),
}
_NAMES: Final = (*_PARTS, _LAYERS)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Measure Keyturn.")
    parser.add_argument(
        "--only",
        default=_NAMES,
        type=_parts,
        metavar="PART,PART",
        help=f"some of {', '.join(_NAMES)}; gateway, export and the like select all of theirs",
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds")
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="1-20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser.parse_args(argv)


def _parts(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        if not any(_is_part(part, name) for part in _NAMES):
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(_NAMES)}")
    return tuple(part for part in _NAMES if any(_is_part(part, name) for name in names))


def _is_part(part: str, name: str) -> bool:
    return part == name or part.startswith(f"{name}-")


def _measure(name: str, given: argparse.Namespace, results: Results) -> None:
    """Measure one part on fresh servers."""
    with (
        Servers("ceph", environ={}) as servers,
        tempfile.TemporaryDirectory(prefix="keyturn-bench-") as folder,
    ):
        where = Deployment(servers.amqp_url, servers.s3, servers.new_bucket()), Path(folder)
        if name == _LAYERS:
            count = _SMALL[given.quick]
            results.profiles |= asyncio.run(run_to_end(layers.measure(*where, count=count)))
        else:
            part = _PARTS[name]
            measuring = part.measure(*where, **part.options(given))
            results.rows += asyncio.run(run_to_end(measuring))


def main(argv: list[str]) -> int:
    """Measure the requested parts; returns the exit status."""
    given = _arguments(argv)
    # On SIGTERM it still stops the workers and servers that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results()
    began = time.monotonic()
    failed = False
    for name in given.only:
        console.print(f"{name} …")
        try:
            _measure(name, given, results)
        except (BenchError, ServerError) as exc:
            failed = True
            results.notes.append(f"{name}: NOT MEASURED: {exc}")
        # After each part: an interrupted run keeps its results.
        if given.json:
            given.json.write_text(results.as_json())
    results.notes.append(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at "
        f"the end, {time.monotonic() - began:.0f} s in total"
    )
    if results.rows:
        console.print(table(results.rows))
    for process, of_layers in results.profiles.items():
        console.print(profile_table(process, of_layers))
    for note in results.notes:
        console.print(note, markup=False)
    if given.json:
        given.json.write_text(results.as_json())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
