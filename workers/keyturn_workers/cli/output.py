"""What commands print: tables for people, JSON for scripts, progress on a terminal (SPEC 14).

Keys, metadata and headers are written by others. They are escaped first, so that a control
sequence in a key never reaches a terminal. Outside a terminal, tables are plain columns.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH: Final = 100_000

Row = dict[str, Any]


def printable(text: str) -> str:
    """The text with every unprintable character escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Any) -> None:
    """Print one JSON document; pure ASCII, so that nothing in it can control a terminal."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201  # its purpose


def print_line(text: str) -> None:
    """Print one plain line."""
    print(printable(text))  # noqa: T201  # its purpose


def print_rows(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    *,
    unfolded: Collection[str] = (),
    as_json: bool = False,
) -> None:
    """Print a table with these columns of each row, or all of each row as JSON.

    In a table a missing value prints as `-`.
    """
    if as_json:
        print_json(rows)
    else:
        cells = ([row.get(name) for name in columns] for row in rows)
        print_table(columns, cells, unfolded=unfolded)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, unfolded: Collection[str] = ()
) -> None:
    """Print a table: with a ruled header on a terminal, plain columns elsewhere.

    None prints as `-`. Columns in `unfolded` stay on one line: ids that people copy.
    """
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else _PLAIN_WIDTH, highlight=False)
    table = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(Text(name), overflow="fold", no_wrap=not terminal or name in unfolded)
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
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(printable(str(value)))


@contextmanager
def progress_display(*columns: ProgressColumn, enabled: bool = True) -> Iterator[Progress]:
    """Progress on standard error, removed at the end; disabled outside a terminal."""
    console = Console(file=sys.stderr)
    disable = not enabled or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        yield progress


def _byte_columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


class ByteProgress:
    """Counts transferred bytes."""

    def __init__(self, progress: Progress, total_bytes: int | None) -> None:
        self._progress = progress
        self._task_id = progress.add_task("", total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        """Count further bytes as transferred."""
        self._progress.advance(self._task_id, count_bytes)

    def label(self, text: str) -> None:
        """Show what is being transferred."""
        self._progress.update(self._task_id, description=printable(text))


@contextmanager
def byte_progress(total_bytes: int | None, *, enabled: bool = True) -> Iterator[ByteProgress]:
    """A progress bar for bytes; `total_bytes` is None where the size is unknown."""
    with progress_display(*_byte_columns(), enabled=enabled) as progress:
        yield ByteProgress(progress, total_bytes)


class ObjectProgress:
    """Counts objects and their bytes; shows the time left once their number is known."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task_id = progress.add_task("", total=None)
        self._objects = 0
        self._of = ""

    def advance(self, objects: int, size_bytes: int) -> None:
        """Count further objects and bytes as done; a failure takes bytes back."""
        self._objects += objects
        self._progress.update(
            self._task_id,
            advance=size_bytes,
            description=f"{self._objects:,}{self._of} objects",
        )

    def expect(self, objects: int, size_bytes: int) -> None:
        """Show how many there are."""
        self._of = f" of {objects:,}"
        self._progress.update(self._task_id, total=size_bytes)


@contextmanager
def object_progress(*, enabled: bool = True) -> Iterator[ObjectProgress]:
    """A progress bar for objects and their bytes, of which neither need be known yet."""
    with progress_display(*_byte_columns(), enabled=enabled) as progress:
        yield ObjectProgress(progress)


@contextmanager
def count_progress(total: int | None, *, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar for a number of things; yields what counts further ones as done."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_display(*columns, enabled=enabled) as progress:
        task_id = progress.add_task("", total=total)
        yield lambda count: progress.advance(task_id, count)
