"""`make doctor`: start each server, probe it, and compare with the committed results.

Exit status 1 if a cell differs from docs/storage-servers.json; `--write` updates that file and the
table of docs/operations/storage-servers.md. A server whose packages cannot be
installed here is skipped, and its columns stay as they are; with `--only`, that is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keyturn_workers.cli.output import print_table
from keyturn_workers.storage.probe.runner import probe
from tools.doctor.results import Column, ServerResults, cells, document, needs, with_decided_rows
from tools.doctor.server_kinds import KINDS, probe_bucket
from tools.harness.memory_storage import MemoryStorage
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tools.doctor.results import Bucket
    from tools.doctor.server_kinds import Kind
    from tools.servers import S3Server

_MORE_PROBES = 2


def main() -> int:
    """Parse the command line, probe, and report."""
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__)
    names = [kind.server for kind in KINDS]
    parser.add_argument("--only", action="append", choices=names, help="only this server")
    parser.add_argument("--write", action="store_true", help="write the results")
    arguments = parser.parse_args()
    try:
        found = list(_started(arguments.only or names, skip=not arguments.only))
    except (MissingPackagesError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    committed = ServerResults.read()
    needed = needs(asyncio.run(probe(MemoryStorage())))
    seen = ServerResults(needed, committed.renewed(found).ordered(names).columns)
    _show(ServerResults(seen.needed, found))
    if arguments.write:
        seen.write()
        page, text = document(seen)
        page.write_text(text)
        return 0
    return _compare(committed, found)


def _started(names: Sequence[str], *, skip: bool) -> Iterator[Column]:
    for kind in KINDS:
        if kind.server not in names:
            continue
        print(f"{kind.server} ...", file=sys.stderr)
        try:
            yield from _columns(kind)
        except MissingPackagesError as error:
            if not skip:
                raise
            print(f"{kind.server} is skipped: {error}", file=sys.stderr)


def _columns(kind: Kind) -> Iterator[Column]:
    with kind.started() as server:
        for bucket in kind.buckets:
            today = f"{datetime.now(UTC):%Y-%m-%d}"
            yield Column(kind.server, kind.version(), bucket, today, _probed(server, bucket))


def _probed(server: S3Server, bucket: Bucket) -> Mapping[str, str]:
    """The cells of a server; a row whose requests failed is probed again.

    Some servers, such as rclone's, occasionally fail a request while others are in progress.
    """
    report = asyncio.run(probe_bucket(server, bucket))
    for _ in range(_MORE_PROBES):
        if any(row.undecided for row in report.rows):
            report = with_decided_rows(report, asyncio.run(probe_bucket(server, bucket)))
    return cells(report)


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
        try:
            known = committed.column(*column.place).rows
        except LookupError:
            known = {}
        for row, cell in column.rows.items():
            if known.get(row) != cell:
                differing += 1
                print(f"{column.name}: {row}: {cell}, was: {known.get(row)}", file=sys.stderr)
    if differing:
        print(
            "differs from the committed results: `make doctor ARGS=--write` updates them",
            file=sys.stderr,
        )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
