"""Following a rotation or a sweep by its events until it ends (SPEC 6.7, 14).

Watching is optional: it only reads the event stream, and may stop and start again. Progress goes to
standard error: a bar on a terminal, otherwise a line every few seconds, nothing with JSON output.
The caller prints the end.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.table import Column

from keyturn.counts import Counts
from keyturn.errors import PublisherError, SettingsError
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.events import (
    CountedEvent,
    Event,
    Failed,
    Rejected,
    RotationAccepted,
    SweepProgressed,
)
from keyturn.messages.status import SweepStatus
from keyturn.progress import Progress, describe
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import count_objects, open_bucket, optional_task
from keyturn_workers.cli.errors import CommandError, command_line, note
from keyturn_workers.cli.output import print_rows, printable
from keyturn_workers.cli.publishing import event_error

LINE_INTERVAL_S: Final = 5.0
_TICK_S: Final = 1.0
# A wait is reported if it becomes longer by this.
_EXTENDED: Final = timedelta(seconds=5)
_BAR_CHARACTERS: Final = 10
_ALWAYS_SHOWN: Final = ("objects", "rewrapped", "failed")

ObjectCounter = Callable[[], Coroutine[Any, Any, int]]


class Followed:
    """The state of a rotation or sweep by its events so far.

    Attributes:
        state: The current activity.
        expected: The number of objects in a listing, if there was one.
        is_extended: True if the wait for a proof has begun again.
    """

    def __init__(self) -> None:
        self.state = "waiting for a worker"
        self.expected: int | None = None
        self.is_extended = False
        self._counts: dict[str, Counts] = {}
        self._progress: dict[str, Progress] = {}
        self._started_at: datetime | None = None

    def add(self, event: Event) -> None:
        """Add an event."""
        self._started_at = self._started_at or parse_time(event.at)
        self.state = _state(event)
        if isinstance(event, CountedEvent):
            project = str(event.project)
            if project == ALL_PROJECTS:  # the sums of all parts
                self._counts.clear()
            self._counts[project] = event.counts
        if isinstance(event, SweepProgressed) and event.progress is not None:
            before = self._progress.get(event.project)
            if before is not None and _is_extended(before, event.progress):
                self.is_extended = True
            self._progress[event.project] = event.progress

    def set(self, row: SweepStatus) -> None:
        """Replace the state by that of a record."""
        self.state = row.project
        self._counts = {row.project: row.counts or Counts()}
        self._progress = {} if row.progress is None else {row.project: row.progress}
        self._started_at = None if row.started_at is None else parse_time(row.started_at)

    @property
    def counts(self) -> Counts:
        """The counts, summed over projects."""
        return sum(self._counts.values(), Counts())

    @property
    def progress(self) -> Progress | None:
        """The progress; None before the first event, and for a sweep of all."""
        if len(self._progress) != 1:
            return None
        (progress,) = self._progress.values()
        if progress.total is None and self.expected is not None:
            total = max(self.expected - self.counts.foreign, progress.done)
            progress = progress.model_copy(update={"total": total})
        return progress

    def parts(self, now: datetime) -> Iterator[str]:
        """Yield the parts of a one-line summary."""
        progress, counts = self.progress, self.counts
        yield f"{counts.objects} objects" if progress is None else describe(progress, now)
        yield f"{counts.rewrapped} rewrapped"
        for name in ("encrypted", "failed"):
            if count := getattr(counts, name):
                yield f"{count} {name}"

    def elapsed(self, now: datetime) -> timedelta:
        """The time since the first event, in whole seconds."""
        return timedelta(seconds=max(0, int((now - (self._started_at or now)).total_seconds())))


def _is_extended(before: Progress, after: Progress) -> bool:
    """Return whether an object can be proven only later than it seemed."""
    if before.phase != "proving" or before.proof_possible_at is None:
        return False
    if after.phase != "proving" or after.proof_possible_at is None:
        return False
    longer = parse_time(after.proof_possible_at) - parse_time(before.proof_possible_at)
    return longer >= _EXTENDED


Display = Callable[[Followed], None]
"""Shows the current state."""


async def watch(
    events: AsyncGenerator[Event, None],
    *,
    as_json: bool,
    count: ObjectCounter | None = None,
    known: Event | None = None,
) -> Event:
    """Show the progress of a rotation or sweep until it ends; return the last event.

    Args:
        events: Its events, and no others, until the end.
        as_json: Show nothing.
        count: Counts the objects meanwhile, in case the project is large.
        known: An event that has arrived already, which `events` may repeat.

    Raises:
        EventsUnavailableError: the event stream does not exist or may not be read.
    """
    followed = Followed()
    if known is not None:
        followed.add(known)

    async def count_expected() -> None:
        followed.expected = None if count is None else await count()

    last: Event | None = None
    with open_display(as_json=as_json) as show:

        async def tick() -> None:
            # Time passes between events, and the earliest end comes closer.
            while True:
                show(followed)
                await asyncio.sleep(_TICK_S)

        counting = optional_task(None if count is None or as_json else count_expected)
        async with counting, optional_task(None if as_json else tick), aclosing(events):
            async for event in events:
                was_extended = followed.is_extended
                followed.add(event)
                if followed.is_extended and not was_extended and not as_json:
                    note("the wait for late writes begins again, as it does when a worker starts")
                show(followed)
                last = event
    if last is None:
        raise PublisherError("the event stream ended")  # it never does
    return last


def _state(event: Event) -> str:
    match event:
        case RotationAccepted():
            return f"generation {event.generation}"
        case CountedEvent():
            return str(event.project)
        case _:
            return event.type


def object_counter(project: str) -> ObjectCounter | None:
    """Return a counter of a project's objects; None if no bucket is configured."""
    try:
        settings = S3Settings.read()
    except SettingsError:
        return None

    async def count() -> int:
        async with open_bucket(settings, max_connections=1) as storage:
            return await count_objects(storage, project)

    return count


@contextmanager
def open_display(*, as_json: bool) -> Iterator[Display]:
    """Yield the display for this process's standard error."""
    if as_json:
        yield lambda _followed: None
    elif sys.stderr.isatty():
        with bar_display(Console(file=sys.stderr)) as show:
            yield show
    else:
        yield line_display()


def line_display(clock: Callable[[], float] = time.monotonic) -> Display:
    """Return a display of plain lines, at first and then every few seconds, by this clock."""
    next_s = -math.inf

    def show(followed: Followed) -> None:
        nonlocal next_s
        now_s = clock()
        if now_s >= next_s:
            next_s = now_s + LINE_INTERVAL_S
            now = datetime.now(UTC)
            parts = [*followed.parts(now), f"{followed.elapsed(now)} elapsed"]
            note(f"{followed.state}: {', '.join(parts)}")

    return show


@contextmanager
def bar_display(console: Console) -> Iterator[Display]:
    """Yield one bar for rewrapping and proving, with the counts; it disappears at the end."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[elapsed]}"),
        BarColumn(_BAR_CHARACTERS),
        TaskProgressColumn(),
        # Wraps instead of being cut: the reason of a wait comes last.
        TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1)),
    )
    with ProgressBar(*columns, console=console, transient=True, expand=True) as bar:
        task_id = bar.add_task("", total=None, elapsed="", text="")

        def show(followed: Followed) -> None:
            now = datetime.now(UTC)
            progress = followed.progress
            fraction = None if progress is None else progress.fraction
            text = ", ".join(followed.parts(now))
            if progress is None:
                text = f"{printable(followed.state)}: {text}"
            bar.update(
                task_id,
                completed=fraction or 0,
                total=None if fraction is None else 1,
                elapsed=str(followed.elapsed(now)),
                text=text,
            )

        yield show


def print_end(event: Event, **more: object) -> None:
    """Print the end of a rotation or sweep as a table of the counts that matter.

    `more` are further columns, such as the id.
    """
    if not isinstance(event, CountedEvent):
        return
    counts = event.counts.to_json()
    used = {name: n for name, n in counts.items() if n or name in _ALWAYS_SHOWN}
    row = {"project": event.project, **used, "clean": event.clean, **more}
    print_rows(tuple(row), [row])


def check_end(event: Event, request_id: str) -> None:
    """Fail unless the end is clean.

    Raises:
        CommandError: rejected, failed, or not clean.
    """
    hint = f"for details: {command_line('status', request_id)}"
    if isinstance(event, Failed):
        raise CommandError(f"{event_error(event)}; {hint}")
    if isinstance(event, Rejected):
        raise event_error(event)
    if isinstance(event, CountedEvent) and not event.clean:
        raise CommandError(f"{not_clean(event.failed, event.noncurrent_stale)}; {hint}")


def not_clean(failed: int, noncurrent_stale: int) -> str:
    """Return why a sweep is not clean."""
    return f"not clean: {failed} failed, {noncurrent_stale} stale noncurrent versions"
