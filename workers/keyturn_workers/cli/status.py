"""`keyturn status`: keyrings, sweeps, objects, and which master keys are in use (SPEC 8, 14).

It needs only the bucket. If it reaches the broker, it also compares keyrings with their marks
(SPEC 5.5); `--watch` needs the broker. It opens records and wraps with
the operator's master keys, and must never show a key, a wrap or a DEK.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.crypto import VerifyKey
from keyturn.errors import CodedError, NotFoundError, SettingsError, UnknownProjectError
from keyturn.identifiers import ALL_PROJECTS, is_uuid, parse_time
from keyturn.messages import Event, Failed, Rejected, SweepStatus
from keyturn.progress import describe
from keyturn.publisher import Publisher
from keyturn.publisher.event_matcher import EventMatcher, is_end
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, validate_project
from keyturn_workers.cli.bucket import batched, count_objects, open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.cli.output import print_json, print_line, print_rows, print_table
from keyturn_workers.cli.publishing import PendingRequest, resumable
from keyturn_workers.cli.records import (
    CONCURRENCY,
    OBJECTS_AT_ONCE,
    RecordIndex,
    Row,
    mark_rolled_back,
    marks_by_key,
    master_key_rows,
    object_rows,
    open_marks,
    read_records,
    shown_time,
    sweep_row,
    take_census,
    way_out,
)
from keyturn_workers.cli.settings import AuditReaderSettings, StatusSettings
from keyturn_workers.cli.watch import check_end, not_clean, object_counter, watch
from keyturn_workers.keyring.mark_stream import MarkStream
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.status.records import RECORD_ERRORS, Pace
from keyturn_workers.status.rows import Sweep, find_sweep
from keyturn_workers.status.sweeps import SweepReader, sum_counts
from keyturn_workers.storage import Storage
from keyturn_workers.sweep import AllRecord, ProjectRecord, SweepStore
from keyturn_workers.sweep.record import Round

# For the listing, its count and the records, in addition to the objects.
_SPARE_CONNECTIONS: Final = 4
_MAX_SHOWN: Final = 20
_SEVERAL: Final = 2
_NO_SWEEP: Final = "the bucket has no sweep or rotation with this id"

PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "waits_for_round", "code", "detail", "clean"),
    *("requested_at", "started_at", "ended_at"),
    *("master_key", "encrypt_plaintext", "repair"),
)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What its record says about one sweep.

    Attributes:
        row: The sweep as a row.
        document: What the command shows.
        other_projects: Projects with another sweep of the same id: publishers choose the ids.
        stepped_at: When its record was worked on last, by the storage's clock.
    """

    row: SweepStatus
    document: dict[str, Any]
    other_projects: tuple[str, ...] = ()
    stepped_at: datetime | None = None


async def read_sweep(
    settings: OperatorSettings,
    sweep_id: str,
    project: str | None,
    limit: int | None,
    *,
    time_left: bool = False,
) -> SweepReport | None:
    """The report of a sweep; None if no record has it.

    Without `project` it is a sweep of all, or of the first project. `limit` is how many failures
    to list, None for all. The time left needs a count of all objects.

    Raises:
        CorruptObjectError, UnknownMasterKeyError: the record does not open.
        StorageUnavailableError: the storage does not answer.
    """
    async with (
        open_bucket(settings) as storage,
        open_report_keys(settings, storage, "status") as keys,
    ):
        store = SweepStore(storage, keys)
        reader = SweepReader(storage, store, Pace(lambda: 0), reading_s=None)
        found = await _find(store, sweep_id, project)
        if not found:
            part = None if project is None else await reader.find_ended(sweep_id, project)
            if project is None or part is None:
                return None
            chosen, report = project, SweepReport(part.row, _document(part.row))
        else:
            chosen, sweep = next(iter(found.items()))
            others = tuple(name for name in found if name != chosen)
            row, more = await _describe(storage, reader, sweep, time_left=time_left)
            report = SweepReport(row, _document(row) | more, others, sweep.record.stepped_at)
        failures = await _failures(reader, sweep_id, chosen, limit)
    report.document["failures"] = failures[:limit]
    report.document["more_failures"] = limit is not None and len(failures) > limit
    return report


async def _find(store: SweepStore, sweep_id: str, project: str | None) -> dict[str, Sweep]:
    """The sweeps with this id, by project. Only that of `*` if there is one.

    The parts of a sweep of all share its id; they are not other sweeps.
    """
    if project is not None:
        sweep = find_sweep(await store.find(project), sweep_id)
        return {} if sweep is None else {project: sweep}
    found, unreadable = dict[str, Sweep](), list[str]()
    async for batch in batched(store.projects(), CONCURRENCY):
        names = [name for name, _, _ in batch]
        records = await asyncio.gather(*(_open(store, name) for name in names))
        for name, each in zip(names, records, strict=True):
            if isinstance(each, CodedError):
                unreadable.append(name)
            elif (sweep := find_sweep(each, sweep_id)) is not None:
                found[name] = sweep
        if ALL_PROJECTS in found:
            return {ALL_PROJECTS: found[ALL_PROJECTS]}
    if unreadable and not found:
        note(f"the records of these projects do not open: {', '.join(unreadable[:_MAX_SHOWN])}")
    return found


async def _open(store: SweepStore, project: str) -> ProjectRecord | AllRecord | CodedError | None:
    try:
        return await store.find(project)
    except RECORD_ERRORS as exc:
        return exc


async def _describe(
    storage: Storage, reader: SweepReader, sweep: Sweep, *, time_left: bool
) -> tuple[SweepStatus, dict[str, Any]]:
    """The row of a sweep, and what its document says beyond it."""
    record, current, round_id = sweep.record, sweep.current, sweep.round_id
    others = [Sweep(record, each) for each in record.origins if each != sweep.origin]
    more: dict[str, Any] = {
        "round": round_id,
        "round_also_answers": [
            each.origin.id for each in others if round_id is not None and each.round_id == round_id
        ],
    }
    if isinstance(record, AllRecord):
        parts = await reader.parts(sweep)
        live = [part.row for part in parts.parts if part.is_open]
        not_clean = [part.row for part in parts.parts if not part.is_open]
        more["parts"] = {
            "ended_clean": parts.clean,
            "live": [_part_row(row) for row in live],
            "ended_not_clean": [_part_row(row) for row in not_clean],
        }
        return sweep.row(sum_counts(live, sweep.counts)), more
    is_counted = time_left and sweep.origin.is_open
    row = sweep.row(expected=await count_objects(storage, record.project) if is_counted else None)
    ranges = current.ranges if isinstance(current, Round) else ()
    more |= {
        "proves_generation": row.generation,
        "proves_master_key": row.proves_master_key,
        "ranges": len(ranges) or None,
        "ranges_planned": sum(keys.planned for keys in ranges) if ranges else None,
        "pages": row.pages,
        "pages_not_proven": row.pages_open,
        "proof_not_before": None
        if row.progress is None
        else shown_time(row.progress.proof_possible_at),
    }
    return row, more


def _part_row(part: SweepStatus) -> Row:
    row = sweep_row(part)
    return {name: row[name] for name in PART_COLUMNS}


def _document(row: SweepStatus) -> dict[str, Any]:
    values = row.model_dump() | sweep_row(row)
    return {name: values[name] for name in _FIELDS} | {
        "counts": {} if row.counts is None else row.counts.model_dump(),
        "rate_per_s": None if row.rate_per_s is None else round(row.rate_per_s, 1),
        "left_s": row.left_s,
        "progress": None if row.progress is None else row.progress.model_dump(exclude_none=True),
    }


async def _failures(
    reader: SweepReader, sweep_id: str, project: str, limit: int | None
) -> list[Row]:
    """The failures of a sweep: all, or one more than the limit, to know of more."""
    rows, _ = await reader.all_failures(sweep_id, project, None if limit is None else limit + 1)
    return [row.model_dump() for row in rows]


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
        _open_marks() as (marks, problem),
    ):
        table = None if marks is None else marks.stream.table
        index = await read_records(storage, keys, project=project, table=table)
        if project is not None and is_uuid(project) and not index.keyrings:
            raise NotFoundError(_NO_SWEEP)
        census = None
        if objects:
            census = await take_census(storage, keys, index.generations, project=project)
            await mark_rolled_back(storage, keys, index.keyrings, census)
    if problem is not None:
        note(f"keyrings were not compared with their marks: {problem}")
    document = {
        "act_now": [] if marks is None else _act_now(index),
        "marks_by_event_key": marks and marks_by_key(marks.stream, marks.keys),
        "keyrings": index.keyrings,
        "sweeps": index.sweeps,
        "records_that_do_not_open": index.failing,
        "objects": None if census is None else object_rows(census),
        "master_keys": master_key_rows(settings, index, census, project),
    }
    if as_json:
        print_json(document)
    else:
        _print_overview(document, project)
    if project is not None and not index.keyrings and not index.contradicted:
        raise UnknownProjectError.of(project)


@dataclass(frozen=True, slots=True)
class _Marks:
    """The marks, and the keys that verify them."""

    stream: MarkStream
    keys: tuple[VerifyKey, ...]


@asynccontextmanager
async def _open_marks() -> AsyncIterator[tuple[_Marks | None, str | None]]:
    """The marks of keyrings, or why they cannot be read."""
    async with AsyncExitStack() as stack:
        marks = problem = None
        try:
            settings = AuditReaderSettings.read()
            keys = settings.event_public_key
            marks = _Marks(await stack.enter_async_context(open_marks(settings, keys)), keys)
        except (SettingsError, CommandError) as exc:
            problem = str(exc)
        yield marks, problem


def _act_now(index: RecordIndex) -> list[Row]:
    """The keyrings that no worker uses until an operator acts."""
    return [
        {"project": each.project, "state": each.state.value, "what_to_do": way_out(each)}
        for each in sorted(index.contradicted, key=lambda each: each.project)
    ]


def _print_marks(document: dict[str, Any]) -> None:
    """Which event keys signed marks: one that signed none may be removed (SPEC 6.10)."""
    counts: dict[str, int] = document["marks_by_event_key"] or {}
    if len(counts) < _SEVERAL:
        return
    print_line("")
    print_line("Event keys")
    for key_id, keyrings in counts.items():
        line = f"{key_id} signed the marks of {keyrings} keyrings"
        if not keyrings:
            line = f"{key_id} signed no keyring's mark: workers need it for no mark"
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
    """Print a table; by default without `detail` and long digests, `code` only if one has it."""
    if not first:
        print_line("")
    print_line(title)
    if not rows:
        print_line("none")
        return
    unused = [name for name in ("code", "mark") if not any(row.get(name) for row in rows)]
    hidden = {"detail", "evidence", *unused}
    columns = columns or [name for name in rows[0] if name not in hidden]
    print_rows(columns, rows, unfolded=("sweep_id",))


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

    Publishers choose ids. So another project may have a sweep with this id, and its end must
    not pass for the end of this one.
    """
    row = report.row
    if report.other_projects and project is None:
        several = ", ".join((row.project, *report.other_projects)[:_MAX_SHOWN])
        raise CommandError(f"several projects have a sweep with this id; add --project: {several}")
    if row.part_of_all:
        raise CommandError("this is one part of a sweep of all; add --project '*' to watch it")
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
    """Show the progress until the end; the last event."""
    row = report.row
    count = None if row.project == ALL_PROJECTS else object_counter(row.project)
    since = None if row.started_at is None else parse_time(row.started_at)
    async with Publisher.open(settings) as publisher:
        events = _own_events(row, report.stepped_at, publisher.events(since))
        return await watch(events, as_json=as_json, count=count)


async def _own_events(
    row: SweepStatus, stepped_at: datetime | None, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """The events of this sweep until it ends.

    Not those of another sweep or rotation with the same id, and no rejections: each answers
    one request, and the sweep goes on.
    """
    matcher = EventMatcher(
        publisher=row.publisher,
        project=row.project,
        request_type="rotation.requested" if row.kind == "rotation" else "sweep.requested",
        request_id=row.sweep_id,
    )
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
