"""What commands print: tables for a person, JSON for a script, progress on a terminal.

What others wrote (keys, metadata, headers) is made printable first: a control sequence
in a key must not reach a terminal. Where output is no terminal it is plain columns.
"""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH: Final = 100_000
_NOTHING: Final = "-"


def printable(text: str) -> str:
    """The text with whatever is no printable character written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Any) -> None:
    """One JSON document; pure ASCII, so that nothing in it can steer a terminal."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201  # its purpose


def print_line(text: str) -> None:
    """One plain line to standard output."""
    print(printable(text))  # noqa: T201  # its purpose


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, whole: Collection[str] = ()
) -> None:
    """A table: framed on a terminal, plain columns elsewhere. None shows as `-`.

    Columns in `whole` are never folded: ids that a person copies.
    """
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else _PLAIN_WIDTH, highlight=False)
    table = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold", no_wrap=not terminal or column in whole)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table, crop=False)
    for line in capture.get().splitlines():
        print(line.rstrip())  # noqa: T201  # its purpose


def _cell(value: object) -> Text:
    if value is None:
        return Text(_NOTHING)
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(printable(str(value)))


class Gauge:
    """Counts bytes on a bar, where there is one."""

    def __init__(self, progress: Progress | None, total_bytes: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total_bytes) if progress is not None else None

    def advance(self, count_bytes: int) -> None:
        """Note that so many bytes more are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count_bytes)

    def label(self, text: str) -> None:
        """Say what is under way."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=printable(text))


@contextmanager
def gauge(total_bytes: int | None, *, wanted: bool = True) -> Iterator[Gauge]:
    """A progress bar on standard error where that is a terminal, else nothing."""
    if not wanted or not sys.stderr.isatty():
        yield Gauge(None, total_bytes)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield Gauge(progress, total_bytes)
