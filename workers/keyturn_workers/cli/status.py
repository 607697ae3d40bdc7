"""`keyturn status`: keyrings, sweeps, objects, and which master keys are in use (SPEC 8, 14).

It needs only the bucket. If it reaches the broker, it also compares keyrings with their marks
(SPEC 5.5); `--watch` needs the broker. It opens records and wraps with the operator's master keys,
and must never show a key, a wrap or a DEK.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import (
    NotFoundError,
    SettingsError,
    UnknownProjectError,
)
from keyturn.identifiers import ALL_PROJECTS, is_uuid
from keyturn.messages.events import Rejected
from keyturn.messages.status import ProjectStatus
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, validate_project
from keyturn_workers.cli.bucket import open_bucket
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
from keyturn_workers.cli.publishing import PendingRequest, event_error, resumable
from keyturn_workers.cli.reports import (
    OBJECTS_AT_ONCE,
    StatusReports,
    find_rolled_back,
    master_key_rows,
    object_rows,
    open_marks,
    read_records,
    take_census,
    unreadable_rows,
)
from keyturn_workers.cli.settings import AuditReaderSettings, StatusSettings
from keyturn_workers.cli.sweep_status import (
    MAX_SHOWN,
    NO_SWEEP,
    OwnRequest,
    SweepReader,
    check_report,
    read_own,
    show_report,
    sweep_row,
)
from keyturn_workers.keys.customer_keys.providers import open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_COMMANDS
from keyturn_workers.keys.keyring.mark_stream import MarkStream

# For the listing, its count and the records, in addition to the objects.
_SPARE_CONNECTIONS: Final = 4
_SEVERAL: Final = 2
# Columns of tables that are shown only if a row has a value there.
_RARE: Final = ("code", "mark", "customer_key", "customer_key_code", "erased_at")
_NO_EVENT: Final = (
    "this publisher has no event of a request with this id in the last 14 days; its record is in "
    "the bucket, for the settings of the operator"
)
_REMOVED: Final = "removed"
WAYS_OUT: Final = {
    "rolled_back": "restore the newest record, or `keyturn recover {project}`",
    _REMOVED: "restore the newest record, or `keyturn enroll {project} --adopt`",
    "unknown": "`keyturn recover {project}`, if the broker or the bucket was restored",
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
            help=f"Show all failures of a sweep, not only the first {MAX_SHOWN}.",
        ),
    ] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Follow a sweep until it ends; exit with 1 unless it is clean.",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With an id: show every field of the record.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show keyrings, sweeps, and which master keys are in use.

    With an id: the progress and the failures of that sweep or rotation. Objects are counted
    by the wraps that your master keys open, never by labels.

    This needs the operator's settings. With those of a publisher, an id of one of its own
    requests is enough: its events say how it goes.
    """
    sweep_id = target if target is not None and is_uuid(target) else None
    if sweep_id is None:
        if watching or failures or verbose:
            raise typer.BadParameter(
                "--watch, --failures and --verbose need the id of a sweep or rotation"
            )
        if project is not None:
            raise typer.BadParameter("--project needs the id of a sweep or rotation")
    given = _Given(project, not no_objects, failures, watching, verbose, as_json)
    try:
        settings = StatusSettings.read()
    except SettingsError as exc:
        publisher = None if sweep_id is None else _publisher(exc)
        if publisher is None or sweep_id is None:
            raise
        _show_own(publisher, sweep_id, given)
        return
    if sweep_id is None or not _show_sweep(settings, sweep_id, given):
        asyncio.run(_show_overview(settings, target, objects=not no_objects, as_json=as_json))


@dataclass(frozen=True, slots=True)
class _Given:
    """The options of the command."""

    project: str | None
    counts_objects: bool
    failures: bool
    watching: bool
    verbose: bool
    as_json: bool


# One sweep, rotation or other request.


def _show_sweep(settings: StatusSettings, sweep_id: str, given: _Given) -> bool:
    """Show a sweep by its record, or follow it to its end; return False if there is none.

    A project may have a name that looks like an id. Options that need a sweep exclude that.
    """
    limit = None if given.failures else MAX_SHOWN
    project = given.project
    reader = SweepReader(settings, sweep_id, project, limit, counts_objects=given.counts_objects)
    report = asyncio.run(reader.read())
    if report is None:
        if given.watching or given.failures or given.verbose or project is not None:
            raise NotFoundError(NO_SWEEP)
        return False
    row = report.row
    if given.watching and report.other_projects and project is None:
        several = ", ".join((row.project, *report.other_projects)[:MAX_SHOWN])
        raise CommandError(f"several projects have a sweep with this id; add --project: {several}")
    if given.watching and row.status == "running":
        with resumable(PendingRequest(id=row.sweep_id, project=row.project, sent=True)):
            report = asyncio.run(reader.watch(row.project, as_json=given.as_json))
    if given.failures and report.row.clean and not given.as_json:
        print_line("no failures")
    else:
        show_report(report, as_json=given.as_json, verbose=given.verbose)
    if given.watching:
        check_report(report.row)
    return True


def _publisher(problem: SettingsError) -> PublisherSettings | None:
    """Return the settings of a publisher, if only those of the operator are missing."""
    if "KEYTURN_MASTER_KEYS is missing" not in str(problem):
        return None
    try:
        return PublisherSettings.read()
    except SettingsError:
        return None


def _show_own(publisher: PublisherSettings, request_id: str, given: _Given) -> None:
    """Show a publisher's own request by its events, or follow it to its end."""
    own = OwnRequest(request_id)
    read = read_own(publisher, own, given.project, watching=given.watching, as_json=given.as_json)
    with resumable(PendingRequest(id=request_id, project=given.project, sent=True)):
        asyncio.run(read)
    if own.newest is None:
        raise NotFoundError(_NO_EVENT)
    if (report := own.report()) is not None:
        show_report(report, as_json=given.as_json, verbose=given.verbose)
        if given.watching:
            check_report(report.row)
        return
    if isinstance(own.newest, Rejected):
        raise event_error(own.newest)
    document = own.newest.model_dump(mode="json")
    if given.as_json:
        print_json(document)
    else:
        print_table(("field", "value"), document.items())


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
            raise NotFoundError(NO_SWEEP)
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
    _print_section("Sweeps", running + ended[:MAX_SHOWN])
    if len(ended) > MAX_SHOWN:
        hint = "add --json" if project is not None else "add --json or name a project"
        note(f"{len(ended) - MAX_SHOWN} older sweeps are not shown; {hint} to see them")
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
    unused = [name for name in _RARE if not any(row.get(name) for row in rows)]
    hidden = {"detail", "evidence", *unused}
    columns = columns or [name for name in (rows[0] if rows else ()) if name not in hidden]
    print_section(title, rows, columns, first=first)
