"""`python -m tools.load`: drain a long queue, with and without disruptions; prints a table.

Exit status 0 if every upload was handled once, even if a performance target was missed. Exit
status 1 if an upload was lost, stored twice, or reported twice without a crash, or if a
measurement failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tools.bench.figures import Results, table
from tools.bench.processes import BenchError
from tools.harness.deployment import Deployment
from tools.load import disruptions, drain
from tools.load.uploads import SIZE_BYTES, Uploads
from tools.servers import Servers
from tools.servers.process import ServerError

_PARTS = ("drain", *disruptions.GRACEFUL, *disruptions.BROKEN)
_COUNT = 50_000
_DISTURBED = 20_000
_QUICK = 6_000
_CREW = 2
_TIMES = {"restart": 5, "deploy": 5, "broker": 2, "broker-kill": 2}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.load", description="Load Keyturn.")
    parser.add_argument(
        "--only", type=_parts, default=_PARTS, metavar="PART,PART", help=f"of {', '.join(_PARTS)}"
    )
    parser.add_argument(
        "--uploads",
        type=int,
        metavar="N",
        help=f"uploads in the queue ({_COUNT} for drain, {_DISTURBED} for each of the others)",
    )
    parser.add_argument(
        "--bytes", type=int, default=SIZE_BYTES, metavar="N", help="bytes per upload"
    )
    parser.add_argument(
        "--workers",
        type=_numbers,
        default=[1, 2, 4],
        metavar="N,N",
        help="numbers of workers for drain",
    )
    parser.add_argument("--quick", action="store_true", help=f"a short run with {_QUICK} uploads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser.parse_args(argv)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(_PARTS):
        raise argparse.ArgumentTypeError(f"unknown parts: {', '.join(sorted(unknown))}")
    return parts


def _numbers(text: str) -> list[int]:
    numbers = [int(each) for each in text.split(",")]
    if min(numbers) < 1:
        raise ValueError("at least one")
    return numbers


def _uploads(given: argparse.Namespace, name: str, count: int) -> Uploads:
    return Uploads(name, given.uploads or (_QUICK if given.quick else count), given.bytes)


def _drains(given: argparse.Namespace, results: Results, console: Console) -> None:
    found: dict[int, drain.DrainResult] = {}
    for workers in given.workers:
        console.print(f"drain by {workers} …")
        # Fresh servers for each drain: data of an earlier one does not affect it.
        with _servers() as servers, _folder() as scratch:
            deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
            uploads = _uploads(given, f"drain-{workers}", _COUNT)
            measuring = drain.measure(deployment, Path(scratch), uploads, workers=workers)
            found[workers] = asyncio.run(measuring)
    results.rows += drain.rows("ceph", found)
    results.notes += drain.notes(found)


def _disturbed(part: str, given: argparse.Namespace, results: Results, console: Console) -> None:
    console.print(f"{part} …")
    with _servers() as servers, _folder() as scratch:
        deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
        measuring = disruptions.measure(
            deployment,
            Path(scratch),
            _uploads(given, part, _DISTURBED),
            part,
            workers=_CREW,
            times=1 if given.quick else _TIMES[part],
            broker=servers.rabbitmq,
        )
        results.rows += disruptions.rows("ceph", asyncio.run(measuring))


def _servers() -> Servers:
    return Servers("ceph", environ={})


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="keyturn-load-")


def main(argv: list[str]) -> int:
    """Run the requested parts; returns the exit status."""
    given = _arguments(argv)
    # On SIGTERM it still stops the workers and servers that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    results, failed, began = Results(), False, time.monotonic()
    for part in given.only:
        try:
            if part == "drain":
                _drains(given, results, console)
            else:
                _disturbed(part, given, results, console)
        except (BenchError, ServerError) as exc:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
