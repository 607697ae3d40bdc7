"""Keyturn's own records as `keyturn status` shows them (SPEC 5, 8.1, 8.5).

Every record is opened (`keyturn_workers.status.records`). One that does not open is shown with its
code. No key of a record is kept.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from keyturn.errors import CodedError, UnknownMasterKeyError
from keyturn.identifiers import format_time, parse_time
from keyturn.messages import Counts, SweepStatus
from keyturn_workers.cli.bucket import batched
from keyturn_workers.cli.keyring_marks import MarkedKeyring, compare_record, find_removed
from keyturn_workers.keyring import Keyring, MarkTable
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.wraps import past_generations
from keyturn_workers.status.records import (
    Opened,
    Record,
    SweepRecord,
    list_records,
    open_record,
)
from keyturn_workers.status.rows import Sweep, project_status
from keyturn_workers.storage import Storage

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
