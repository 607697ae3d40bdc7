"""Rows of keyrings and sweeps, kept by the ETags of their records (SPEC 16.1).

A console asks for the same thousands of rows again and again, and few of them change. A kept row
is returned only where a listing that was just made shows the ETag that its record was read with.
Rows hold no key. What does not open is never kept: the reason may pass.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from keyturn.errors import CodedError
from keyturn.messages import ProjectStatus, SweepStatus
from keyturn_workers.keyring import Keyring, Mark
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.pace import BATCH, Pace
from keyturn_workers.status.records import Record, open_record
from keyturn_workers.status.rows import (
    Sweep,
    project_status,
    unreadable_project,
)
from keyturn_workers.storage import Storage

MAX_KEPT: Final = 30_000
# Records are read whole, and some are large.
_MAX_BYTES_AT_ONCE: Final = 32 * 1024**2

_T = TypeVar("_T")
Summary = ProjectStatus | tuple[SweepStatus, ...]
"""What one record says: a keyring one row, a record of sweeps a row for each of its origins."""


class EtagCache(Generic[_T]):
    """Values by S3 key, each with the ETag that it was made from; the least used ones go.

    Args:
        max_kept: The size of all values together.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[str, tuple[str, _T, int]] = OrderedDict()
        self._size = 0

    def get(self, s3_key: str, etag: str) -> _T | None:
        """The value made from exactly this ETag."""
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


class Summaries:
    """Reads rows of records.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        pace: Waits between batches.
        max_kept: How many rows are kept.
    """

    def __init__(
        self, storage: Storage, keys: OperatorKeys, pace: Pace, max_kept: int = MAX_KEPT
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._pace = pace
        self._kept: EtagCache[Summary] = EtagCache(max_kept)
        self._marks: EtagCache[Mark] = EtagCache(max_kept)

    async def read_all(self, records: Sequence[Record]) -> list[Summary | None]:
        """The rows of these records in order, a few read at a time; None for one that is gone.

        The records are keyrings, and records of the sweeps of projects, just listed.

        Raises:
            StorageUnavailableError, StorageAnswerError: not all of them can be read.
        """
        rows = [self._kept.get(each.listed.key, each.listed.etag) for each in records]
        missing = [number for number, row in enumerate(rows) if row is None]
        for batch in read_batches(missing, records):
            await self._pace.next_batch()
            read = await asyncio.gather(*(self.read(records[number]) for number in batch))
            for number, row in zip(batch, read, strict=True):
                rows[number] = row
        return rows

    def mark_of(self, record: Record) -> Mark | None:
        """What a mark would say of a keyring, by the read that its row is of."""
        return self._marks.get(record.listed.key, record.listed.etag)

    async def read(self, record: Record) -> Summary | None:
        """What one record says by a read now; None if it is gone. Errors as `read_all`.

        A record of sweeps that does not open has no row: nothing says which sweeps it had.
        """
        opened = await open_record(self._storage, self._keys, record)
        if opened is None:
            return None
        if isinstance(opened, CodedError):
            if record.sweep_path is None:
                return unreadable_project(record.project, opened)
            return ()
        if isinstance(opened.content, Keyring):
            keyring = opened.content
            summary: Summary = project_status(keyring)
            mark = Mark(keyring.serial, opened.digest, keyring.current.generation)
            self._marks.put(record.listed.key, opened.etag, mark)
        elif opened.content.record is not None:
            of_sweeps = opened.content.record
            summary = tuple(Sweep(of_sweeps, origin).row() for origin in of_sweeps.origins)
        else:
            raise TypeError("a record in the folder of a round")
        size = len(summary) if isinstance(summary, tuple) else 1
        self._kept.put(record.listed.key, opened.etag, summary, max(1, size))
        return summary


def read_batches(numbers: Sequence[int], records: Sequence[Record]) -> Iterator[list[int]]:
    """The numbers of records to read at once: few, and not too many bytes of them."""
    batch: list[int] = []
    size_bytes = 0
    for number in numbers:
        size_bytes += records[number].listed.size_bytes
        if batch and (len(batch) == BATCH or size_bytes > _MAX_BYTES_AT_ONCE):
            yield batch
            batch, size_bytes = [], records[number].listed.size_bytes
        batch.append(number)
    if batch:
        yield batch
