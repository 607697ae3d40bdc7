"""Opening the records of keyrings and sweeps that a listing shows (SPEC 5, 8.5).

Every record is opened: an attacker who writes the bucket can relabel a record, but not make
it open under another master key.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

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
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.core.sweep_record import AllRecord, ProjectRecord, from_json
from keyturn_workers.keys.keyring import sealed_records
from keyturn_workers.keys.keyring.store import parse_keyring
from keyturn_workers.keys.sweep_records import RecordPath, parse_record_path

# Far above any real record; a larger one was planted, and could exhaust the memory.
MAX_BYTES: Final = 16 * 1024**2
# Records are read whole, and some are large.
_MAX_BYTES_AT_ONCE: Final = 32 * 1024**2
_T = TypeVar("_T")
RECORD_ERRORS: Final = (
    ArchivedObjectError,
    CorruptObjectError,
    UnknownMasterKeyError,
    KmsUnavailableError,
)
"""The errors of one record that does not open. Others may open all the same."""

BATCH: Final = 8
"""Reads of one report at once."""
MAX_PAGE_BYTES: Final = 512 * 1024
"""A report must stay well below what a broker and its readers take comfortably."""
_MAX_WAIT_S: Final = 0.25
_LOOK_S: Final = 0.005


class Pace:
    """Waits before each batch of a report, at most `max_wait_s`, while there are `others`."""

    def __init__(self, others: Callable[[], int], max_wait_s: float = _MAX_WAIT_S) -> None:
        self._others = others
        self._max_wait_s = max_wait_s

    async def next_batch(self) -> None:
        """Return once the next batch may begin."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._max_wait_s
        while self._others() > 0 and loop.time() < until:  # noqa: ASYNC110  # a count has no event
            await asyncio.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one report: in a worker a little at a time, for a command everything.

    Attributes:
        wait_s: How long it waits for running reads; None waits for their end.
        at_once: How many objects it inspects at once.
        rows: How many keyrings, and how many sweeps, are rows.
        failures: About how many failures of one sweep are read.
        page_bytes: The size of a page.
        counts_objects: Whether the objects of a running sweep are counted.
        is_detailed: Whether groups of objects name their project, and unreadable records their
            S3 key.
    """

    wait_s: float | None = 1.5
    at_once: int = BATCH
    rows: int = 30_000
    failures: int = 20_000
    page_bytes: int = MAX_PAGE_BYTES
    counts_objects: bool = True
    is_detailed: bool = False


OF_WORKER: Final = Bounds()


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

    `digest` is the SHA-256 of its bytes, by which a mark names a keyring. `changed_at` is by the
    storage's clock.
    """

    content: Keyring | SweepRecord
    etag: str
    digest: bytes
    changed_at: datetime


def record_of(listed: ObjectSummary) -> Record | None:
    """Return the record at a listed S3 key; None if it is no keyring and no record of sweeps."""
    if listed.key.startswith(KEYRINGS_PREFIX):
        name = listed.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
        if is_project(name) and listed.key == keyring_s3_key(name):
            return Record(listed, name)
    path = parse_record_path(listed.key)
    return None if path is None else Record(listed, path.project, path)


async def list_records(
    storage: Storage, project: str, after: str, limit: int
) -> tuple[list[Record], str | None]:
    """List keyrings and then records of sweeps: of one project, or of all for `*`.

    `after` is where to begin, empty at first; `limit` is how many S3 keys to list.

    Returns:
        The records, and where the next ones begin; None if there are no more.
    """
    prefixes = [KEYRINGS_PREFIX, SWEEPS_PREFIX]
    if project != ALL_PROJECTS:
        prefixes = [keyring_s3_key(project), f"{SWEEPS_PREFIX}{project}"]
    behind = [prefix for prefix in prefixes if after > prefix and not after.startswith(prefix)]
    prefix, *later = prefixes[len(behind) :]
    listing = await storage.list_entries(prefix, after=after, limit=limit)
    found = [record for row in listing.objects if (record := record_of(row)) is not None]
    if project != ALL_PROJECTS:
        found = [record for record in found if record.project == project]
    return found, listing.next_after or (later[0] if later else None)


async def open_record(
    storage: Storage, keys: KekDeriver, record: Record
) -> Opened | CodedError | None:
    """Return the opened record; the error if it does not open; None if it is gone.

    Raises:
        StorageUnavailableError, StorageResponseError: it cannot be read.
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


async def _parse(body: bytes, record: Record, keys: KekDeriver) -> Keyring | SweepRecord:
    if record.sweep_path is None:
        return await parse_keyring(body, record.project, keys)
    s3_key, project = record.listed.key, record.project
    master_key, content = await sealed_records.parse(body, s3_key, project, keys)
    if not record.sweep_path.is_main:
        return SweepRecord(master_key, None)
    kind: type[ProjectRecord | AllRecord] = AllRecord if project == ALL_PROJECTS else ProjectRecord
    return SweepRecord(master_key, from_json(kind, content))


def read_batches(records: Sequence[Record], at_once: int = BATCH) -> Iterator[Sequence[Record]]:
    """Yield the records to read at once: few, and not too many bytes of them."""
    batch: list[Record] = []
    size_bytes = 0
    for record in records:
        size_bytes += record.listed.size_bytes
        if batch and (len(batch) == at_once or size_bytes > _MAX_BYTES_AT_ONCE):
            yield batch
            batch, size_bytes = [], record.listed.size_bytes
        batch.append(record)
    if batch:
        yield batch


class EtagCache(Generic[_T]):
    """Values by S3 key, each with its ETag. The least recently used ones go.

    `max_kept` is the size of all values together.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[str, tuple[str, _T, int]] = OrderedDict()
        self._size = 0

    def get(self, s3_key: str, etag: str) -> _T | None:
        """Return the value made from exactly this ETag."""
        kept = self._kept.get(s3_key)
        if kept is None or kept[0] != etag:
            return None
        self._kept.move_to_end(s3_key)
        return kept[1]

    def put(self, s3_key: str, etag: str, value: _T, size: int = 1) -> None:
        """Keep a value, in place of any other of this key."""
        _, _, replaced_size = self._kept.pop(s3_key, ("", None, 0))
        self._kept[s3_key] = (etag, value, size)
        self._size += size - replaced_size
        while self._size > self._max_kept:
            _, (_, _, evicted_size) = self._kept.popitem(last=False)
            self._size -= evicted_size
