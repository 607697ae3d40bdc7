"""Keyturn's own records as `keyturn status` shows them (SPEC 5, 8.1, 8.5).

Every record is opened: an attacker who writes the bucket can relabel a record, but not make
it open under another master key. One that does not open is shown with its code. No key of a
record is kept.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from keyturn.crypto import Secret
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import (
    ALL_PROJECTS,
    KEYRINGS_PREFIX,
    SWEEPS_PREFIX,
    is_project,
    keyring_s3_key,
    parse_time,
)
from keyturn_workers.cli.bucket import batched
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import Keyring, sealed_records
from keyturn_workers.keyring.model import parse_keyring
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.plan import AllPlan, Plan, from_json
from keyturn_workers.sweep.record_paths import parse_record_path

KEYRING_COLUMNS: Final = (
    *("project", "generation", "master_key", "plaintext", "v0", "earlier_keks"),
    *("enrolled_at", "turned_at", "code"),
)
SWEEP_COLUMNS: Final = (
    *("sweep_id", "kind", "project", "status", "code", "clean", "objects", "rewrapped", "failed"),
    *("started_at", "ended_at"),
)
# Records are read whole, and some are large.
_CONCURRENCY: Final = 16
# Far above any real record; a larger one was planted, and could exhaust the memory.
_MAX_BYTES: Final = 16 * 1024**2
_MAX_SHOWN: Final = 100

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Record:
    """A listed record; `project` is the one that it must be sealed for."""

    s3_key: str
    size_bytes: int
    project: str
    sweep_id: str | None = None
    """None for a keyring."""
    is_plan: bool = False


@dataclass(slots=True)
class RecordIndex:
    """What the records say.

    Attributes:
        keyrings: A row each, in the order of the bucket.
        generations: Of each project whose keyring opens, the newest first.
        sweeps: A row each, running ones first, then the latest.
        keyrings_under: The number of keyrings under each master key.
        sweep_records_under: The number of records of sweeps under each master key.
        failing: Rows of other records that do not open, up to a limit.
        unreadable: The number of records of any kind that do not open.
        missing_master_keys: How many records name each master key that is not available.
    """

    keyrings: list[Row] = field(default_factory=list)
    generations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sweeps: list[Row] = field(default_factory=list)
    keyrings_under: Counter[str] = field(default_factory=Counter)
    sweep_records_under: Counter[str] = field(default_factory=Counter)
    failing: list[Row] = field(default_factory=list)
    unreadable: int = 0
    missing_master_keys: Counter[str] = field(default_factory=Counter)

    @property
    def running(self) -> int:
        """The number of running sweeps."""
        return sum(row["status"] == "running" for row in self.sweeps)


async def read_records(
    storage: Storage, master_keys: Mapping[str, Secret], *, project: str | None = None
) -> RecordIndex:
    """All keyrings and records of sweeps, or those of one project.

    The parts of a sweep of all are shown only for one project.

    Raises:
        StorageUnavailableError, StorageAnswerError: not all of them can be read.
    """
    index = RecordIndex()
    async for batch in batched(_list_records(storage, project), _CONCURRENCY):
        contents = await asyncio.gather(*(_read(storage, master_keys, each) for each in batch))
        for record, content in zip(batch, contents, strict=True):
            if isinstance(content, CodedError):
                _add_unreadable(index, record, content)
            elif isinstance(content, Keyring):
                index.keyrings_under[content.master_key] += 1
                index.keyrings.append(_keyring_row(content))
                entries = (content.current, *reversed(content.history))
                index.generations[record.project] = tuple(entry.generation for entry in entries)
            elif content is not None:
                master_key, plan = content
                index.sweep_records_under[master_key] += 1
                if plan is not None and (project is not None or not plan.ask.of_all):
                    index.sweeps.append(sweep_row(plan))
    index.sweeps.sort(key=lambda row: row["started_at"] or "", reverse=True)
    index.sweeps.sort(key=lambda row: row["status"] != "running")
    return index


async def _list_records(storage: Storage, project: str | None) -> AsyncIterator[_Record]:
    async for row in storage.list(KEYRINGS_PREFIX if project is None else keyring_s3_key(project)):
        name = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
        if is_project(name) and row.key == keyring_s3_key(name):
            yield _Record(row.key, row.size_bytes, name)
    async for row in storage.list(SWEEPS_PREFIX):
        path = parse_record_path(row.key)
        if path is not None and project in (None, path.project):
            yield _Record(row.key, row.size_bytes, path.project, path.sweep_id, path.is_plan)


async def _read(
    storage: Storage, master_keys: Mapping[str, Secret], record: _Record
) -> Keyring | tuple[str, Plan | AllPlan | None] | CodedError | None:
    """A keyring; or the master key of a sweep's record, and its plan if it is one.

    The error if the record does not open; None if it is gone.
    """
    if record.size_bytes > _MAX_BYTES:
        return CorruptObjectError("too large for a record")
    try:
        _, body = await storage.read(record.s3_key)
        if record.sweep_id is None:
            return parse_keyring(body, record.project, master_keys)
        name, content = sealed_records.parse(body, record.s3_key, record.project, master_keys)
        if not record.is_plan:
            return name, None
        return name, _parse_plan(record, content)
    except MissingError:
        return None
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return exc


def _parse_plan(record: _Record, content: dict[str, Any]) -> Plan | AllPlan:
    try:
        if record.project == ALL_PROJECTS:
            return from_json(AllPlan, content)
        return from_json(Plan, content)
    except ValueError as exc:
        raise CorruptObjectError("the record is not of its kind") from exc


def _add_unreadable(index: RecordIndex, record: _Record, error: CodedError) -> None:
    index.unreadable += 1
    if isinstance(error, UnknownMasterKeyError):
        index.missing_master_keys[error.detail] += 1
    reason = {"code": error.code, "detail": error.detail}
    if record.sweep_id is None:
        row = dict.fromkeys((*KEYRING_COLUMNS, "detail")) | {"project": record.project}
        index.keyrings.append(row | reason)
    elif record.is_plan:
        index.sweeps.append(empty_sweep_row(record.sweep_id, record.project) | reason)
    elif len(index.failing) < _MAX_SHOWN:
        index.failing.append({"record": record.s3_key} | reason)


def _keyring_row(keyring: Keyring) -> Row:
    current = keyring.current
    return {
        "project": keyring.project,
        "generation": current.generation,
        "master_key": keyring.master_key,
        "plaintext": "allowed" if keyring.plaintext_allowed else "forbidden",
        "v0": "allowed" if keyring.v0_allowed else "forbidden",
        "earlier_keks": sum(entry.kek is not None for entry in keyring.history),
        "enrolled_at": to_seconds(parse_time(keyring.enrollment.at)),
        "turned_at": to_seconds(parse_time(current.at)) if keyring.history else None,
        "code": None,
        "detail": None,
    }


def empty_sweep_row(sweep_id: str, project: str) -> Row:
    """The row of a sweep that has no plan, or whose plan does not open."""
    names = (*SWEEP_COLUMNS, "detail")
    return dict.fromkeys(names) | {"sweep_id": sweep_id, "project": project}


def sweep_row(plan: Plan | AllPlan) -> Row:
    """A sweep in one row; for a sweep of all, with the counts of the parts that ended."""
    counts = plan.counts if isinstance(plan, Plan) else plan.sums
    failed, running = plan.status == "failed", plan.status == "running"
    return empty_sweep_row(plan.ask.sweep_id, plan.ask.project) | {
        "kind": plan.ask.kind,
        "status": plan.status,
        "code": plan.code if failed else None,
        "clean": None if running else plan.clean,
        "objects": counts.objects,
        "rewrapped": counts.rewrapped,
        "failed": counts.failed,
        "started_at": to_seconds(plan.started_at),
        "ended_at": None if running else to_seconds(plan.ended_at),
        "detail": plan.detail if failed else None,
    }


def to_seconds(instant: datetime | None) -> str | None:
    """A time as SPEC 1 writes it, to the second."""
    if instant is None:
        return None
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
