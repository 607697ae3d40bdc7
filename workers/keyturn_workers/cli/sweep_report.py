"""The report of one sweep for `keyturn status ID`, from its record (SPEC 8.5, 8.6)."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from keyturn.errors import CodedError
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import SweepStatus
from keyturn_workers.cli.bucket import batched, count_objects, open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.record_index import CONCURRENCY, Row, shown_time, sweep_row
from keyturn_workers.cli.report_keys import open_report_keys
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.status.pace import Pace
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import Sweep, find_sweep
from keyturn_workers.status.sweeps import SweepReader, sum_counts
from keyturn_workers.storage import Storage
from keyturn_workers.sweep import AllRecord, ProjectRecord, SweepStore
from keyturn_workers.sweep.record import Round

PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "waits_for_round", "code", "detail", "clean"),
    *("requested_at", "started_at", "ended_at"),
    *("master_key", "encrypt_plaintext", "repair"),
)
_MAX_SHOWN: Final = 20


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
