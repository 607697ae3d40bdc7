"""The tables of docs/operations/storage-servers.md, made from the results."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tools.doctor.results import HOLDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tools.doctor.results import Column, ServerResults

_ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"(<!-- doctor: begin -->\n).*?(<!-- doctor: end -->)", re.DOTALL)


def whole(seen: ServerResults) -> str:
    """Every row on every server; the verdict last."""
    columns = _folded(seen.columns)
    heads = [f"{column.name} ({column.seen})" for column in columns]
    rows = [
        [row, needed, *(_cell(column.rows[row], needed) for column in columns)]
        for row, needed in seen.needed.items()
    ]
    verdicts = [_verdict(column, seen) for column in columns]
    return _markdown(["row", "needed", *heads], [*rows, ["**Keyturn**", "", *verdicts]])


def short(seen: ServerResults) -> str:
    """One line per server: whether Keyturn starts there, why not, or what is missing."""
    rows = []
    for column in _folded(seen.columns):
        refused = _reasons(column.lacks(seen.needed, "required"))
        reasons = refused or _reasons(column.lacks(seen.needed, "wanted"))
        verdict = "**refused** for" if refused else "safe, without"
        rows.append([column.name, f"{verdict}: {'; '.join(reasons)}" if reasons else "safe"])
    return _markdown(["server", "`keyturn doctor` says"], rows)


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
    """The page that shows both tables, as it should be."""
    page = _ROOT / "docs" / "operations" / "storage-servers.md"
    return page, placed(page.read_text(), f"{short(seen)}\n{whole(seen)}")


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


def _reasons(rows: Sequence[str]) -> Sequence[str]:
    """Without the races where the row fails for a single request already."""
    return [row for row in rows if row.partition(", ")[0] not in rows or ", " not in row]


def _cell(found: str, needed: str) -> str:
    if found == HOLDS:
        return HOLDS
    return f"**no**: {found}" if needed == "required" else found


def _verdict(column: Column, seen: ServerResults) -> str:
    refused = _reasons(column.lacks(seen.needed, "required"))
    return f"**refused**: {'; '.join(refused)}" if refused else "**safe**"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)
