"""The failures of a sweep as a list: filtered, paged, and as files to take away (SPEC 16.2). Pure.

Names are untrusted: those that failed as foreign may hold any character.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import Final

from keyturn_workers.console.codes import CodeHelp, code_help
from keyturn_workers.console.model.rows import PAGE_SIZE, FailureRow, Page, SweepView

# A spreadsheet takes a cell that begins so for a formula; some take full-width signs, too.
_FORMULA_STARTS: Final = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)


def matching(rows: Iterable[FailureRow], code: str, text: str) -> tuple[FailureRow, ...]:
    """The failures with this code, and with this text in project or key; empty matches all."""
    sought = text.casefold()
    return tuple(
        row
        for row in rows
        if code in ("", row.code)
        and (sought in row.project or sought in (row.key or "").casefold())
    )


def page_of(view: SweepView, code: str, text: str, page: int) -> Page[FailureRow]:
    """One page of the failures that match; a page beyond the last one is the last."""
    found = matching(view.failures, code, text)
    pages = max(1, -(-len(found) // PAGE_SIZE))
    page = min(max(page, 1), pages)
    start = (page - 1) * PAGE_SIZE
    return Page(
        rows=found[start : start + PAGE_SIZE],
        total=len(view.failures),
        matching=len(found),
        page=page,
        pages=pages,
        as_of=view.failures_as_of,
        is_complete=view.failures_complete,
    )


def by_code(rows: Iterable[FailureRow]) -> tuple[tuple[str, int, CodeHelp], ...]:
    """How many failures each code has, with its help; the most frequent first."""
    codes = Counter(row.code for row in rows).most_common()
    return tuple((code, number, code_help(code)) for code, number in codes)


def as_text(rows: Iterable[FailureRow]) -> str:
    """A line each: code, project, key, with tabs between; what does not print is escaped."""
    return "".join(f"{row.code}\t{row.project}\t{_printable(row.key or '')}\n" for row in rows)


def as_csv(rows: Iterable[FailureRow]) -> str:
    """RFC 4180. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("project", "key", "code"))
    writer.writerows((row.project, _cell(row.key or ""), row.code) for row in rows)
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _printable(text: str) -> str:
    return "".join(
        one if one.isprintable() and one != "\\" else one.encode("unicode_escape").decode()
        for one in text
    )
