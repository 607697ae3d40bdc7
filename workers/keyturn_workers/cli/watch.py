"""Watching a rotation or a sweep to its end by its events (SPEC 6.7, 14).

Nothing depends on the watching: it reads the stream of events, and may stop and begin
again. Progress goes to standard error: a bar on a terminal, a plain line now and then
elsewhere, nothing where the output is JSON. The end is the caller's to tell.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from keyturn.errors import SettingsError
from keyturn.messages import COUNT_FIELDS, CountedEvent, Event, Failed, Rejected, RotationAccepted
from keyturn.publisher import PublisherError
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_table, printable
from keyturn_workers.cli.progress import Pace
from keyturn_workers.cli.publishing import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_EVERY_S: Final = 5.0
_ALWAYS_SHOWN: Final = ("objects", "rewrapped", "failed")

Count = Callable[[], Coroutine[Any, Any, int]]


class Display(Protocol):
    """Where progress is shown."""

    def show(self, pace: Pace, state: str) -> None:
        """Show how far it is."""
        ...


async def watch(
    events: AsyncGenerator[Event, None], *, as_json: bool, count: Count | None = None
) -> Event:
    """Show the progress of a rotation or a sweep until it ends; return its last event.

    Args:
        events: Its events, and no others, up to its end.
        as_json: Show nothing.
        count: Counts the objects there are, beside the watching: without it, no time left
            can be told.

    Raises:
        EventsUnavailableError: there is no stream of events, or it may not be read.
    """
    pace = Pace()
    with shown_on(as_json=as_json) as display:
        display.show(pace, "waiting for a worker")
        async with AsyncExitStack() as stack:
            if count is not None and not as_json:
                await stack.enter_async_context(_counting(count, pace))
            await stack.enter_async_context(aclosing(events))
            last: Event | None = None
            async for event in events:
                pace.take(event)
                display.show(pace, _state(event))
                last = event
    if last is None:
        raise PublisherError("the stream of events ended")  # it never does
    return last


def _state(event: Event) -> str:
    match event:
        case RotationAccepted():
            return f"generation {event.generation}"
        case CountedEvent():
            return str(event.project)
        case _:
            return event.type


@asynccontextmanager
async def _counting(count: Count, pace: Pace) -> AsyncIterator[None]:
    async def run() -> None:
        pace.expected = await count()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        # A count is a courtesy: where it fails, only the time left stays unknown.
        await asyncio.gather(task, return_exceptions=True)


def counted(project: str) -> Count | None:
    """Counts a project's objects by listing them; None where no bucket is configured."""
    try:
        settings = S3Settings.read()
    except SettingsError:
        return None

    async def count() -> int:
        async with open_bucket(settings, max_connections=1) as storage:
            found = 0
            async for _ in storage.list(f"{project}/"):
                found += 1
            return found

    return count


@contextmanager
def shown_on(*, as_json: bool) -> "Iterator[Display]":
    """The display for this process's standard error."""
    if as_json:
        yield Nowhere()
    elif sys.stderr.isatty():
        with bar(Console(file=sys.stderr)) as display:
            yield display
    else:
        yield Lines()


class Nowhere:
    """Shows nothing."""

    def show(self, pace: Pace, state: str) -> None:
        """Nothing."""


class Lines:
    """A plain line at first and then every few seconds.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s = 0.0
        self._shown = False

    def show(self, pace: Pace, state: str) -> None:
        """A line, unless the last one is fresh."""
        if self._shown and self._clock() < self._next_s:
            return
        self._shown, self._next_s = True, self._clock() + LINE_EVERY_S
        note(f"{state}: {', '.join(pace.parts(datetime.now(UTC)))}")


class Bar:
    """A line that moves: what is done, how fast, how long it may take."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, state="", parts="")

    def show(self, pace: Pace, state: str) -> None:
        """Move."""
        self._progress.update(
            self._task,
            completed=pace.done,
            total=pace.total,
            state=printable(state),
            parts=", ".join(pace.parts(datetime.now(UTC))),
        )


@contextmanager
def bar(console: Console) -> "Iterator[Bar]":
    """A progress bar; it is taken away at the end."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[parts]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)


def tell_end(event: Event, **shown: object) -> None:
    """The end of a rotation or a sweep as a table: what is worth a column.

    Args:
        event: The last event.
        shown: More columns, such as the id, behind the others.
    """
    if not isinstance(event, CountedEvent):
        return
    counts = {name: getattr(event, name) for name in COUNT_FIELDS}
    used = {n: c for n, c in counts.items() if c or n in _ALWAYS_SHOWN}
    row = {"project": event.project, **used, "clean": event.clean, **shown}
    print_table(tuple(row), [tuple(row.values())])


def check_end(event: Event, request_id: str) -> None:
    """Fail where the end is none to be content with.

    Raises:
        CommandError: it was refused, cannot go on, or is not clean.
    """
    if isinstance(event, Failed):
        raise CommandError(f"{refusal(event)}; keyturn status {request_id} tells more")
    if isinstance(event, Rejected):
        raise refusal(event)
    if isinstance(event, CountedEvent) and not event.clean:
        raise CommandError(
            f"not clean: {event.failed} failed, {event.noncurrent_stale} noncurrent versions "
            f"stale; keyturn status {request_id} tells more"
        )
