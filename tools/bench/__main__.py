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
from typing import TYPE_CHECKING, Final

from rich.console import Console

from tools.bench import against_plain, deletes, export, gateway, layers, rotation, sources, uploads
from tools.bench.figures import Results, profile_table, table
from tools.bench.processes import BenchError
from tools.harness.deployment import Deployment
from tools.servers import Servers
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tools.bench.figures import Row
    from tools.servers import StorageKind

_KINDS: Final[tuple[StorageKind, ...]] = ("ceph", "moto")
_MIB: Final = 2**20
# moto handles a few hundred puts per second, so fewer objects take as long.
_COUNTS: Final = {"ceph": 3000, "moto": 1200}
_QUICK_COUNT: Final = 600
_UPLOADS_A_PROJECT: Final = 5


@dataclass(frozen=True)
class Run:
    """One part on one server."""

    deployment: Deployment
    scratch: Path
    quick: bool
    rounds: int | None

    @property
    def where(self) -> tuple[Deployment, Path]:
        """What every part is given."""
        return self.deployment, self.scratch

    @property
    def count(self) -> int:
        """The number of small objects."""
        return _QUICK_COUNT if self.quick else _COUNTS[self.deployment.s3.kind]

    def times(self, usual: int) -> int:
        """The number of rounds."""
        return self.rounds or (1 if self.quick else usual)


async def _uploads(run: Run) -> list[Row]:
    return await uploads.measure(*run.where, count=run.count, rounds=run.times(3))


async def _plain(run: Run) -> list[Row]:
    rounds = run.times(3)
    return await against_plain.measure_drained(*run.where, count=run.count, rounds=rounds)


async def _latency(run: Run) -> list[Row]:
    seconds, rounds = 4 if run.quick else 10, run.times(3)
    return await against_plain.measure_latency(
        *run.where, rates=against_plain.RATES, seconds=seconds, rounds=rounds
    )


def _projects(number: int) -> Callable[[Run], Awaitable[list[Row]]]:
    async def measure(run: Run) -> list[Row]:
        projects = number // 10 if run.quick else number
        count = max(run.count, projects * _UPLOADS_A_PROJECT)
        return await uploads.measure_projects(
            *run.where, projects=projects, count=count, rounds=run.times(2)
        )

    return measure


async def _rotation(run: Run) -> list[Row]:
    return await rotation.measure(*run.where, count=run.count, rounds=run.times(3))


async def _gateway_large(run: Run) -> list[Row]:
    size_bytes = (128 if run.quick else 1024) * _MIB
    return await gateway.measure_large(*run.where, size_bytes=size_bytes, rounds=run.times(5))


async def _gateway_bodies(run: Run) -> list[Row]:
    size_bytes = (1 if run.quick else 16) * _MIB
    return await gateway.measure_bodies(*run.where, size_bytes=size_bytes, rounds=run.times(5))


async def _gateway_small(run: Run) -> list[Row]:
    return await gateway.measure_small(*run.where, count=run.count, rounds=run.times(5))


async def _gateway_listing(run: Run) -> list[Row]:
    count = 2_000 if run.quick else 10_000
    return await gateway.measure_listing(*run.where, count=count, rounds=run.times(5))


async def _export_small(run: Run) -> list[Row]:
    return await export.measure_small(*run.where, count=run.count, rounds=run.times(3))


async def _export_large(run: Run) -> list[Row]:
    return await export.measure_large(*run.where, count=4 if run.quick else 20, rounds=run.times(3))


async def _sources_small(run: Run) -> list[Row]:
    count = _QUICK_COUNT if run.quick else 5_000
    return await sources.measure_small(*run.where, count=count, rounds=run.times(3))


async def _sources_large(run: Run) -> list[Row]:
    return await sources.measure_large(
        *run.where, count=4 if run.quick else 20, rounds=run.times(3)
    )


async def _deletes(run: Run) -> list[Row]:
    count = 2_000 if run.quick else 10_000
    return await deletes.measure(*run.where, count=count, rounds=run.times(3))


_LAYERS: Final = "layers"
_PARTS: Final[dict[str, Callable[[Run], Awaitable[list[Row]]]]] = {
    "uploads": _uploads,
    "plain": _plain,
    "latency": _latency,
    "projects-1000": _projects(1_000),
    "projects-10000": _projects(10_000),
    "rotation": _rotation,
    "gateway-large": _gateway_large,
    "gateway-bodies": _gateway_bodies,
    "gateway-small": _gateway_small,
    "gateway-listing": _gateway_listing,
    "export-small": _export_small,
    "export-large": _export_large,
    "sources-small": _sources_small,
    "sources-large": _sources_large,
    "deletes": _deletes,
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
    parser.add_argument(
        "--server",
        choices=[*_KINDS, "both"],
        default="both",
        help="where uploads and layers are measured; the rest runs on one of them",
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


def _measurements(given: argparse.Namespace) -> Iterator[tuple[str, StorageKind]]:
    """Every part with the server on which it is measured."""
    kinds = _KINDS if given.server == "both" else (given.server,)
    for part in given.only:
        # Elsewhere moto would only measure itself, so it is used only if nothing else may be.
        for kind in kinds if part in {"uploads", _LAYERS} else kinds[:1]:
            yield part, kind


def _measure(part: str, kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    """Measure one part on fresh servers."""
    with (
        Servers(kind, environ={}) as servers,
        tempfile.TemporaryDirectory(prefix="keyturn-bench-") as folder,
    ):
        deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
        run = Run(deployment, Path(folder), given.quick, given.rounds)
        if part == _LAYERS:
            results.profiles |= asyncio.run(layers.measure(*run.where, count=run.count))
        else:
            results.rows += asyncio.run(_rows(part, run))


async def _rows(part: str, run: Run) -> list[Row]:
    return await _PARTS[part](run)


def main(argv: list[str]) -> int:
    """Measure the requested parts; returns the exit status."""
    given = _arguments(argv)
    # On SIGTERM it still stops the workers and servers that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results()
    began = time.monotonic()
    failed = False
    for part, kind in _measurements(given):
        console.print(f"{part} on {kind} …")
        try:
            _measure(part, kind, given, results)
        except (BenchError, ServerError) as exc:
            failed = True
            results.notes.append(f"{part} on {kind}: NOT MEASURED: {exc}")
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
