"""`keyturn status`: keyrings, sweeps, objects, and which master keys are in use (SPEC 8, 14).

It needs only the bucket. If it reaches the broker, it also compares keyrings with their marks
(SPEC 5.5); `--watch` needs the broker. It opens records and wraps with the operator's master keys,
and must never show a key, a wrap or a DEK.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.counts import Counts
from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import (
    NotFoundError,
    SettingsError,
    UnknownProjectError,
)
from keyturn.identifiers import ALL_PROJECTS, is_uuid, parse_time
from keyturn.messages.events import Event, Failed, Rejected
from keyturn.messages.status import ProjectStatus, StatusFilter, SweepStatus
from keyturn.progress import describe
from keyturn.publisher.client import Publisher
from keyturn.publisher.event_matcher import EventMatcher, is_end
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, validate_project
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.cli.output import (
    Row,
    print_json,
    print_line,
    print_rows,
    print_table,
    shown_time,
)
from keyturn_workers.cli.publishing import PendingRequest, resumable
from keyturn_workers.cli.reports import (
    OBJECTS_AT_ONCE,
    WHOLE,
    StatusReports,
    find_rolled_back,
    master_key_rows,
    object_rows,
    open_marks,
    read_records,
    take_census,
    unreadable_rows,
    unreadable_sweeps,
)
from keyturn_workers.cli.settings import AuditReaderSettings, StatusSettings
from keyturn_workers.cli.watch import check_end, not_clean, object_counter, watch
from keyturn_workers.keys.customer_keys.providers import open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_COMMANDS
from keyturn_workers.keys.keyring.mark_stream import MarkStream
from keyturn_workers.keys.sweep_records import parse_record_path
from keyturn_workers.process.settings import OperatorSettings

# For the listing, its count and the records, in addition to the objects.
_SPARE_CONNECTIONS: Final = 4
_MAX_SHOWN: Final = 20
_SEVERAL: Final = 2
# Columns of tables that are shown only if a row has a value there.
_RARE: Final = ("code", "mark", "customer_key", "customer_key_code", "erased_at")
_NO_SWEEP: Final = "the bucket has no sweep or rotation with this id"
_REMOVED: Final = "removed"
WAYS_OUT: Final = {
    "rolled_back": "restore the newest record, or `keyturn recover {project}`",
    _REMOVED: "restore the newest record, or `keyturn enroll {project} --adopt`",
    "unknown": "`keyturn recover {project}`, if the broker or the bucket was restored",
}

PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "waits_for_round", "code", "detail", "clean"),
    *("requested_at", "started_at", "ended_at"),
    *("master_key", "encrypt_plaintext", "repair"),
)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """The content of a sweep's record.

    Attributes:
        row: The sweep as a row.
        document: The output of the command.
        other_projects: Projects with another sweep of the same id: publishers choose the ids.
    """

    row: SweepStatus
    document: dict[str, Any]
    other_projects: tuple[str, ...] = ()


async def read_sweep(
    settings: OperatorSettings,
    sweep_id: str,
    project: str | None,
    limit: int | None,
    *,
    time_left: bool = False,
) -> SweepReport | None:
    """Return the report of a sweep; None if there is no record of it.

    Without `project` it is a sweep of all, or of the first project. `limit` is how many failures to
    list, None for all. The time left needs a count of all objects.

    Raises:
        CommandError: the record does not open.
        StorageUnavailableError: the storage does not respond.
    """
    # One more than the limit, to know whether there are more.
    failures = sys.maxsize if limit is None else limit + 1
    bounds = replace(WHOLE, counts_objects=time_left, failures=failures)
    async with (
        open_bucket(settings) as storage,
        open_report_keys(settings, storage, "status") as keys,
    ):
        reports = StatusReports(storage, keys, bounds=bounds)
        names = [project] if project is not None else await _projects_of(reports, sweep_id)
        if not names:
            return None
        rows = await reports.rows("sweep", names[0], sweep_id=sweep_id)
        if not rows:
            return None
        row, *parts = rows
        if row.status is None and not row.part_of_all:
            raise CommandError(f"{row.code}: {row.detail}" if row.detail else str(row.code))
        found = await reports.rows("failures", names[0], sweep_id=sweep_id)
    # Each page of the view begins with the sweep itself.
    parts = sorted(
        (part for part in parts if part.project != row.project), key=lambda part: part.project
    )
    document = _document(row, parts)
    document["failures"] = [each.model_dump() for each in found[:limit]]
    document["more_failures"] = limit is not None and len(found) > limit
    return SweepReport(row, document, tuple(names[1:]))


async def _projects_of(reports: StatusReports, sweep_id: str) -> list[str]:
    """Return the projects that have a sweep with this id; only `*` if there is one of all.

    The parts of a sweep of all share its id; they are not other sweeps.
    """
    wanted = StatusFilter(text=sweep_id, parts=True)
    rows = await reports.rows("sweeps", filter=wanted)
    found = sorted({row.project for row in rows if row.sweep_id == sweep_id})
    if ALL_PROJECTS in found:
        return [ALL_PROJECTS]
    if not found:
        paths = map(parse_record_path, unreadable_sweeps(await read_records(reports, None)))
        unreadable = sorted(path.project for path in paths if path is not None and path.is_main)
        if unreadable:
            shown = ", ".join(unreadable[:_MAX_SHOWN])
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


def _validate_sweep_project(value: str | None) -> str | None:
    return value if value == ALL_PROJECTS else validate_project(value)


def status(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT | ID",
            help="A project, or the id of a sweep or rotation. Default: everything.",
            callback=validate_project,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="With an id: the sweep's project, if sweeps of several projects share the id.",
            callback=_validate_sweep_project,
        ),
    ] = None,
    no_objects: Annotated[
        bool, typer.Option("--no-objects", help="Read only records; inspect no objects.")
    ] = False,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures",
            help=f"Show all failures of a sweep, not only the first {_MAX_SHOWN}.",
        ),
    ] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Follow a sweep until it ends; exit with 1 unless it is clean.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show keyrings, sweeps, and which master keys are in use.

    With an id: the progress and the failures of that sweep or rotation. Objects are counted
    by the wraps that your master keys open, never by labels.
    """
    sweep_id = target if target is not None and is_uuid(target) else None
    if (watching or failures) and sweep_id is None:
        raise typer.BadParameter("--watch and --failures need the id of a sweep or rotation")
    if project is not None and sweep_id is None:
        raise typer.BadParameter("--project needs the id of a sweep or rotation")
    settings = StatusSettings.read()
    publisher = PublisherSettings.read() if watching else None
    report = None
    if sweep_id is not None:
        limit = None if failures else _MAX_SHOWN
        read = partial(read_sweep, settings, sweep_id, project, limit)
        report = asyncio.run(read(time_left=not no_objects))
    if report is not None and publisher is not None:
        _watch_sweep(publisher, report, project, read, as_json=as_json)
    elif report is not None:
        if failures and report.row.clean and not as_json:
            print_line("no failures")
        else:
            _show_sweep(report, as_json=as_json)
    elif watching or failures or project is not None:
        raise NotFoundError(_NO_SWEEP)
    else:
        asyncio.run(_show_overview(settings, target, objects=not no_objects, as_json=as_json))


# Everything, or one project.


async def _show_overview(
    settings: StatusSettings, project: str | None, *, objects: bool, as_json: bool
) -> None:
    async with (
        open_bucket(settings, max_connections=OBJECTS_AT_ONCE + _SPARE_CONNECTIONS) as storage,
        open_report_keys(settings, storage, "status") as keys,
        open_customer_keys(settings, settings.deployment, IN_COMMANDS) as customer_keys,
        _open_marks() as (marks, event_keys, problem),
    ):
        reports = StatusReports(storage, keys, witness=marks, customer_keys=customer_keys)
        keyrings = await reports.keyrings(project)
        sweeps = await reports.rows("sweeps", project)
        records = await read_records(reports, project)
        is_known = any(row.mark != _REMOVED for row in keyrings)
        if project is not None and is_uuid(project) and not is_known:
            raise NotFoundError(_NO_SWEEP)
        groups = None
        if objects:
            groups = await take_census(reports, storage, project)
            keyrings = await find_rolled_back(reports, keyrings, groups)
    if problem is not None:
        note(f"keyrings were not compared with their marks: {problem}")
    running = sum(row.status == "running" for row in sweeps)
    document = {
        "act_now": _act_now(keyrings),
        "marks_by_event_key": marks and marks_by_key(marks, event_keys),
        "keyrings": [_keyring_row(row) for row in keyrings if row.mark != _REMOVED],
        "sweeps": [sweep_row(row) for row in sweeps],
        "records_that_do_not_open": unreadable_rows(records),
        "objects": None if groups is None else object_rows(groups),
        "master_keys": master_key_rows(settings, records, groups, running, project),
    }
    if as_json:
        print_json(document)
    else:
        _print_overview(document, project)
    if project is not None and not keyrings:
        raise UnknownProjectError.of(project)


@asynccontextmanager
async def _open_marks() -> AsyncIterator[
    tuple[MarkStream | None, tuple[VerifyKey, ...], str | None]
]:
    """Yield the marks of keyrings and the keys that verify them, or why they cannot be read."""
    async with AsyncExitStack() as stack:
        marks = problem = None
        keys: tuple[VerifyKey, ...] = ()
        try:
            settings = AuditReaderSettings.read()
            keys = settings.event_public_key
            marks = await stack.enter_async_context(open_marks(settings, keys))
        except (SettingsError, CommandError) as exc:
            problem = str(exc)
        yield marks, keys, problem


def _act_now(keyrings: Iterable[ProjectStatus]) -> list[Row]:
    """Return the keyrings that no worker uses until an operator acts."""
    return [
        {
            "project": row.project,
            "state": row.mark,
            "what_to_do": WAYS_OUT[row.mark].format(project=row.project),
        }
        for row in keyrings
        if row.mark in WAYS_OUT
    ]


def marks_by_key(marks: MarkStream, verify_keys: tuple[VerifyKey, ...]) -> dict[str, int]:
    """Return the number of projects whose marks each event key signed."""
    earlier = Counter(marks.signed_before.values())
    counts = {key.id: earlier[key.id] for key in verify_keys}
    projects = sum(1 for _ in marks.table.projects())
    counts[verify_keys[0].id] = projects - earlier.total()
    return counts


def _keyring_row(row: ProjectStatus) -> Row:
    permissions = {True: "allowed", False: "forbidden", None: None}
    customer_key = row.customer_key
    return {
        "project": row.project,
        "generation": row.generation,
        "kek_id": row.kek_id,
        "master_key": row.master_key,
        "plaintext": permissions[row.plaintext],
        "earlier_keks": row.earlier_keks,
        "enrolled_at": shown_time(row.enrolled_at),
        "rotated_at": shown_time(row.rotated_at),
        "evidence": row.evidence,
        "customer_key": customer_key and f"{customer_key.store}/{customer_key.key}",
        "customer_key_code": customer_key and customer_key.code,
        "erased_at": shown_time(row.erased_at),
        "mark": row.mark,
        "code": row.code,
        "detail": row.detail,
    }


# Tables.


def _print_marks(document: dict[str, Any]) -> None:
    """Print which event keys signed marks: a key without any may be removed (SPEC 6.10)."""
    counts: dict[str, int] = document["marks_by_event_key"] or {}
    if len(counts) < _SEVERAL:
        return
    print_line("")
    print_line("Event keys")
    for key_id, keyrings in counts.items():
        line = f"{key_id} signed the marks of {keyrings} keyrings"
        if not keyrings:
            line = f"{key_id} signed no keyring's mark: no mark needs it"
        print_line(line)


def _print_overview(document: dict[str, Any], project: str | None) -> None:
    act_now = document["act_now"]
    if act_now:
        _print_section("Act now", act_now, ("project", "state", "what_to_do"), first=True)
    _print_section("Keyrings", document["keyrings"], first=not act_now)
    if project is not None and (newest := [row["evidence"] for row in document["keyrings"]][:1]):
        print_line(f"Newest evidence: {newest[0] or 'none'}")
    running = [row for row in document["sweeps"] if row["status"] == "running"]
    ended = document["sweeps"][len(running) :]
    _print_section("Sweeps", running + ended[:_MAX_SHOWN])
    if len(ended) > _MAX_SHOWN:
        hint = "add --json" if project is not None else "add --json or name a project"
        note(f"{len(ended) - _MAX_SHOWN} older sweeps are not shown; {hint} to see them")
    if failing := document["records_that_do_not_open"]:
        _print_section("Unreadable records", failing, ("record", "code", "detail"))
    if document["objects"] is not None:
        _print_section("Objects", document["objects"])
    _print_marks(document)
    print_line("")
    print_line("Master keys")
    for row in document["master_keys"]:
        print_line(row["told"])


def _print_section(
    title: str, rows: list[Row], columns: Sequence[str] = (), *, first: bool = False
) -> None:
    """Print a table; by default without `detail`, long digests, and rare columns that are empty."""
    if not first:
        print_line("")
    print_line(title)
    if not rows:
        print_line("none")
        return
    unused = [name for name in _RARE if not any(row.get(name) for row in rows)]
    hidden = {"detail", "evidence", *unused}
    columns = columns or [name for name in rows[0] if name not in hidden]
    print_rows(columns, rows)


# One sweep.


def _show_sweep(report: SweepReport, event: Event | None = None, *, as_json: bool) -> None:
    document = report.document
    if as_json:
        final = {} if event is None else {"event": event.model_dump(mode="json")}
        print_json(document | final)
    else:
        nested = ("counts", "parts", "failures", "more_failures", "progress")
        fields = {name: value for name, value in document.items() if name not in nested}
        progress = report.row.progress
        if progress is not None and progress.phase != "ended":
            fields["phase"] = describe(progress, datetime.now(UTC))
        fields["round_also_answers"] = ", ".join(document.get("round_also_answers", ())) or None
        rows = [(name, value) for name, value in fields.items() if value is not None]
        print_table(("field", "value"), [*rows, *document["counts"].items()])
        if parts := document.get("parts"):
            title = f"Parts: {parts['ended_clean']} ended clean; the others:"
            _print_section(title, parts["live"] + parts["ended_not_clean"], PART_COLUMNS)
        if document["failures"]:
            _print_section("Failures", document["failures"], ("code", "project", "key"))
        if document["more_failures"]:
            note("there are more failures; add --failures to see all")
    if others := report.other_projects[:_MAX_SHOWN]:
        note(f"other projects have a sweep with this id: {', '.join(others)}")


def _watch_sweep(
    publisher: PublisherSettings,
    report: SweepReport,
    project: str | None,
    read: Callable[[], Coroutine[Any, Any, SweepReport | None]],
    *,
    as_json: bool,
) -> None:
    """Follow a sweep until it ends, show its report, and fail unless it is clean.

    Publishers choose ids. So another project may have a sweep with this id, and its end must not
    pass for the end of this one.
    """
    row = report.row
    if report.other_projects and project is None:
        several = ", ".join((row.project, *report.other_projects)[:_MAX_SHOWN])
        raise CommandError(f"several projects have a sweep with this id; add --project: {several}")
    if row.part_of_all:
        raise CommandError("this is one part of a sweep of all; add --project '*' to watch it")
    if row.status == "running" and row.kind == "erasure":
        raise CommandError("an erasure has no progress to watch; leave out --watch")
    if row.status == "running":
        with resumable(PendingRequest(id=row.sweep_id, project=row.project, sent=True)):
            event = asyncio.run(_follow(publisher, report, as_json=as_json))
        _show_sweep(asyncio.run(read()) or report, event, as_json=as_json)
        check_end(event, row.sweep_id)
        return
    _show_sweep(report, as_json=as_json)
    if row.code is not None:
        raise CommandError(f"{row.code}: {row.detail}" if row.detail else row.code)
    if not row.clean:
        counts = report.document["counts"]
        raise CommandError(not_clean(counts["failed"], counts["noncurrent_stale"]))


async def _follow(settings: PublisherSettings, report: SweepReport, *, as_json: bool) -> Event:
    """Show the progress until the end; return the last event."""
    row = report.row
    count = None if row.project == ALL_PROJECTS else object_counter(row.project)
    since = None if row.started_at is None else parse_time(row.started_at)
    async with Publisher.open(settings) as publisher:
        events = _own_events(row, publisher.events(since))
        return await watch(events, as_json=as_json, count=count)


async def _own_events(
    row: SweepStatus, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """Yield the events of this sweep until it ends.

    Skips those of another sweep or rotation with the same id, and rejections: each answers one
    request, and the sweep goes on.
    """
    matcher = EventMatcher(
        publisher=row.publisher,
        project=row.project,
        request_type="rotation.requested" if row.kind == "rotation" else "sweep.requested",
        request_id=row.sweep_id,
    )
    stepped_at = None if row.stepped_at is None else parse_time(row.stepped_at)
    async with aclosing(events):
        async for event in events:
            if not matcher.matches(event) or isinstance(event, Rejected):
                continue
            # It had failed before it continued: its dead letter was replayed.
            if isinstance(event, Failed) and stepped_at and parse_time(event.at) < stepped_at:
                continue
            yield event
            if is_end(event):
                return
