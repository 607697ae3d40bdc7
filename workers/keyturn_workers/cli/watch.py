"""Following a rotation or a sweep by its events until it ends (SPEC 6.7, 14).

Nothing depends on it: it only reads the event stream, and may stop and start again.
Progress goes to standard error: a bar on a terminal, otherwise a line every few seconds,
nothing with JSON output. The caller prints the end.
"""

import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from keyturn.errors import SettingsError
from keyturn.messages import COUNT_FIELDS, CountedEvent, Event, Failed, Rejected, RotationAccepted
from keyturn.publisher import PublisherError
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import count_objects, open_bucket, optional_task
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_rows, printable
from keyturn_workers.cli.publishing import event_error
from keyturn_workers.status.progress import SweepProgress

LINE_INTERVAL_S: Final = 5.0
_ALWAYS_SHOWN: Final = ("objects", "rewrapped", "failed")

ObjectCounter = Callable[[], Coroutine[Any, Any, int]]


Display = Callable[[SweepProgress, str], None]
"""Shows the progress and the current state."""


async def watch(
    events: AsyncGenerator[Event, None], *, as_json: bool, count: ObjectCounter | None = None
) -> Event:
    """Show the progress of a rotation or sweep until it ends; the last event.

    Args:
        events: Its events, and no others, until the end.
        as_json: Show nothing.
        count: Counts the objects meanwhile. Without it the time left is unknown.

    Raises:
        EventsUnavailableError: the event stream does not exist or may not be read.
    """
    progress = SweepProgress()

    async def count_expected() -> None:
        progress.expected = None if count is None else await count()

    counting = optional_task(None if count is None or as_json else count_expected)
    last: Event | None = None
    with open_display(as_json=as_json) as show:
        show(progress, "waiting for a worker")
        async with counting, aclosing(events):
            async for event in events:
                progress.add_event(event)
                show(progress, _state(event))
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
    """Counts a project's objects; None if no bucket is configured."""
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
    """The display for this process's standard error."""
    if as_json:
        yield lambda _progress, _state: None
    elif sys.stderr.isatty():
        with bar_display(Console(file=sys.stderr)) as show:
            yield show
    else:
        yield line_display()


def line_display(clock: Callable[[], float] = time.monotonic) -> Display:
    """Prints a plain line at first and then every few seconds, by this clock."""
    next_s = -math.inf

    def show(progress: SweepProgress, state: str) -> None:
        nonlocal next_s
        now_s = clock()
        if now_s >= next_s:
            next_s = now_s + LINE_INTERVAL_S
            note(f"{state}: {', '.join(progress.parts(datetime.now(UTC)))}")

    return show


@contextmanager
def bar_display(console: Console) -> Iterator[Display]:
    """A progress bar with the counts, the rate and the time left; it disappears at the end."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[parts]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task_id = bar.add_task("", total=None, state="", parts="")

        def show(progress: SweepProgress, state: str) -> None:
            bar.update(
                task_id,
                completed=progress.done,
                total=progress.total,
                state=printable(state),
                parts=", ".join(progress.parts(datetime.now(UTC))),
            )

        yield show


def print_end(event: Event, **more: object) -> None:
    """Print the end of a rotation or sweep as a table of the counts that matter.

    Args:
        event: The last event.
        more: Further columns, such as the id.
    """
    if not isinstance(event, CountedEvent):
        return
    counts = {name: getattr(event, name) for name in COUNT_FIELDS}
    used = {name: n for name, n in counts.items() if n or name in _ALWAYS_SHOWN}
    row = {"project": event.project, **used, "clean": event.clean, **more}
    print_rows(tuple(row), [row])


def check_end(event: Event, request_id: str) -> None:
    """Fail unless the end is clean.

    Raises:
        CommandError: rejected, failed, or not clean.
    """
    hint = f"for details: keyturn status {request_id}"
    if isinstance(event, Failed):
        raise CommandError(f"{event_error(event)}; {hint}")
    if isinstance(event, Rejected):
        raise event_error(event)
    if isinstance(event, CountedEvent) and not event.clean:
        raise CommandError(f"{not_clean(event.failed, event.noncurrent_stale)}; {hint}")


def not_clean(failed: int, noncurrent_stale: int) -> str:
    """Why a sweep is not clean."""
    return f"not clean: {failed} failed, {noncurrent_stale} stale noncurrent versions"
