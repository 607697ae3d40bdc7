"""`python -m tools.capacity`: how many processes a number of objects needs.

Without `--measure`, `--check` or `--document` it only computes, from `measured.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tools.bench.processes import BenchError
from tools.capacity import check, costs, document
from tools.capacity.measured import MEASURED, committed
from tools.capacity.model import Setting
from tools.capacity.plan import GIB, CapacityRequest, sections
from tools.harness.deployment import Deployment
from tools.servers import Servers
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.capacity", description="Plan Keyturn.")
    parser.add_argument("--objects", type=_positive, default=1e6, metavar="N", help="(1e6)")
    parser.add_argument("--hours", type=_positive, default=24.0, metavar="T", help="(24)")
    parser.add_argument("--bytes", type=int, default=4096, metavar="N", help="of one (4096)")
    parser.add_argument(
        "--latency-ms", type=float, default=Setting.latency_ms, help="of the storage (20)"
    )
    parser.add_argument(
        "--share", type=_share, default=Setting.share, help="of a core to use, 0 to 1 (0.7)"
    )
    parser.add_argument(
        "--broker-gib", type=_positive, default=50.0, help="disk for what waits (50)"
    )
    parser.add_argument("--measure", action="store_true", help="write measured.json anew")
    parser.add_argument(
        "--check",
        type=_parts,
        nargs="?",
        const=check.PARTS,
        metavar="PART,PART",
        help=f"write checked.json anew; of {', '.join(check.PARTS)}, what is not named stays",
    )
    parser.add_argument("--document", action="store_true", help="make the tables of capacity.md")
    return parser.parse_args(argv)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError("more than nothing")
    return number


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(check.PARTS):
        raise argparse.ArgumentTypeError(f"no part: {', '.join(sorted(unknown))}")
    return parts


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise ValueError("0 to 1")
    return share


@contextmanager
def _served() -> Iterator[tuple[Servers, Deployment, Path]]:
    with (
        Servers("ceph", environ={}) as servers,
        tempfile.TemporaryDirectory(prefix="keyturn-capacity-") as folder,
    ):
        yield (
            servers,
            Deployment(servers.amqp_url, servers.s3, servers.new_bucket()),
            Path(folder),
        )


def _measure() -> None:
    with _served() as (servers, deployment, scratch):
        assert servers.rabbitmq is not None
        found = asyncio.run(costs.measure(deployment, scratch, servers.rabbitmq))
    MEASURED.write_text(found.as_json())


def _check(parts: list[str], console: Console) -> None:
    for part in parts:
        with _served() as (_, deployment, scratch):
            calibrations, compared = check.measure(deployment, scratch, committed(), part)
        console.print(document.compared(compared), markup=False)
        console.print(document.claim(compared))
        # After each part: an interrupted run keeps its results.
        check.keep(calibrations, compared)


def _plan(given: argparse.Namespace, console: Console) -> None:
    ask = CapacityRequest(
        given.objects,
        given.hours,
        given.bytes,
        Setting(given.latency_ms, given.share),
        given.broker_gib * GIB,
    )
    for title, rows in sections(committed(), ask).items():
        shown = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            shown.add_row(name, value)
        console.print(shown)


def main(argv: list[str]) -> int:
    """Do what was requested; returns the exit status."""
    given = _arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if given.measure:
            _measure()
        if given.check:
            _check(given.check, console)
    except (BenchError, ServerError) as exc:
        console.print(f"NOT MEASURED: {exc}", markup=False)
        return 1
    if given.document:
        document.write(committed())
    if not (given.check or given.document):
        _plan(given, console)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
