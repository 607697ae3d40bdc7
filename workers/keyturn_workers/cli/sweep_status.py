"""`keyturn status ID`: one sweep, rotation or erasure (SPEC 8.5, 14).

An operator, who has the master keys, reads its record in the bucket, again and again to follow it.
A publisher reads the events of its own requests.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from keyturn.counts import Counts
from keyturn.errors import NotFoundError
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.codec import request_id
from keyturn.messages.events import (
    CountedEvent,
    Event,
    Failed,
    Rejected,
    RotationAccepted,
    SweepProgressed,
)
from keyturn.messages.status import StatusFilter, SweepStatus
from keyturn.progress import describe
from keyturn.publisher.client import PUBLISH_TIMEOUT_S
from keyturn.publisher.connection import BrokerAddress, BrokerConnection
from keyturn.publisher.event_matcher import is_end
from keyturn.publisher.event_stream import Verifier, follow, last_offset
from keyturn.settings import PublisherSettings
from keyturn.topology import publisher_stream
from keyturn_workers.cli.bucket import open_bucket, optional_task
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.cli.output import (
    Row,
    print_json,
    print_line,
    print_section,
    print_table,
    shown_time,
)
from keyturn_workers.cli.reports import WHOLE, StatusReports, read_records, unreadable_sweeps
from keyturn_workers.cli.watch import Followed, not_clean, object_counter, open_display, watch
from keyturn_workers.keys.sweep_records import parse_record_path
from keyturn_workers.process.settings import OperatorSettings

MAX_SHOWN: Final = 20
_POLL_S: Final = 1.0
# Reading a record takes at most this part of the time.
_PAUSE_FACTOR: Final = 10
NO_SWEEP: Final = "the bucket has no sweep or rotation with this id"
_SILENCE_S: Final = 5.0

PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "waits_for_round", "code", "detail", "clean"),
    *("requested_at", "started_at", "ended_at"),
    *("master_key", "encrypt_plaintext", "repair"),
)
_ENDED: Final = {
    "rotation": "no wrap under earlier keys is left",
    "sweep": "every object is in the desired state",
}


@dataclass(frozen=True, slots=True)
class SweepReport:
    """A sweep, rotation or erasure.

    Attributes:
        row: It as a row.
        document: The output of the command.
        other_projects: Projects with another sweep of the same id: publishers choose the ids.
    """

    row: SweepStatus
    document: dict[str, Any]
    other_projects: tuple[str, ...] = ()


# By its record.


class SweepReader:
    """Reads the records of one id.

    `limit` is how many failures to list, None for all; `counts_objects` whether all objects are
    counted for the time left; `project` the project of the sweep, if it is known.
    """

    def __init__(
        self,
        settings: OperatorSettings,
        sweep_id: str,
        project: str | None,
        limit: int | None,
        *,
        counts_objects: bool,
    ) -> None:
        self._settings = settings
        self._id = sweep_id
        self._project = project
        self._limit = limit
        # One more than the limit, to know whether there are more.
        failures = sys.maxsize if limit is None else limit + 1
        self._bounds = replace(WHOLE, counts_objects=counts_objects, failures=failures)

    async def read(self) -> SweepReport | None:
        """Return the report; None if there is no record of it.

        Without a project it is a sweep of all, or of the first project.

        Raises:
            CommandError: the record does not open.
            StorageUnavailableError: the storage does not respond.
        """
        async with self._open() as reports:
            return await self._read(reports)

    async def watch(self, project: str, *, as_json: bool) -> SweepReport:
        """Show the progress until it has ended; return the final report; errors as `read`.

        Records are read, not events: they say how it is even where another request has the same id.
        """
        self._project = project
        followed = Followed()
        count = None if project == ALL_PROJECTS else object_counter(project)

        async def count_expected() -> None:
            followed.expected = None if count is None else await count()

        counting = optional_task(None if count is None or as_json else count_expected)
        self._bounds = replace(self._bounds, counts_objects=False)
        async with self._open() as reports:
            with open_display(as_json=as_json) as show:
                async with counting:
                    while True:
                        began_s = time.monotonic()
                        report = await self._read(reports)
                        if report is None:
                            raise NotFoundError(NO_SWEEP)
                        if report.row.status != "running":
                            return report
                        followed.set(report.row)
                        pause_s = max(_POLL_S, _PAUSE_FACTOR * (time.monotonic() - began_s))
                        until_s = time.monotonic() + pause_s
                        while time.monotonic() < until_s:
                            show(followed)
                            await asyncio.sleep(_POLL_S)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[StatusReports]:
        async with (
            open_bucket(self._settings) as storage,
            open_report_keys(self._settings, storage, "status") as keys,
        ):
            yield StatusReports(storage, keys, bounds=self._bounds)

    async def _read(self, reports: StatusReports) -> SweepReport | None:
        names = [self._project] if self._project is not None else await self._projects(reports)
        if not names:
            return None
        rows = await reports.rows("sweep", names[0], sweep_id=self._id)
        if not rows:
            return None
        row, *parts = rows
        if row.status is None and not row.part_of_all:
            raise CommandError(f"{row.code}: {row.detail}" if row.detail else str(row.code))
        found = await reports.rows("failures", names[0], sweep_id=self._id)
        # Each page of the view begins with the sweep itself.
        parts = sorted(
            (part for part in parts if part.project != row.project), key=lambda part: part.project
        )
        document = _document(row, parts)
        document["failures"] = [each.model_dump() for each in found[: self._limit]]
        document["more_failures"] = self._limit is not None and len(found) > self._limit
        return SweepReport(row, document, tuple(names[1:]))

    async def _projects(self, reports: StatusReports) -> list[str]:
        """Return the projects that have a sweep with this id; only `*` if there is one of all.

        The parts of a sweep of all share its id; they are not other sweeps.
        """
        wanted = StatusFilter(text=self._id, parts=True)
        rows = await reports.rows("sweeps", filter=wanted)
        found = sorted({row.project for row in rows if row.sweep_id == self._id})
        if ALL_PROJECTS in found:
            return [ALL_PROJECTS]
        if not found:
            paths = map(parse_record_path, unreadable_sweeps(await read_records(reports, None)))
            unreadable = sorted(path.project for path in paths if path is not None and path.is_main)
            if unreadable:
                shown = ", ".join(unreadable[:MAX_SHOWN])
                note(f"the records of these projects do not open: {shown}")
        return found


def _document(row: SweepStatus, parts: Sequence[SweepStatus]) -> dict[str, Any]:
    values = row.model_dump() | sweep_row(row)
    progress = row.progress
    document = {name: values[name] for name in _FIELDS} | {
        "counts": {} if row.counts is None else row.counts.model_dump(),
        "rate_per_s": None if row.rate_per_s is None else round(row.rate_per_s, 1),
        "left_s": row.left_s,
        "progress": None if progress is None else progress.model_dump(exclude_none=True),
        "round": row.round_id,
        "round_also_answers": list(row.also_answers or ()),
    }
    if row.project == ALL_PROJECTS:
        return document | {
            "parts": {
                "ended_clean": row.parts_clean,
                "live": _part_rows(part for part in parts if part.ended_at is None),
                "ended_not_clean": _part_rows(part for part in parts if part.ended_at is not None),
            }
        }
    return document | {
        "proves_generation": row.generation,
        "proves_master_key": row.proves_master_key,
        "ranges": row.ranges,
        "ranges_planned": row.ranges_planned,
        "pages": row.pages,
        "pages_not_proven": row.pages_open,
        "proof_not_before": progress and shown_time(progress.proof_possible_at),
    }


def _part_rows(parts: Iterable[SweepStatus]) -> list[Row]:
    return [{name: sweep_row(part)[name] for name in PART_COLUMNS} for part in parts]


def sweep_row(row: SweepStatus) -> Row:
    """Return a sweep in one row."""
    counts = row.counts or Counts()
    return {
        "sweep_id": row.sweep_id,
        "kind": row.kind,
        "project": row.project,
        "status": row.status,
        "code": row.code,
        "clean": row.clean,
        "objects": counts.objects,
        "rewrapped": counts.rewrapped,
        "failed": counts.failed,
        "started_at": shown_time(row.started_at),
        "ended_at": shown_time(row.ended_at),
        "detail": row.detail,
    }


# By the events of a publisher's own request.


@dataclass(slots=True)
class OwnRequest:
    """A request of this publisher, by its events so far.

    Attributes:
        id: Its id.
        newest: The newest event; None before the first.
    """

    id: str
    newest: Event | None = None
    _row: SweepStatus | None = field(default=None, init=False)

    def add(self, event: Event) -> bool:
        """Add an event, and return whether it changes anything."""
        if self.newest is not None and isinstance(event, Rejected):
            return False  # it answers another attempt; the accepted one goes on
        self.newest = event
        if isinstance(event, (RotationAccepted, CountedEvent, Failed)):
            self._row = self._next_row(event)
        return True

    def report(self) -> SweepReport | None:
        """Return the sweep or rotation; None if the request is for something else."""
        if self._row is None:
            return None
        document = _document(self._row, ())
        document |= {"failures": [], "more_failures": False}
        return SweepReport(self._row, document)

    def _next_row(self, event: Event) -> SweepStatus:
        row = self._row or SweepStatus(
            sweep_id=self.id, project=str(event.project), kind="sweep", started_at=event.at
        )
        changes: dict[str, Any] = {"status": "running", "ended_at": None, "code": None}
        if event.type.startswith("rotation."):
            changes["kind"] = "rotation"
        match event:
            case RotationAccepted():
                changes["generation"] = event.generation
            case SweepProgressed():
                changes |= {"counts": event.counts, "progress": event.progress}
            case CountedEvent():
                changes |= {"status": "done", "clean": event.clean, "counts": event.counts}
                changes["evidence"] = getattr(event, "evidence", None)
            case _ if isinstance(event, Failed):
                changes |= {"status": "failed", "code": event.code, "detail": event.detail}
        if is_end(event):
            changes["ended_at"] = event.at
        return row.model_copy(update=changes)


async def own_events(
    settings: PublisherSettings, request: OwnRequest, project: str | None, *, following: bool
) -> AsyncGenerator[Event, None]:
    """Yield the newest event of a request and, if `following`, each further one until its end.

    `request` gets every event. The publisher's stream has those of the last 14 days. A failure in
    it may not be the end: an operator may have resumed the sweep since.

    Raises:
        EventsUnavailableError: the stream does not exist, or may not be read.
    """
    verifier = Verifier(settings.deployment, settings.event_public_key)
    stream = publisher_stream(settings.publisher_name)
    connection = BrokerConnection(BrokerAddress.of(settings), publish_timeout_s=PUBLISH_TIMEOUT_S)
    try:
        last = await last_offset(connection, stream, silence_s=_SILENCE_S)
        is_current = last is None
        if is_current and not following:
            return
        async with aclosing(follow(connection, "first", stream)) as records:
            async for record in records:
                for event in verifier.events(record) if request.id.encode() in record.body else ():
                    is_own = request_id(event) == request.id and project in (None, event.project)
                    if is_own and request.add(event) and is_current:
                        yield event
                if not is_current and last is not None and record.offset >= last:
                    is_current = True
                    if request.newest is not None:
                        yield request.newest
                    elif not following:
                        return
                is_over = request.newest is not None and is_end(request.newest)
                if is_current and (is_over or not following):
                    return
    finally:
        await connection.close()


async def read_own(
    settings: PublisherSettings,
    request: OwnRequest,
    project: str | None,
    *,
    watching: bool,
    as_json: bool,
) -> None:
    """Read the events of a publisher's own request; if `watching`, show them until its end.

    Raises:
        EventsUnavailableError: as `own_events`.
    """
    events = own_events(settings, request, project, following=watching)
    if watching:
        count = None if project in (None, ALL_PROJECTS) else object_counter(project)
        await watch(events, as_json=as_json, count=count)
        return
    async with aclosing(events):
        async for _ in events:
            pass


# Output.


def show_report(report: SweepReport, *, as_json: bool, verbose: bool) -> None:
    """Print one sentence, the counts that are not zero, and failures; or everything."""
    row, document = report.row, report.document
    if as_json:
        print_json(document)
    elif verbose:
        _print_everything(report)
    else:
        print_line(sentence(row, datetime.now(UTC)))
        counts = row.counts or Counts()
        shown = {name: n for name, n in counts.model_dump().items() if n and name != "current"}
        rows = [(name.replace("_", " "), f"{number:,}") for name, number in shown.items()]
        times = [("requested", row.requested_at), ("ended", row.ended_at)]
        rows += [(name, str(shown_time(at))) for name, at in times if at is not None]
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print_line(f"  {name:<{width}}  {value}")
    if not as_json:
        _print_lists(document)
    if others := report.other_projects[:MAX_SHOWN]:
        note(f"other projects have a sweep with this id: {', '.join(others)}")


def _print_everything(report: SweepReport) -> None:
    document = report.document
    nested = ("counts", "parts", "failures", "more_failures", "progress")
    fields = {name: value for name, value in document.items() if name not in nested}
    progress = report.row.progress
    if progress is not None and progress.phase != "ended":
        fields["phase"] = describe(progress, datetime.now(UTC))
    fields["round_also_answers"] = ", ".join(document.get("round_also_answers", ())) or None
    rows = [(name, value) for name, value in fields.items() if value is not None]
    print_table(("field", "value"), [*rows, *document["counts"].items()])


def _print_lists(document: dict[str, Any]) -> None:
    if parts := document.get("parts"):
        others = parts["live"] + parts["ended_not_clean"]
        title = f"Projects: {parts['ended_clean'] or 0} ended clean"
        print_section(f"{title}; the others:" if others else title, others or None, PART_COLUMNS)
    if document["failures"]:
        print_section("Failures", document["failures"], ("code", "project", "key"))
    if document["more_failures"]:
        note("there are more failures; add --failures to see all")


def sentence(row: SweepStatus, now: datetime) -> str:
    """Return the state of a sweep, rotation or erasure in one sentence."""
    of = "all projects" if row.project == ALL_PROJECTS else row.project
    what = f"The {row.kind or 'sweep'} of {of}"
    if row.kind == "rotation" and row.generation is not None:
        what += f" to generation {row.generation}"
    counts = row.counts or Counts()
    if row.status == "failed":
        return ": ".join(part for part in (f"{what} failed", row.code, row.detail) if part)
    if row.status == "done" and not row.clean:
        return f"{what} ended, but {not_clean(counts.failed, counts.noncurrent_stale)}."
    if row.status == "done":
        proven = _ENDED.get(row.kind or "")
        outcome = "is done" if proven is None else f"ended clean{_duration(row)}: {proven}"
        return f"{what} {outcome}."
    if row.waits_for_round:
        return f"{what} waits for the one under way to end."
    if row.progress is None or row.progress.phase == "waiting":
        return f"{what} waits for a worker."
    left = f", about {round(row.left_s)} s left" if row.left_s else ""
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"{what} is running: {describe(row.progress, now)}{failed}{left}."


def _duration(row: SweepStatus) -> str:
    if row.started_at is None or row.ended_at is None:
        return ""
    taken = parse_time(row.ended_at) - parse_time(row.started_at)
    return f" after {max(0, round(taken.total_seconds())):,} s"


def check_report(row: SweepStatus) -> None:
    """Fail unless it ended clean.

    Raises:
        CommandError: it failed, or is not clean.
    """
    if row.code is not None:
        raise CommandError(f"{row.code}: {row.detail}" if row.detail else row.code)
    if not row.clean:
        counts = row.counts or Counts()
        raise CommandError(not_clean(counts.failed, counts.noncurrent_stale))
