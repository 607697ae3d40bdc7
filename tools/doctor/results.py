"""The probe results of the servers: one column each, committed as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyturn_workers.storage.probe.runner import Report

FILE = Path(__file__).parents[2] / "docs" / "storage-servers.json"
HOLDS = "yes"
"""The cell of a row that holds."""

Bucket = Literal["plain", "versioned", "locked"]
_LABELS: Mapping[Bucket, str] = {"versioned": "versioned", "locked": "object lock"}

# How many writers a race let through is chance; that it let several through is not.
_SHORTER = (
    (r"\d+ of \d+ writers succeeded", "several stored"),
    (r"hardly any writer succeeded", "none stored"),
    (r"condition ignored: deleted", "ignored: deletes"),
    (r"not refused", "ignored"),
    (r"versioned, and conditions are honored", "kept; conditions hold"),
    (r"versioned, and the server ignores If-None-Match: \* there", "kept; conditions ignored"),
)


@dataclass(frozen=True)
class Column:
    """One kind of bucket on one version of one server."""

    server: str
    version: str
    bucket: Bucket
    seen: str
    """The day, as 2026-11-25."""
    rows: Mapping[str, str]
    """By the probe's row: `yes`, or in a few words what happened instead."""
    label: str = ""
    """The kind of bucket in words, where that is not plain."""

    def __post_init__(self) -> None:
        if not self.label and self.bucket != "plain":
            object.__setattr__(self, "label", _LABELS[self.bucket])

    @property
    def name(self) -> str:
        """The heading of the column.

        If several releases of a server are probed, its name ends with the release line. The version
        replaces that: the heading of `Ceph RGW 20` is `Ceph RGW 20.2.4`.
        """
        product, _, line = self.server.rpartition(" ")
        server = product if self.version.startswith(f"{line}.") else self.server
        return ", ".join(filter(None, (f"{server} {self.version}", self.label)))

    @property
    def place(self) -> tuple[str, Bucket]:
        """The identity of a column: a newer one replaces it."""
        return self.server, self.bucket

    def lacks(self, needed: Mapping[str, str], how_much: str) -> Sequence[str]:
        """The rows with this requirement level that do not hold."""
        return [
            row for row, found in self.rows.items() if needed[row] == how_much and found != HOLDS
        ]


@dataclass(frozen=True)
class ServerResults:
    """All columns, and how much each row is needed."""

    needed: Mapping[str, str]
    columns: Sequence[Column]

    @classmethod
    def read(cls) -> ServerResults:
        """Read the committed results."""
        document: dict[str, Any] = json.loads(FILE.read_text())
        return cls(document["needed"], [Column(**column) for column in document["columns"]])

    def write(self) -> None:
        """Write the results to the committed file."""
        columns = [asdict(column) for column in self.columns]
        for column in columns:
            del column["label"]
        document = {"needed": self.needed, "columns": columns}
        FILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def column(self, server: str, bucket: Bucket) -> Column:
        """The column of a server's kind of bucket.

        Raises:
            LookupError: there is none.
        """
        for column in self.columns:
            if column.place == (server, bucket):
                return column
        raise LookupError(f"no column for {server}, {bucket}")

    def renewed(self, found: Sequence[Column]) -> ServerResults:
        """The results with these columns in place of older ones, new ones at the end."""
        places = {column.place: column for column in found}
        kept = [places.pop(column.place, column) for column in self.columns]
        return ServerResults(self.needed, [*kept, *places.values()])

    def ordered(self, servers: Sequence[str]) -> ServerResults:
        """The results by server in this order, those of other servers last."""
        places = {server: at for at, server in enumerate(servers)}
        columns = sorted(self.columns, key=lambda each: places.get(each.server, len(places)))
        return ServerResults(self.needed, columns)


def with_decided_rows(report: Report, again: Report) -> Report:
    """The report, with rows from a second probe where only the second probe decided them."""
    rows = {row.name: row for row in again.rows}
    return replace(
        report,
        rows=[
            rows[row.name] if row.undecided and not rows[row.name].undecided else row
            for row in report.rows
        ],
    )


def cells(report: Report) -> Mapping[str, str]:
    """A probe's rows as a column's: the same for every run on the same server."""
    return {row.name: HOLDS if row.ok else _shorter(row.detail) for row in report.rows}


def needs(report: Report) -> Mapping[str, str]:
    """How much each row of a probe is needed."""
    return {row.name: row.needed for row in report.rows}


def _shorter(detail: str) -> str:
    for pattern, short in _SHORTER:
        detail = re.sub(pattern, short, detail)
    return detail
