"""Opening the records of keyrings and sweeps that a listing shows (SPEC 5, 8.5).

Every record is opened: an attacker who writes the bucket can relabel a record, but not make
it open under another master key.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CorruptObjectError,
    KmsUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import (
    ALL_PROJECTS,
    KEYRINGS_PREFIX,
    SWEEPS_PREFIX,
    is_project,
    keyring_s3_key,
)
from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.keyring import Keyring, sealed_records
from keyturn_workers.keyring.store import parse_keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import ObjectSummary, Storage
from keyturn_workers.sweep import AllRecord, ProjectRecord
from keyturn_workers.sweep.record import from_json
from keyturn_workers.sweep.store import RecordPath, parse_record_path

# Far above any real record; a larger one was planted, and could exhaust the memory.
MAX_BYTES: Final = 16 * 1024**2

RECORD_ERRORS: Final = (
    ArchivedObjectError,
    CorruptObjectError,
    UnknownMasterKeyError,
    KmsUnavailableError,
)
"""Why one record does not open. Others may open all the same."""


@dataclass(frozen=True, slots=True)
class Record:
    """A listed record, and the project that it must be sealed for."""

    listed: ObjectSummary
    project: str
    sweep_path: RecordPath | None = None  # None for a keyring


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """A record of sweeps that opened; `record` is None for one in the folder of a round."""

    master_key: str
    record: ProjectRecord | AllRecord | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A record that opened, as it was read.

    Attributes:
        content: What it holds.
        etag: Its ETag.
        digest: SHA-256 of its bytes, by which a mark names a keyring.
        changed_at: When it was put, by the storage's clock.
    """

    content: Keyring | SweepRecord
    etag: str
    digest: bytes
    changed_at: datetime


def record_of(listed: ObjectSummary) -> Record | None:
    """The record at a listed S3 key; None if no keyring and no record of sweeps has this key."""
    if listed.key.startswith(KEYRINGS_PREFIX):
        name = listed.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
        if is_project(name) and listed.key == keyring_s3_key(name):
            return Record(listed, name)
    path = parse_record_path(listed.key)
    return None if path is None else Record(listed, path.project, path)


async def list_records(storage: Storage, project: str | None) -> AsyncIterator[Record]:
    """All keyrings, then all records of sweeps; or those of one project."""
    async for row in storage.list(KEYRINGS_PREFIX if project is None else keyring_s3_key(project)):
        record = record_of(row)
        if record is not None:
            yield record
    async for row in storage.list(f"{SWEEPS_PREFIX}{project or ''}"):
        record = record_of(row)
        if record is not None and project in (None, record.project):
            yield record


async def open_record(
    storage: Storage, keys: OperatorKeys, record: Record
) -> Opened | CodedError | None:
    """The record; the error if it does not open; None if it is gone.

    Raises:
        StorageUnavailableError, StorageAnswerError: it cannot be read.
    """
    s3_key = record.listed.key
    if record.listed.size_bytes > MAX_BYTES:
        return CorruptObjectError("too large for a record")
    try:
        head, body = await storage.read(s3_key, max_bytes=MAX_BYTES)
        content = await _parse(body, record, keys)
        return Opened(content, head.etag, hashlib.sha256(body).digest(), head.last_modified)
    except MissingError:
        return None
    except ArchivedError:
        return ArchivedObjectError("the record is archived")
    except ValueError:
        return CorruptObjectError("the record is not of its kind")
    except RECORD_ERRORS as exc:
        return exc


async def _parse(body: bytes, record: Record, keys: OperatorKeys) -> Keyring | SweepRecord:
    if record.sweep_path is None:
        return await parse_keyring(body, record.project, keys)
    s3_key, project = record.listed.key, record.project
    master_key, content = await sealed_records.parse(body, s3_key, project, keys)
    if not record.sweep_path.is_main:
        return SweepRecord(master_key, None)
    kind: type[ProjectRecord | AllRecord] = AllRecord if project == ALL_PROJECTS else ProjectRecord
    return SweepRecord(master_key, from_json(kind, content))
