"""`keyturn status`: keyrings, sweeps, and what stands under each master key (SPEC 8, 14).

It reads the bucket alone, but for `--watch`, which follows events. It opens records and
wraps with the operator's master keys, and must never show a key, a wrap or a DEK.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final

import typer

from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import ALL_PROJECTS, is_project, is_uuid, keyring_s3_key, parse_time
from keyturn.messages import Event, Failed, Rejected
from keyturn.publisher import Publisher
from keyturn.publisher.event_matcher import EventMatcher, is_end
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.census import AT_ONCE, NONCURRENT, Seen, take_census
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.key_usage import master_key_rows
from keyturn_workers.cli.output import print_json, print_line, print_table
from keyturn_workers.cli.publishing import Sending, resumable
from keyturn_workers.cli.record_index import KEYRING_COLUMNS, SWEEP_COLUMNS, Recorded, read_records
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.cli.sweep_report import FIRST_FAILURES, PART_COLUMNS, SweepStatus, read_sweep
from keyturn_workers.cli.watch import check_end, counted, watch
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring.model import parse_keyring
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.store import SweepStore

# A listing, its courtesy count, and the records are read beside the heads.
_SPARE_CONNECTIONS: Final = 4
_ENDED_SHOWN: Final = 20
_OBJECT_COLUMNS: Final = ("project", "kind", "generation", "master_key", "code", "objects")


def _checked_project(value: str | None) -> str | None:
    if value is not None and value != ALL_PROJECTS and not is_project(value):
        raise typer.BadParameter("malformed_request: neither a project id nor *")
    return value


def _checked(value: str | None) -> str | None:
    if value is not None and not is_project(value):  # an id of a sweep passes as well
        raise typer.BadParameter(
            "malformed_request: neither a project id (1 to 63 characters of a-z, 0-9 and -) "
            "nor a sweep's id"
        )
    return value


def status(
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT | ID",
            help="A project, or the id of a sweep or a rotation. Without it: everything.",
            callback=_checked,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="With an id: the project of the sweep, where sweeps of several have this id.",
            callback=_checked_project,
        ),
    ] = None,
    no_objects: Annotated[
        bool, typer.Option("--no-objects", help="Read records alone; look at no object.")
    ] = False,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures", help=f"All failures of a sweep, not the first {FIRST_FAILURES}."
        ),
    ] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Follow a sweep to its end; exits 1 where it is not clean.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show keyrings, sweeps, and what stands under each master key.

    With an id: how far that sweep or rotation is, and what failed. Objects are counted by
    the wraps that open under the master keys held here, never by labels.
    """
    if (watching or failures) and (of is None or not is_uuid(of)):
        raise typer.BadParameter("--watch and --failures need the id of a sweep or a rotation")
    if project is not None and (of is None or not is_uuid(of)):
        raise typer.BadParameter("--project goes with the id of a sweep or a rotation")
    settings = StatusSettings.read()
    publisher = PublisherSettings.read() if watching else None
    if of is not None and is_uuid(of):
        limit = None if failures else FIRST_FAILURES
        found = asyncio.run(_read_sweep(settings, of, project, limit, count_objects=not no_objects))
        if found is not None:
            if watching:
                _check_watchable(found, named=project is not None)
            event = None
            if publisher is not None and found.plan.status == "running":
                event = _follow(publisher, found, as_json=as_json)
                again = asyncio.run(_read_sweep(settings, of, project, limit, count_objects=False))
                found = again or found
            _tell_sweep(found, event, as_json=as_json)
            if watching:
                _check_sweep(found, event)
            return
        if (
            watching
            or failures
            or project is not None
            or not asyncio.run(_is_enrolled(settings, of))
        ):
            raise NotFoundError("no record of a sweep with this id stands in the bucket")
    asyncio.run(_overview(settings, of, objects=not no_objects, as_json=as_json))


# Everything, or one project.


async def _overview(
    settings: StatusSettings, project: str | None, *, objects: bool, as_json: bool
) -> None:
    keys = OperatorKeys(settings.master_keys)
    async with open_bucket(settings, max_connections=AT_ONCE + _SPARE_CONNECTIONS) as storage:
        recorded = await read_records(storage, keys.master_keys, project=project)
        census: Counter[Seen] | None = None
        if objects:
            census = await take_census(storage, keys, recorded.generations, project=project)
            await _mark_rolled_back(storage, keys, recorded, census)
    rows = master_key_rows(
        keys.master_keys, recorded, census, project=project, active=settings.active_master_key
    )
    if as_json:
        print_json(
            {
                "keyrings": recorded.keyrings,
                "sweeps": recorded.sweeps,
                "records_that_do_not_open": recorded.failing,
                "objects": None if census is None else _object_rows(census),
                "master_keys": rows,
            }
        )
    else:
        _tell_overview(recorded, census, project)
        _section("Master keys")
        for row in rows:
            print_line(row["told"])
    if project is not None and not recorded.keyrings:
        raise UnknownProjectError(project)


async def _mark_rolled_back(
    storage: Storage, keys: OperatorKeys, recorded: Recorded, census: Counter[Seen]
) -> None:
    """Tell keyrings that stand below what opens among their project's objects (SPEC 5.4)."""
    highest: dict[str, int] = {}
    for seen in census:
        if seen.generation is not None and seen.kind != NONCURRENT:
            highest[seen.project] = max(seen.generation, highest.get(seen.project, 0))
    for row in recorded.keyrings:
        project, generation = row["project"], row["generation"]
        if generation is None or highest.get(project, 0) <= generation:
            continue
        # Only a keyring read that began after the object was read can tell: it may have turned.
        try:
            _, body = await storage.read(keyring_s3_key(project))
            now = parse_keyring(body, project, keys.master_keys).current.generation
        except (MissingError, CorruptObjectError, UnknownMasterKeyError):
            continue
        if highest[project] > now:
            row["code"] = KeyringRolledBackError.code
            row["detail"] = f"an object stands at generation {highest[project]}"


def _object_rows(census: Counter[Seen]) -> list[dict[str, Any]]:
    return [
        {name: getattr(seen, name) or None for name in _OBJECT_COLUMNS[:-1]}
        | {"objects": census[seen]}
        for seen in sorted(census, key=lambda seen: seen.order)
    ]


def _tell_overview(recorded: Recorded, census: Counter[Seen] | None, project: str | None) -> None:
    _table("Keyrings", KEYRING_COLUMNS, recorded.keyrings)
    running = [row for row in recorded.sweeps if row["status"] == "running"]
    others = recorded.sweeps[len(running) :]
    _table("Sweeps", SWEEP_COLUMNS, running + others[:_ENDED_SHOWN])
    if len(others) > _ENDED_SHOWN:
        more = "--json" if project is not None else "--json, or naming a project,"
        note(f"{len(others) - _ENDED_SHOWN} more sweeps have ended; {more} shows them")
    if recorded.failing:
        _table("Records that do not open", ("record", "code", "detail"), recorded.failing)
    if census is not None:
        _table("Objects", _OBJECT_COLUMNS, _object_rows(census))


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    _section(title)
    if rows:
        # A code has a column only where something has one.
        shown = [name for name in columns if name != "code" or any(row[name] for row in rows)]
        cells = ([row[name] for name in shown] for row in rows)
        print_table(shown, cells, whole=("sweep_id",))
    else:
        print_line("none")


def _section(title: str) -> None:
    if title != "Keyrings":
        print_line("")
    print_line(title)


# One sweep.


async def _read_sweep(
    settings: StatusSettings,
    sweep_id: str,
    project: str | None,
    limit: int | None,
    *,
    count_objects: bool,
) -> SweepStatus | None:
    async with open_bucket(settings) as storage:
        store = SweepStore(storage, settings.master_keys)
        return await read_sweep(
            storage, store, sweep_id, project=project, limit=limit, count_objects=count_objects
        )


def _check_watchable(found: SweepStatus, *, named: bool) -> None:
    """Refuse to follow what may be another sweep than the caller means, or has no end.

    Publishers choose ids, so that a sweep of another project may have been asked for under
    the id of this one: its end must not pass for this one's.
    """
    if found.also and not named:
        several = ", ".join((found.plan.ask.project, *found.also[:_ENDED_SHOWN]))
        raise CommandError(f"sweeps of several projects have this id; add --project: {several}")
    if found.plan.ask.of_all:
        raise CommandError("this is one part of a sweep of all: follow that, with --project '*'")


async def _is_enrolled(settings: StatusSettings, project: str) -> bool:
    """Whether there is a project of this name: a project's id may look like a sweep's."""
    async with open_bucket(settings) as storage:
        try:
            await storage.head(keyring_s3_key(project))
        except MissingError:
            return False
        return True


def _follow(settings: PublisherSettings, found: SweepStatus, *, as_json: bool) -> Event:
    """Show a sweep's progress to its end; its last event."""
    plan = found.plan
    count = counted(plan.ask.project) if isinstance(plan, Plan) else None

    async def follow() -> Event:
        async with Publisher.open(settings) as publisher:
            events = _events_of(plan, publisher.events(plan.started_at))
            return await watch(events, as_json=as_json, count=count)

    with resumable(Sending(id=plan.ask.sweep_id, project=plan.ask.project, sent=True)):
        return asyncio.run(follow())


async def _events_of(
    plan: Plan | AllPlan, every: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """The events of this record's sweep, up to its end.

    Those of all publishers that asked for it. Not those of another sweep or rotation that
    has the same id, and no refusals: each answers one request, and the sweep goes on.
    """
    matcher = EventMatcher(
        publisher=None,
        project=plan.ask.project,
        request_type=f"{plan.ask.kind}.requested",
        request_id=plan.ask.sweep_id,
    )
    # One that failed and then went on (its dead letter was replayed): not by its failure.
    went_on_at = plan.stepped_at if plan.ended_at is not None else None
    async with aclosing(every):
        async for event in every:
            if not matcher.matches(event) or isinstance(event, Rejected):
                continue
            if isinstance(event, Failed) and went_on_at and parse_time(event.at) < went_on_at:
                continue
            yield event
            if is_end(event):
                return


def _tell_sweep(found: SweepStatus, event: Event | None, *, as_json: bool) -> None:
    document = found.document
    if as_json:
        told = {} if event is None else {"event": event.model_dump(mode="json")}
        print_json(document | told)
    else:
        _tell_document(document)
    if found.also:
        note(f"sweeps of other projects have this id too: {', '.join(found.also[:_ENDED_SHOWN])}")


def _tell_document(document: dict[str, Any]) -> None:
    nested = ("counts", "parts", "failures", "more_failures")
    rows = [(n, v) for n, v in document.items() if n not in nested and v is not None]
    print_table(("field", "value"), [*rows, *document["counts"].items()])
    if "parts" in document:
        parts = document["parts"]
        print_line("")
        print_line(f"Parts: {parts['ended_clean']} ended clean; the others:")
        others = parts["live"] + parts["ended_not_clean"]
        if others:
            print_table(PART_COLUMNS, ([row[n] for n in PART_COLUMNS] for row in others))
        else:
            print_line("none")
    if document["failures"]:
        print_line("")
        columns = ("code", "project", "key")
        print_line("Failures")
        print_table(columns, ([row[n] for n in columns] for row in document["failures"]))
    if document["more_failures"]:
        note("there are more failures; --failures shows all")


def _check_sweep(found: SweepStatus, event: Event | None) -> None:
    """Fail where a sweep that was watched ended as none to be content with."""
    plan, counts = found.plan, found.document["counts"]
    if event is not None:
        check_end(event, plan.ask.sweep_id)
    elif plan.status == "failed":
        raise CommandError(f"{plan.code}: {plan.detail}" if plan.detail else plan.code)
    elif not plan.clean:
        raise CommandError(
            f"not clean: {counts['failed']} failed, "
            f"{counts['noncurrent_stale']} noncurrent versions stale"
        )
