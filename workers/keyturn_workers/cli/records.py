"""Records, marks and objects as `keyturn status` and other commands read them (SPEC 5, 8).

Every record is opened (`keyturn_workers.status.records`). One that does not open is shown with its
code. No key of a record is kept. Keyrings are compared with their marks (SPEC 5.5): a command has
no event key of its own here, follows the stream like a gateway, and adds no marks. A census of the
objects (`keyturn_workers.status.objects`) shows which master keys are in use; whether one may be
dropped is decided in `keyturn_workers.key_usage_rules`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from keyturn.crypto import VerifyKey
from keyturn.errors import (
    CodedError,
    EventsUnavailableError,
    KeyringRolledBackError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, format_time, keyring_s3_key, parse_time
from keyturn.messages import Counts, SweepStatus
from keyturn.publisher.connection import BrokerAddress
from keyturn.settings import DeploymentSettings
from keyturn.topology import MARKS_STREAM
from keyturn_workers.cli.bucket import batched, count, optional_task
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.output import printable, progress_display
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.key_usage_rules import KeyUsage, Surroundings, judge_drop, missing_key
from keyturn_workers.keyring import Keyring, Mark, MarkState, MarkTable
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.wraps import past_generations
from keyturn_workers.status.objects import (
    NONCURRENT,
    UNREADABLE,
    Census,
    ObjectInspector,
    find_rolled_back,
    list_objects,
)
from keyturn_workers.status.records import (
    Opened,
    Record,
    SweepRecord,
    list_records,
    open_record,
    record_of,
)
from keyturn_workers.status.rows import Sweep, project_status
from keyturn_workers.storage import Storage

_TIMEOUT_S: Final = 60.0
# Nothing is written under it.
_LEASE_S: Final = 15
_MAX_READS: Final = 8
WAYS_OUT: Final = {
    MarkState.ROLLED_BACK: "restore the newest record, or `keyturn recover {project}`",
    MarkState.REMOVED: "restore the newest record, or `keyturn enroll {project} --adopt`",
    MarkState.UNKNOWN: "`keyturn recover {project}`, if the broker or the bucket was restored",
}
OBJECTS_AT_ONCE: Final = 64

_KEYRING_FIELDS: Final = (
    *("project", "generation", "kek_id", "master_key", "plaintext", "v0", "earlier_keks"),
    *("enrolled_at", "turned_at", "evidence", "mark", "code", "detail"),
)
_SWEEP_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "code", "clean", "objects", "rewrapped", "failed"),
    *("started_at", "ended_at", "detail"),
)
# Records are read whole, and some are large.
CONCURRENCY: Final = 16
_MAX_FAILING: Final = 100

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MarkedKeyring:
    """One project's keyring, compared with its mark.

    Attributes:
        project: The project.
        state: How they compare.
        found: What the record says; None if there is none.
        changed_at: When the record was put.
        mark: The highest mark, if there is one.
        marked_at: When that was published.
    """

    project: str
    state: MarkState
    found: Mark | None
    changed_at: datetime | None
    mark: Mark | None
    marked_at: datetime | None


def way_out(each: MarkedKeyring) -> str:
    """What an operator can do about a keyring that its mark contradicts."""
    return WAYS_OUT[each.state].format(project=each.project)


def marks_by_key(marks: MarkStream, verify_keys: tuple[VerifyKey, ...]) -> dict[str, int]:
    """How many projects' marks each of the event keys signed."""
    earlier = Counter(key_id for key_id, _ in marks.signed_before.values())
    counts = {key.id: earlier[key.id] for key in verify_keys}
    projects = sum(1 for _ in marks.table.projects())
    counts[verify_keys[0].id] = projects - earlier.total()
    return counts


@asynccontextmanager
async def open_marks(
    settings: DeploymentSettings, verify_keys: tuple[VerifyKey, ...]
) -> AsyncIterator[MarkStream]:
    """The marks, all of them read, and followed until the block ends.

    Raises:
        CommandError: the stream cannot be read.
    """
    marks = MarkStream(
        BrokerAddress.of(settings),
        settings.deployment,
        verify_keys,
        lease_s=_LEASE_S,
        signing_key=None,
    )
    with _quiet():
        async with following(marks):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await marks.load()
            except EventsUnavailableError as exc:
                raise CommandError(str(exc)) from exc
            except TimeoutError as exc:
                raise CommandError(f"{MARKS_STREAM} was not read to its end in time") from exc
            yield marks


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: a command prints its result or one line."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


async def compare_keyrings(
    storage: Storage, keys: OperatorKeys, table: MarkTable, project: str | None = None
) -> AsyncIterator[MarkedKeyring | tuple[str, CodedError]]:
    """Every keyring with its mark, or that of one project, in the order of the bucket.

    Then the projects whose keyring was removed. For a keyring that does not open: the project, and
    the error.

    Raises:
        StorageUnavailableError, StorageAnswerError: not all of them can be read.
    """
    prefix = KEYRINGS_PREFIX if project is None else keyring_s3_key(project)
    seen = set[str]()
    async for batch in batched(storage.list(prefix), CONCURRENCY):
        records = [record for row in batch if (record := record_of(row)) is not None]
        seen.update(record.project for record in records)
        for compared in await asyncio.gather(
            *(_read_and_compare(storage, keys, table, record) for record in records)
        ):
            if compared is not None:
                yield compared
    for removed in find_removed(table, seen, project):
        yield removed


def find_removed(
    table: MarkTable, seen: AbstractSet[str], project: str | None
) -> Iterator[MarkedKeyring]:
    """The projects, or the one, that have a mark and are not among those whose keyring was seen."""
    for name in sorted(table.projects()):
        if name not in seen and project in (None, name):
            yield _marked(name, MarkState.REMOVED, None, table)


async def _read_and_compare(
    storage: Storage, keys: OperatorKeys, table: MarkTable, record: Record
) -> MarkedKeyring | tuple[str, CodedError] | None:
    since = table.received
    opened = await open_record(storage, keys, record)
    return await compare_record(storage, keys, table, record, opened, since)


async def compare_record(
    storage: Storage,
    keys: OperatorKeys,
    table: MarkTable,
    record: Record,
    opened: Opened | CodedError | None,
    since: int,
) -> MarkedKeyring | tuple[str, CodedError] | None:
    """One keyring with its mark; None if it is gone and was never marked.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        table: The marks.
        record: The keyring's record.
        opened: What a read of it found. It is read again if a mark arrived meanwhile.
        since: `table.received` before that read began.

    Raises:
        StorageUnavailableError, StorageAnswerError: it cannot be read.
    """
    project = record.project
    for _ in range(_MAX_READS):
        if isinstance(opened, CodedError):
            return project, opened
        state = table.find_state(project, None if opened is None else mark_of(opened), since)
        if state is not None:
            return _marked(project, state, opened, table)
        if opened is None and table.find(project) is None:
            return None
        since = table.received
        opened = await open_record(storage, keys, record)
    raise StorageUnavailableError("a keyring kept changing while it was read")


def mark_of(opened: Opened) -> Mark | None:
    """The state of a keyring's record; None if it is another record."""
    keyring = opened.content
    if not isinstance(keyring, Keyring):
        return None
    return Mark(keyring.serial, opened.digest, keyring.current.generation)


def _marked(
    project: str, state: MarkState, opened: Opened | None, table: MarkTable
) -> MarkedKeyring:
    return MarkedKeyring(
        project=project,
        state=state,
        found=None if opened is None else mark_of(opened),
        changed_at=None if opened is None else opened.changed_at,
        mark=table.find(project),
        marked_at=table.find_date(project),
    )


@dataclass(slots=True)
class RecordIndex:
    """What the records say.

    Attributes:
        keyrings: A row each, in the order of the bucket.
        generations: Of each project whose keyring opens, the newest first.
        sweeps: A row each, running ones first, then the latest.
        sweep_records_under: How many records of sweeps open under each master key.
        failing: Rows of records of sweeps that do not open, up to a limit.
        unreadable: How many records of any kind do not open.
        missing_master_keys: How many records name each master key that is not available.
        contradicted: The keyrings that their marks contradict, if marks were given.
    """

    keyrings: list[Row] = field(default_factory=list)
    generations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sweeps: list[Row] = field(default_factory=list)
    sweep_records_under: Counter[str] = field(default_factory=Counter)
    failing: list[Row] = field(default_factory=list)
    unreadable: int = 0
    missing_master_keys: Counter[str] = field(default_factory=Counter)
    contradicted: list[MarkedKeyring] = field(default_factory=list)


async def read_records(
    storage: Storage,
    keys: OperatorKeys,
    *,
    project: str | None = None,
    table: MarkTable | None = None,
) -> RecordIndex:
    """All keyrings and records of sweeps, or those of one project.

    The parts of a sweep of all are shown only for one project. Keyrings are compared with the
    marks in `table`, if it is given.

    Raises:
        StorageUnavailableError, StorageAnswerError: not all of them can be read.
    """
    index = RecordIndex()
    seen = set[str]()
    async for batch in batched(list_records(storage, project), CONCURRENCY):
        since = 0 if table is None else table.received
        contents = await asyncio.gather(*(open_record(storage, keys, each) for each in batch))
        for record, content in zip(batch, contents, strict=True):
            if record.sweep_path is None:
                seen.add(record.project)
            match content:
                case CodedError():
                    _add_unreadable(index, record, content)
                case Opened(content=Keyring() as keyring):
                    index.keyrings.append(_keyring_row(keyring))
                    if table is not None:
                        marked = await compare_record(storage, keys, table, record, content, since)
                        _add_mark(index, marked)
                    generations = (keyring.current.generation, *past_generations(keyring))
                    index.generations[record.project] = generations
                case Opened(content=SweepRecord() as of_sweeps):
                    _add_sweeps(index, of_sweeps, with_parts=project is not None)
    if table is not None:
        index.contradicted.extend(find_removed(table, seen, project))
    index.sweeps.sort(
        key=lambda row: (row["status"] == "running", row["started_at"] or ""), reverse=True
    )
    return index


def _add_sweeps(index: RecordIndex, opened: SweepRecord, *, with_parts: bool) -> None:
    index.sweep_records_under[opened.master_key] += 1
    if opened.record is not None:
        for origin in opened.record.origins:
            if with_parts or origin.kind != "part":
                index.sweeps.append(sweep_row(Sweep(opened.record, origin).row()))


def _add_mark(index: RecordIndex, marked: MarkedKeyring | tuple[str, CodedError] | None) -> None:
    """Add the last keyring's mark; one that changed and does not open any more has none."""
    if isinstance(marked, MarkedKeyring):
        index.keyrings[-1]["mark"] = marked.state.value
        if marked.state.is_contradicted:
            index.contradicted.append(marked)


def _add_unreadable(index: RecordIndex, record: Record, error: CodedError) -> None:
    index.unreadable += 1
    if isinstance(error, UnknownMasterKeyError):
        index.missing_master_keys[error.detail] += 1
    reason = {"code": error.code, "detail": error.detail}
    if record.sweep_path is None:
        known = {"project": record.project} | reason
        index.keyrings.append(dict.fromkeys(_KEYRING_FIELDS) | known)
    elif len(index.failing) < _MAX_FAILING:
        index.failing.append({"record": record.listed.key} | reason)


def _keyring_row(keyring: Keyring) -> Row:
    row = project_status(keyring)
    return dict.fromkeys(_KEYRING_FIELDS) | {
        "project": row.project,
        "generation": row.generation,
        "kek_id": row.kek_id,
        "master_key": row.master_key,
        "plaintext": _permission(allowed=row.plaintext),
        "v0": _permission(allowed=row.v0),
        "earlier_keks": row.earlier_keks,
        "enrolled_at": shown_time(row.enrolled_at),
        "turned_at": shown_time(row.rotated_at),
        "evidence": row.evidence,
    }


def sweep_row(row: SweepStatus) -> Row:
    """A sweep in one row."""
    counts = row.counts or Counts()
    return dict.fromkeys(_SWEEP_FIELDS) | {
        "sweep_id": row.sweep_id,
        "kind": row.kind,
        "project": row.project,
        "status": row.status,
        "code": row.code,
        "detail": row.detail,
        "clean": row.clean,
        "objects": counts.objects,
        "rewrapped": counts.rewrapped,
        "failed": counts.failed,
        "started_at": shown_time(row.started_at),
        "ended_at": shown_time(row.ended_at),
    }


def _permission(*, allowed: bool | None) -> str:
    return "allowed" if allowed else "forbidden"


def shown_time(time: str | None) -> str | None:
    """A time of a message, to the second."""
    return None if time is None else to_seconds(parse_time(time))


def to_seconds(instant: datetime | None) -> str | None:
    """A time as SPEC 1 writes it, to the second."""
    return None if instant is None else f"{format_time(instant).partition('.')[0]}Z"


async def take_census(
    storage: Storage,
    keys: OperatorKeys,
    generations: Mapping[str, Sequence[int]],
    *,
    project: str | None = None,
) -> Census:
    """Inspect every object of the bucket or of one project, `OBJECTS_AT_ONCE` at a time.

    `generations` are all those of each project whose keyring opens.

    Raises:
        StorageUnavailableError, StorageAnswerError, KmsUnavailableError: the census would be
            incomplete.
    """

    async def of_project(project: str) -> Sequence[int]:
        return generations.get(project, ())

    census: Census = Counter()
    inspector = ObjectInspector(storage, keys, of_project)
    prefix = "" if project is None else f"{project}/"
    text = TextColumn("census: {task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_display(*columns) as progress:
        bar = progress.add_task("", total=None)

        async def show_total() -> None:
            progress.update(bar, total=await count(list_objects(storage, prefix)))

        # A second listing is only worth it if the total is displayed.
        async with optional_task(None if progress.disable else show_total):
            async for batch in batched(list_objects(storage, prefix), OBJECTS_AT_ONCE):
                groups = await asyncio.gather(*(inspector.inspect(*listed) for listed in batch))
                census.update(group for group in groups if group is not None)
                name = batch[-1][0].partition("/")[0]
                progress.update(bar, advance=len(batch), description=printable(name))
    return census


async def mark_rolled_back(
    storage: Storage, keys: OperatorKeys, keyrings: Sequence[Row], census: Census
) -> None:
    """Mark keyrings older than what opens among their project's objects (SPEC 5.4)."""
    opened = {row["project"]: row["generation"] for row in keyrings if row["generation"]}
    newest = await find_rolled_back(storage, keys, opened, census)
    for row in keyrings:
        if row["project"] in newest:
            detail = f"an object is at generation {newest[row['project']]}"
            row.update(code=KeyringRolledBackError.code, detail=detail)


def object_rows(census: Census) -> list[Row]:
    """A row for each group of objects, by project and kind, the newest generation first."""
    groups = sorted(
        census,
        key=lambda g: (g.project, g.kind, -(g.generation or 0), g.master_key or "", g.code or ""),
    )
    return [asdict(g) | {"project": g.project or None, "objects": census[g]} for g in groups]


def master_key_rows(
    settings: StatusSettings, index: RecordIndex, census: Census | None, project: str | None
) -> list[Row]:
    """A row for each available master key, and for each missing one that a record names.

    `census` is None if objects were not inspected, `project` the only one that was inspected.
    """
    objects: Counter[str | None] = Counter()
    noncurrent: Counter[str | None] = Counter()
    for group, number in (census or Census()).items():
        (noncurrent if group.kind == NONCURRENT else objects)[group.master_key] += number
    rows = []
    around = _surroundings(index, census, project)
    active = settings.active_master_key
    for name in settings.master_keys:
        row: Row = {
            "master_key": name,
            "held": True,
            "active": None if active is None else name == active,
            "objects": None if census is None else objects[name],
            "noncurrent": None if census is None else noncurrent[name],
            "keyrings": sum(row["master_key"] == name for row in index.keyrings),
            "sweep_records": index.sweep_records_under[name],
        }
        verdict = judge_drop(_usage(row), around)
        told = f"{name}: {verdict.reason}"
        rows.append(row | {"may_be_dropped": verdict.may_be_dropped, "told": told})
    for name, number in sorted(index.missing_master_keys.items()):
        row = {"master_key": name, "held": False, "may_be_dropped": None}
        rows.append(row | {"told": f"{name}: {missing_key(number)}"})
    return rows


def _usage(row: Row) -> KeyUsage:
    records = row["keyrings"] + row["sweep_records"]
    return KeyUsage(row["objects"], row["noncurrent"] or 0, records, row["active"])


def _surroundings(index: RecordIndex, census: Census | None, project: str | None) -> Surroundings:
    groups = (census or Census()).items()
    return Surroundings(
        running_sweeps=sum(sweep["status"] == "running" for sweep in index.sweeps),
        unreadable_objects=sum(number for group, number in groups if group.kind == UNREADABLE),
        unreadable_records=index.unreadable,
        project=project,
    )
