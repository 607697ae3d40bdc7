"""Keyturn's own records as `keyturn status` counts and shows them (SPEC 5, 8.1, 8.5).

Each record is opened: whoever writes the bucket can relabel one, but not make it open
under another master key. One that does not open is told with its code. What is kept of a
record never holds a key.
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
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import Keyring, sealed_records
from keyturn_workers.keyring.model import parse_keyring
from keyturn_workers.storage import ObjectSummary, Storage
from keyturn_workers.sweep.plan import AllPlan, Plan, from_json
from keyturn_workers.sweep.record_paths import parse_record_path

# Records are read whole, and some are large.
_AT_ONCE: Final = 16
# No keyring and no sweep's record comes near; a bucket writer's could fill the memory.
_MAX_BYTES: Final = 16 * 1024**2
_MAX_FAILING: Final = 100
_KEYRING: Final = "keyring"
_PLAN: Final = "plan"
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class _Record:
    """Where a record stands; `project` is the one that it is sealed for."""

    s3_key: str
    kind: str
    project: str
    sweep_id: str = ""


@dataclass(slots=True)
class Recorded:
    """What the records say.

    Attributes:
        keyrings: A row each, in the order of the bucket.
        generations: Of each project whose keyring opens, the newest first.
        sweeps: A row each; parts of a sweep of all only where one project is asked for.
        keyrings_under: How many keyrings stand under each master key.
        sweep_records_under: The same of records of sweeps.
        failing: Other records that do not open, up to a number.
        failed: How many records do not open, of all kinds.
        named: Master keys that are not held here, by how many records name them.
    """

    keyrings: list[dict[str, Any]] = field(default_factory=list)
    generations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    keyrings_under: Counter[str] = field(default_factory=Counter)
    sweep_records_under: Counter[str] = field(default_factory=Counter)
    failing: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    named: Counter[str] = field(default_factory=Counter)

    @property
    def running(self) -> int:
        """How many sweeps are under way."""
        return sum(row["status"] == "running" for row in self.sweeps)


async def read_records(
    storage: Storage, master_keys: Mapping[str, Secret], *, project: str | None = None
) -> Recorded:
    """Every keyring and every record of a sweep; of one project where it is named.

    Raises:
        StorageUnavailableError, StorageAnswerError: they cannot all be read.
    """
    told = Recorded()
    batch: list[tuple[_Record, ObjectSummary]] = []

    async def take_batch() -> None:
        read = (_open(storage, master_keys, record, row) for record, row in batch)
        for opened, (record, _) in zip(await asyncio.gather(*read), batch, strict=True):
            _take(told, record, opened, of_parts=project is not None)
        batch.clear()

    async for found in _records(storage, project):
        batch.append(found)
        if len(batch) == _AT_ONCE:
            await take_batch()
    if batch:
        await take_batch()
    told.sweeps.sort(key=lambda row: row["started_at"] or "", reverse=True)
    told.sweeps.sort(key=lambda row: row["status"] != "running")
    return told


async def _records(
    storage: Storage, project: str | None
) -> AsyncIterator[tuple[_Record, ObjectSummary]]:
    start = KEYRINGS_PREFIX if project is None else keyring_s3_key(project)
    async for row in storage.list(start):
        name = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
        if is_project(name) and row.key == keyring_s3_key(name):
            yield _Record(row.key, _KEYRING, name), row
    async for row in storage.list(SWEEPS_PREFIX):
        path = parse_record_path(row.key)
        if path is not None and project in (None, path.project):
            kind = _PLAN if path.is_plan else _OTHER
            yield _Record(row.key, kind, path.project, path.sweep_id), row


_Opened = tuple[str, Keyring | Plan | AllPlan | None] | CodedError | None


async def _open(
    storage: Storage, master_keys: Mapping[str, Secret], record: _Record, row: ObjectSummary
) -> _Opened:
    """The master key that opens a record, and what it holds; why not; None where it is gone."""
    if row.size_bytes > _MAX_BYTES:
        return CorruptObjectError("too large for a record")
    try:
        _, body = await storage.read(record.s3_key)
        return _parsed(body, master_keys, record)
    except MissingError:
        return None
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return exc


def _parsed(
    body: bytes, master_keys: Mapping[str, Secret], record: _Record
) -> tuple[str, Keyring | Plan | AllPlan | None]:
    if record.kind == _KEYRING:
        keyring = parse_keyring(body, record.project, master_keys)
        return keyring.master_key, keyring
    master_key, rest = sealed_records.parse(body, record.s3_key, record.project, master_keys)
    if record.kind == _OTHER:
        return master_key, None
    try:
        if record.project == ALL_PROJECTS:
            return master_key, from_json(AllPlan, rest)
        return master_key, from_json(Plan, rest)
    except ValueError as exc:
        raise CorruptObjectError("the record is not of its kind") from exc


def _take(told: Recorded, record: _Record, opened: _Opened, *, of_parts: bool) -> None:
    if opened is None:
        return
    if isinstance(opened, CodedError):
        _take_failing(told, record, opened)
        return
    master_key, value = opened
    if isinstance(value, Keyring):
        told.keyrings_under[master_key] += 1
        told.keyrings.append(_keyring_row(value))
        every = (*value.history, value.current)
        told.generations[record.project] = tuple(entry.generation for entry in reversed(every))
        return
    told.sweep_records_under[master_key] += 1
    if value is not None and (of_parts or not value.ask.of_all):
        told.sweeps.append(sweep_row(value))


def _take_failing(told: Recorded, record: _Record, error: CodedError) -> None:
    told.failed += 1
    if isinstance(error, UnknownMasterKeyError):
        told.named[error.detail] += 1
    failed = {"code": error.code, "detail": error.detail}
    if record.kind == _KEYRING:
        told.keyrings.append(_EMPTY_KEYRING | {"project": record.project} | failed)
    elif record.kind == _PLAN:
        named = {"sweep_id": record.sweep_id, "project": record.project}
        told.sweeps.append(_EMPTY_SWEEP | named | failed)
    elif len(told.failing) < _MAX_FAILING:
        told.failing.append({"record": record.s3_key} | failed)


KEYRING_COLUMNS: Final = (
    "project",
    "generation",
    "master_key",
    "plaintext",
    "v0",
    "earlier_keks",
    "enrolled_at",
    "turned_at",
    "code",
)
SWEEP_COLUMNS: Final = (
    "sweep_id",
    "kind",
    "project",
    "status",
    "code",
    "clean",
    "objects",
    "rewrapped",
    "failed",
    "started_at",
    "ended_at",
)
_EMPTY_KEYRING: Final[dict[str, Any]] = dict.fromkeys((*KEYRING_COLUMNS, "detail"))
_EMPTY_SWEEP: Final[dict[str, Any]] = dict.fromkeys((*SWEEP_COLUMNS, "detail"))


def _keyring_row(keyring: Keyring) -> dict[str, Any]:
    first, current = keyring.enrollment, keyring.current
    return _EMPTY_KEYRING | {
        "project": keyring.project,
        "generation": current.generation,
        "master_key": keyring.master_key,
        "plaintext": "allowed" if keyring.plaintext_allowed else "forbidden",
        "v0": "allowed" if keyring.v0_allowed else "forbidden",
        "earlier_keks": sum(entry.kek is not None for entry in keyring.history),
        "enrolled_at": seconds(parse_time(first.at)),
        "turned_at": seconds(parse_time(current.at)) if keyring.history else None,
    }


def sweep_row(plan: Plan | AllPlan) -> dict[str, Any]:
    """A sweep in one row; of a sweep of all the counts are of the parts that were added up."""
    counts = plan.counts if isinstance(plan, Plan) else plan.sums
    return _EMPTY_SWEEP | {
        "sweep_id": plan.ask.sweep_id,
        "kind": plan.ask.kind,
        "project": plan.ask.project,
        "status": plan.status,
        "code": plan.code if plan.status == "failed" else None,
        "clean": None if plan.status == "running" else plan.clean,
        "objects": counts.objects,
        "rewrapped": counts.rewrapped,
        "failed": counts.failed,
        "started_at": seconds(plan.started_at),
        "ended_at": None if plan.status == "running" else seconds(plan.ended_at),
        "detail": plan.detail if plan.status == "failed" else None,
    }


def seconds(instant: datetime | None) -> str | None:
    """A moment to the second, as SPEC 1 writes it."""
    if instant is None:
        return None
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
