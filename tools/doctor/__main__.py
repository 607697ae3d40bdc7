"""`make doctor`: start each server, probe it, and compare with the committed results.

Exit status 1 if a cell differs from docs/storage-servers.json; `--write` updates that file and the
tables of README.md and docs/operations/storage-servers.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keyturn_workers.cli.output import print_table
from keyturn_workers.storage.probe.runner import probe
from keyturn_workers.testing.memory_storage import MemoryStorage
from tools.doctor.results import Column, ServerResults, cells, needs
from tools.doctor.server_kinds import KINDS, probe_bucket
from tools.doctor.tables import documents
from tools.servers import S3Server
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.doctor.server_kinds import Kind


def main() -> int:
    """Parse the command line, probe, and report."""
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__)
    names = [kind.server for kind in KINDS]
    parser.add_argument("--only", action="append", choices=names, help="only this server")
    parser.add_argument(
        "--given",
        nargs=2,
        metavar=("NAME", "VERSION"),
        help="one that runs already, where KEYTURN_S3_ENDPOINT_URL and its keys say",
    )
    parser.add_argument("--write", action="store_true", help="write the results")
    arguments = parser.parse_args()
    try:
        found = list(
            _given(*arguments.given) if arguments.given else _started(arguments.only or names)
        )
    except (MissingPackagesError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    committed = ServerResults.read()
    needed = needs(asyncio.run(probe(MemoryStorage())))
    seen = ServerResults(needed, committed.renewed(found).columns)
    _show(ServerResults(seen.needed, found))
    if arguments.write:
        seen.write()
        for path, text in documents(seen):
            path.write_text(text)
        return 0
    return _compare(committed, found)


def _started(names: Sequence[str]) -> Iterator[Column]:
    for kind in KINDS:
        if kind.server in names:
            print(f"{kind.server} ...", file=sys.stderr)
            yield from _columns(kind)


def _columns(kind: Kind) -> Iterator[Column]:
    with kind.started() as server:
        for bucket in kind.buckets:
            report = asyncio.run(probe_bucket(server, bucket))
            yield Column(kind.server, kind.version(), bucket, _today(), cells(report))


def _given(name: str, version: str) -> Iterator[Column]:
    server = S3Server.from_environment(os.environ)
    if server is None:
        raise ServerError("KEYTURN_S3_ENDPOINT_URL names no server")
    yield Column(
        name, version, "plain", _today(), cells(asyncio.run(probe_bucket(server, "plain")))
    )


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _show(seen: ServerResults) -> None:
    heads = ("row", "needed", *(column.name for column in seen.columns))
    rows = [
        (row, needed, *(c.rows[row] for c in seen.columns)) for row, needed in seen.needed.items()
    ]
    verdicts = ["refused" if c.lacks(seen.needed, "required") else "safe" for c in seen.columns]
    print_table(heads, [*rows, ("Keyturn", "", *verdicts)])


def _compare(committed: ServerResults, found: Sequence[Column]) -> int:
    """Print each cell that differs from the committed one."""
    differing = 0
    for column in found:
        known = committed.column(*column.place)
        for row, cell in column.rows.items():
            if known.rows.get(row) != cell:
                differing += 1
                print(f"{column.name}: {row}: {cell}, was: {known.rows.get(row)}", file=sys.stderr)
    if differing:
        print(
            "differs from the committed results: `make doctor ARGS=--write` updates them",
            file=sys.stderr,
        )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
