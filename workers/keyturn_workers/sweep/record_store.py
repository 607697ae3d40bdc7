"""Reads and creates any sealed record of a sweep (SPEC 5.1): the base of the two stores.

Each record is sealed and bound to its path. An attacker who can write the bucket can remove a
record, which means that its work is done again, but cannot forge one.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from keyturn.errors import CorruptObjectError
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import sealed_records
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.plan import from_json, to_json

# Small records that are read or deleted concurrently.
_CONCURRENCY: Final = 16

_T = TypeVar("_T")


class RecordStore:
    """Reads and creates the sealed records of sweeps.

    Args:
        storage: The bucket.
        keys: The operator's keys.
    """

    def __init__(self, storage: Storage, keys: OperatorKeys) -> None:
        self._storage = storage
        self._keys = keys

    async def _seal(self, s3_key: str, project: str, value: Any, master_key: str) -> bytes:
        return await sealed_records.build(s3_key, project, master_key, to_json(value), self._keys)

    async def _create_record(self, s3_key: str, project: str, value: Any, master_key: str) -> bool:
        """Create a record; False if one exists."""
        body = await self._seal(s3_key, project, value, master_key)
        return await sealed_records.create(self._storage, s3_key, body)

    async def _read_record(self, s3_key: str, project: str, kind: type[_T]) -> tuple[_T, str, str]:
        """A record, the name of the master key it is sealed under, and its ETag.

        Raises:
            MissingError: there is none.
            CorruptObjectError: a worker did not write it.
            UnknownMasterKeyError: this process lacks the master key.
            KmsUnavailableError: its provider is away.
        """
        head, body = await self._storage.read(s3_key)
        master_key, rest = await sealed_records.parse(body, s3_key, project, self._keys)
        try:
            return from_json(kind, rest), master_key, head.etag
        except ValueError as exc:
            raise CorruptObjectError("the record is not of its kind") from exc

    async def _read_or_delete_forged(self, s3_key: str, project: str, kind: type[_T]) -> _T | None:
        """A record, or None if there is none. A forged one is deleted, and is None as well."""
        try:
            value, _, _ = await self._read_record(s3_key, project, kind)
        except MissingError:
            return None
        except CorruptObjectError:
            await self._storage.delete(s3_key)
            return None
        return value


async def gather_limited(calls: Iterable[Any]) -> list[Any]:
    """The results of these calls in order, a few of them under way at a time."""
    limit = asyncio.Semaphore(_CONCURRENCY)

    async def limited(call: Any) -> Any:
        async with limit:
            return await call

    return await asyncio.gather(*(limited(call) for call in calls))
