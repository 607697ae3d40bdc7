"""Keyturn's own records as `keyturn status` shows them (SPEC 5, 8.1, 8.5).

Every record is opened: an attacker who writes the bucket can relabel a record, but not make
it open under another master key. One that does not open is shown with its code. No key of a
record is kept.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    KmsUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import (
    ALL_PROJECTS,
    KEYRINGS_PREFIX,
    SWEEPS_PREFIX,
    format_time,
    is_project,
    keyring_s3_key,
    parse_time,
)
from keyturn_workers.cli.bucket import batched
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import Keyring, sealed_records
from keyturn_workers.keyring.store import parse_keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.unwrap import past_generations
from keyturn_workers.storage import ObjectSummary, Storage
from keyturn_workers.sweep.plan import AllPlan, Plan, from_json
from keyturn_workers.sweep.record_paths import RecordPath, parse_record_path

_KEYRING_FIELDS: Final = (
    *("project", "generation", "kek_id", "master_key", "plaintext", "v0", "earlier_keks"),
    *("enrolled_at", "turned_at", "evidence", "code", "detail"),
)
_SWEEP_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "code", "clean", "objects", "rewrapped", "failed"),
    *("started_at", "ended_at", "detail"),
)
# Records are read whole, and some are large.
_CONCURRENCY: Final = 16
# Far above any real record; a larger one was planted, and could exhaust the memory.
_MAX_BYTES: Final = 16 * 1024**2
_MAX_FAILING: Final = 100

RECORD_ERRORS: Final = (CorruptObjectError, UnknownMasterKeyError, KmsUnavailableError)
Row = dict[str, Any]


@dataclass(slots=True)
class RecordIndex:
    """What the records say.

    Attributes:
        keyrings: A row each, in the order of the bucket.
        generations: Of each project whose keyring opens, the newest first.
        sweeps: A row each, running ones first, then the latest.
        sweep_records_under: How many records of sweeps open under each master key.
        failing: Rows of other records that do not open, up to a limit.
        unreadable: How many records of any kind do not open.
        missing_master_keys: How many records name each master key that is not available.
    """

    keyrings: list[Row] = field(default_factory=list)
    generations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sweeps: list[Row] = field(default_factory=list)
    sweep_records_under: Counter[str] = field(default_factory=Counter)
    failing: list[Row] = field(default_factory=list)
    unreadable: int = 0
    missing_master_keys: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Record:
    """A listed record, and the project that it must be sealed for."""

    listed: ObjectSummary
    project: str
    sweep_path: RecordPath | None = None  # None for a keyring


async def read_records(
    storage: Storage, keys: OperatorKeys, *, project: str | None = None
) -> RecordIndex:
    """All keyrings and records of sweeps, or those of one project.

    The parts of a sweep of all are shown only for one project.

    Raises:
        StorageUnavailableError, StorageAnswerError: not all of them can be read.
    """
    index = RecordIndex()
    async for batch in batched(_list_records(storage, project), _CONCURRENCY):
        contents = await asyncio.gather(*(_read(storage, keys, each) for each in batch))
        for record, content in zip(batch, contents, strict=True):
            match content:
                case CodedError():
                    _add_unreadable(index, record, content)
                case Keyring():
                    index.keyrings.append(_keyring_row(content))
                    generations = (content.current.generation, *past_generations(content))
                    index.generations[record.project] = generations
                case (master_key, plan):
                    index.sweep_records_under[master_key] += 1
                    if plan is not None and (project is not None or not plan.ask.of_all):
                        index.sweeps.append(sweep_row(plan))
    index.sweeps.sort(
        key=lambda row: (row["status"] == "running", row["started_at"] or ""), reverse=True
    )
    return index


async def _list_records(storage: Storage, project: str | None) -> AsyncIterator[_Record]:
    async for row in storage.list(KEYRINGS_PREFIX if project is None else keyring_s3_key(project)):
        name = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
        if is_project(name) and row.key == keyring_s3_key(name):
            yield _Record(row, name)
    async for row in storage.list(SWEEPS_PREFIX):
        path = parse_record_path(row.key)
        if path is not None and project in (None, path.project):
            yield _Record(row, path.project, path)


async def _read(
    storage: Storage, keys: OperatorKeys, record: _Record
) -> Keyring | tuple[str, Plan | AllPlan | None] | CodedError | None:
    """A keyring; or the master key of a sweep's record, and its plan if it is one.

    The error if the record does not open; None if it is gone.
    """
    s3_key, project = record.listed.key, record.project
    if record.listed.size_bytes > _MAX_BYTES:
        return CorruptObjectError("too large for a record")
    try:
        _, body = await storage.read(s3_key)
        if record.sweep_path is None:
            return await parse_keyring(body, project, keys)
        master_key, content = await sealed_records.parse(body, s3_key, project, keys)
        kind: type[Plan | AllPlan] = AllPlan if project == ALL_PROJECTS else Plan
        return master_key, from_json(kind, content) if record.sweep_path.is_plan else None
    except MissingError:
        return None
    except ValueError:
        return CorruptObjectError("the record is not of its kind")
    except RECORD_ERRORS as exc:
        return exc


def _add_unreadable(index: RecordIndex, record: _Record, error: CodedError) -> None:
    index.unreadable += 1
    if isinstance(error, UnknownMasterKeyError):
        index.missing_master_keys[error.detail] += 1
    reason = {"code": error.code, "detail": error.detail}
    path, known = record.sweep_path, {"project": record.project} | reason
    if path is None:
        index.keyrings.append(dict.fromkeys(_KEYRING_FIELDS) | known)
    elif path.is_plan:
        index.sweeps.append(dict.fromkeys(_SWEEP_FIELDS) | {"sweep_id": path.sweep_id} | known)
    elif len(index.failing) < _MAX_FAILING:
        index.failing.append({"record": record.listed.key} | reason)


def _keyring_row(keyring: Keyring) -> Row:
    current = keyring.current
    return dict.fromkeys(_KEYRING_FIELDS) | {
        "project": keyring.project,
        "generation": current.generation,
        "kek_id": current.kek_id,
        "master_key": keyring.master_key,
        "plaintext": "allowed" if keyring.plaintext_allowed else "forbidden",
        "v0": "allowed" if keyring.v0_allowed else "forbidden",
        "earlier_keks": sum(entry.kek is not None for entry in keyring.history),
        "enrolled_at": to_seconds(parse_time(keyring.enrollment.at)),
        "turned_at": to_seconds(parse_time(current.at)) if keyring.history else None,
        "evidence": keyring.evidence,
    }


def sweep_row(plan: Plan | AllPlan) -> Row:
    """A sweep in one row; for a sweep of all, with the counts of the parts that ended."""
    counts = plan.counts if isinstance(plan, Plan) else plan.sums
    row = dict.fromkeys(_SWEEP_FIELDS) | {
        "sweep_id": plan.ask.sweep_id,
        "kind": plan.ask.kind,
        "project": plan.ask.project,
        "status": plan.status,
        "objects": counts.objects,
        "rewrapped": counts.rewrapped,
        "failed": counts.failed,
        "started_at": to_seconds(plan.started_at),
    }
    if plan.status != "running":
        row.update(clean=plan.clean, ended_at=to_seconds(plan.ended_at))
    if plan.status == "failed":
        row.update(code=plan.code, detail=plan.detail)
    return row


def to_seconds(instant: datetime | None) -> str | None:
    """A time as SPEC 1 writes it, to the second."""
    return None if instant is None else f"{format_time(instant).partition('.')[0]}Z"
