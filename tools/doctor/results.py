"""The probe results of the servers: one column each, committed as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyturn_workers.storage.probe.runner import ProbeReport

_ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"(<!-- doctor: begin -->\n).*?(<!-- doctor: end -->)", re.DOTALL)

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


def with_decided_rows(report: ProbeReport, again: ProbeReport) -> ProbeReport:
    """The report, with rows from a second probe where only the second probe decided them."""
    rows = {row.name: row for row in again.rows}
    return replace(
        report,
        rows=[
            rows[row.name] if row.undecided and not rows[row.name].undecided else row
            for row in report.rows
        ],
    )


def cells(report: ProbeReport) -> Mapping[str, str]:
    """A probe's rows as a column's: the same for every run on the same server."""
    return {row.name: HOLDS if row.ok else _shorter(row.detail) for row in report.rows}


def needs(report: ProbeReport) -> Mapping[str, str]:
    """How much each row of a probe is needed."""
    return {row.name: row.needed for row in report.rows}


def _shorter(detail: str) -> str:
    for pattern, short in _SHORTER:
        detail = re.sub(pattern, short, detail)
    return detail


def verdicts(seen: ServerResults) -> str:
    """One line per server: whether Keyturn starts there, why not, or what is missing."""
    rows = []
    for column in _folded(seen.columns):
        refused = _reasons(column, column.lacks(seen.needed, "required"))
        reasons = refused or _reasons(column, column.lacks(seen.needed, "wanted"))
        verdict = "**refused** for" if refused else "safe, without"
        said = f"{verdict}: {'; '.join(reasons)}" if reasons else "safe"
        rows.append([column.name, column.seen, said])
    return _markdown(["server", "measured", "`keyturn doctor` says"], rows)


def placed(text: str, table: str) -> str:
    """The document with this table between its marks.

    Raises:
        ValueError: it has no marks, or several.
    """
    made, count = _MARKED.subn(lambda found: f"{found[1]}{table}{found[2]}", text)
    if count != 1:
        raise ValueError(f"{count} places for the table, not one")
    return made


def document(seen: ServerResults) -> tuple[Path, str]:
    """The page that shows the table, as it should be."""
    page = _ROOT / "docs" / "operations" / "storage-servers.md"
    return page, placed(page.read_text(), verdicts(seen))


def _folded(columns: Sequence[Column]) -> Sequence[Column]:
    """The columns, with identical ones of one server merged."""
    folded: list[Column] = []
    for column in columns:
        last = folded[-1] if folded else None
        if last and (last.server, last.rows) == (column.server, column.rows):
            folded[-1] = replace(last, label=f"{last.label} or {column.label}")
        else:
            folded.append(column)
    return folded


def _reasons(column: Column, rows: Sequence[str]) -> Sequence[str]:
    """Each row with what happened, without the races where a single request fails already."""
    named = [row for row in rows if row.partition(", ")[0] not in rows or ", " not in row]
    return [f"{row} ({column.rows[row]})" for row in named]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)
