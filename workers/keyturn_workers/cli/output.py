"""Output of commands: tables for people, JSON for scripts, progress on a terminal (SPEC 14).

Keys, metadata and headers are untrusted. They are escaped first, so that a control sequence in a
key never reaches a terminal. Outside a terminal, tables are plain columns.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import structlog
import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
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
from typer.main import get_command

from keyturn.identifiers import format_time, parse_time

_PLAIN_WIDTH: Final = 100_000
_GAP: Final = 2
_NUMBER: Final = re.compile(r"-|[\d,.]+")
# Keys and paths may be longer than a terminal is wide: they wrap anywhere.
_LONG_NAMES: Final = frozenset({"from", "key", "path", "record", "s3_key", "to", "value"})
_WRAPPED_LEAST: Final = 20
# The columns that a table omits if it is too wide, the least needed first.
_OPTIONAL: Final = (
    *("algorithm", "stored_bytes", "publisher", "request_id", "upload_id", "answers", "size"),
    *("automatic_rotation", "imported", "version", "earlier_keks", "kek_id", "enrolled_at"),
    *("rewrapped", "mark_generation", "watch", "delete", "objects", "started_at", "ended_at"),
    *("changed_at", "listed_at", "plaintext", "generation", "queue", "type", "path"),
    "detail",
)
_wide: Final = ContextVar("wide", default=False)

Row = dict[str, Any]
AS_JSON_HELP: Final = "Print JSON instead of a table."


def _set_wide(wide: bool) -> None:
    _wide.set(wide)


def add_wide_option(command: Any) -> None:
    """Give `--wide` to a command, or to the commands of a group, that print a table."""

    def with_option(
        wide: Annotated[
            bool,
            typer.Option(
                "--wide",
                help="Print all columns, however wide the table is.",
                callback=_set_wide,
                expose_value=False,
            ),
        ] = False,
    ) -> None: ...

    for each in getattr(command, "commands", {"": command}).values():
        if any(getattr(param, "help", "") == AS_JSON_HELP for param in each.params):
            app = typer.Typer(add_completion=False)
            app.command()(with_option)
            each.params += get_command(app).params


def command_group(name: str, summary: str) -> typer.Typer:
    """Return an app for the commands of a group, which lists them if it is called alone."""
    return typer.Typer(
        name=name, help=summary, callback=_list_commands, invoke_without_command=True
    )


def _list_commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201  # its purpose
        raise typer.Exit(2)


def printable(text: str) -> str:
    """Return the text with every unprintable character escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_seconds(instant: datetime | None) -> str | None:
    """Return a time in the form of SPEC 1, to the second."""
    return None if instant is None else f"{format_time(instant).partition('.')[0]}Z"


def shown_time(time: str | None) -> str | None:
    """Return a message's time, to the second."""
    return None if time is None else to_seconds(parse_time(time))


def print_json(document: Any) -> None:
    """Print one JSON document in pure ASCII, so that it cannot control a terminal."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201  # its purpose


def print_line(text: str) -> None:
    """Print one plain line."""
    print(printable(text))  # noqa: T201  # its purpose


def print_rows(
    columns: Sequence[str], rows: Sequence[Mapping[str, object]], *, as_json: bool = False
) -> None:
    """Print a table with these columns of each row, or all of each row as JSON.

    In a table a missing value prints as `-`.
    """
    if as_json:
        print_json(rows)
    else:
        print_table(columns, ([row.get(name) for name in columns] for row in rows))


def print_section(
    title: str, rows: Sequence[Row] | None, columns: Sequence[str], *, first: bool = False
) -> None:
    """Print a title and its table, or `none` for no rows; of None only the title.

    An empty line precedes it, unless it is the first section.
    """
    if not first:
        print_line("")
    print_line(title)
    if rows:
        print_rows(columns, rows)
    elif rows is not None:
        print_line("none")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: with a ruled header on a terminal, all columns and plain elsewhere.

    A table too wide for the terminal omits optional columns, then wraps cells between words: an id
    stays on one line, and can be copied. None prints as `-`.
    """
    terminal = sys.stdout.isatty()
    cells = [[_cell(value) for value in row] for row in rows]
    if terminal and not cells:
        print_line("none")
        return
    console = Console(file=sys.stdout, width=None if terminal else _PLAIN_WIDTH, highlight=False)
    texts = [[name, *(row[at].plain for row in cells)] for at, name in enumerate(columns)]
    widths = _fit(texts, _PLAIN_WIDTH if _wide.get() else console.width)
    console.width = max(console.width, _total(widths.values()))
    # A box separates columns by one more space.
    box, right = (SIMPLE_HEAD, _GAP - 1) if terminal else (None, _GAP)
    table = Table(box=box, pad_edge=False, show_edge=False, padding=(0, right, 0, 0))
    for at, width in widths.items():
        name, *column = texts[at]
        is_number = column and all(map(_NUMBER.fullmatch, column))
        justify: Literal["right", "left"] = "right" if is_number else "left"
        table.add_column(Text(name), width=width, justify=justify, overflow="fold")
    for row in cells:
        table.add_row(*(row[at] for at in widths))
    with console.capture() as capture:
        console.print(table, crop=False)
    for line in capture.get().splitlines():
        print(line.rstrip())  # noqa: T201  # its purpose


def _total(widths: Iterable[int]) -> int:
    return sum(width + _GAP for width in widths) - _GAP


def _fit(columns: Sequence[Sequence[str]], available: int) -> dict[int, int]:
    """Return the columns to print (each begins with its name), by position, and their widths."""
    widths = {at: max(map(cell_len, column)) for at, column in enumerate(columns)}
    least = {}
    for at, column in enumerate(columns):
        words = [] if column[0] in _LONG_NAMES else " ".join(column).split()
        least[at] = min(widths[at], max([_WRAPPED_LEAST, *map(cell_len, words)]))
    for name in _OPTIONAL:
        if _total(least[at] for at in widths) <= available:
            break
        widths = {at: width for at, width in widths.items() if columns[at][0] != name}
    while _total(widths.values()) > available:
        wrappable = [at for at in widths if widths[at] > least[at]]
        if not wrappable:
            break
        widths[max(wrappable, key=widths.__getitem__)] -= 1
    return widths


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list | tuple):
        return Text(printable(", ".join(map(str, value))) or "-")
    return Text(printable(str(value)))


@contextmanager
def progress_display(*columns: ProgressColumn, enabled: bool = True) -> Iterator[Progress]:
    """Show progress on standard error, removed at the end; disabled outside a terminal."""
    console = Console(file=sys.stderr)
    disable = not enabled or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        yield progress


class TransferProgress:
    """Counts bytes and their objects; shows the time left once the totals are known."""

    def __init__(self, progress: Progress, total_bytes: int | None) -> None:
        self._progress = progress
        self._task_id = progress.add_task("", total=total_bytes)
        self._objects = 0
        self._of = ""

    def label(self, text: str) -> None:
        """Show the current transfer."""
        self._progress.update(self._task_id, description=printable(text))

    def advance(self, objects: int, size_bytes: int) -> None:
        """Count further objects and bytes as done; a failure subtracts bytes."""
        self._objects += objects
        self._progress.update(self._task_id, advance=size_bytes)
        if self._objects or self._of:
            self.label(f"{self._objects:,}{self._of} objects")

    def expect(self, objects: int, size_bytes: int) -> None:
        """Show the totals."""
        self._of = f" of {objects:,}"
        self._progress.update(self._task_id, total=size_bytes)


@contextmanager
def transfer_progress(
    total_bytes: int | None = None, *, enabled: bool = True
) -> Iterator[TransferProgress]:
    """Yield a progress bar for bytes; `total_bytes` is None if not known yet."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with progress_display(*columns, enabled=enabled) as progress:
        yield TransferProgress(progress, total_bytes)


class CountProgress:
    """Counts items."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._task_id = progress.add_task("", total=total)

    def label(self, text: str) -> None:
        """Show what is going on."""
        self._progress.update(self._task_id, description=printable(text))

    def advance(self, count: int) -> None:
        """Count further items."""
        self._progress.advance(self._task_id, count)


@contextmanager
def count_progress(total: int | None) -> Iterator[CountProgress]:
    """Yield a progress bar for a number of items; None if it is not known yet."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with progress_display(*columns) as progress:
        yield CountProgress(progress, total)


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: a command prints its result or one line."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
