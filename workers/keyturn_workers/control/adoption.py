"""Adoption: objects that stand under a prefix whose keyring is gone (SPEC 5.4).

Every object counts, under whatever name: one that SPEC 1 does not allow may be wrapped at
the highest generation all the same.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from keyturn import metadata as object_metadata
from keyturn.errors import CodedError, StorageUnavailableError
from keyturn.metadata import Wraps
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.unwrap import admin_generation
from keyturn_workers.storage import Storage

_BATCH: Final = 64


async def find_highest_generation(storage: Storage, project: str, keys: OperatorKeys) -> int | None:
    """The highest generation whose admin wrap opens under the project's prefix.

    0 where objects stand and none opens; None where nothing stands.
    """
    highest: int | None = None
    batch: list[str] = []
    async for row in storage.list(f"{project}/"):
        batch.append(row.key)
        if len(batch) == _BATCH:
            highest = max(highest or 0, await _highest(storage, project, batch, keys))
            batch = []
    if batch:
        highest = max(highest or 0, await _highest(storage, project, batch, keys))
    return highest


async def _highest(
    storage: Storage, project: str, s3_keys: Iterable[str], keys: OperatorKeys
) -> int:
    found = await asyncio.gather(*(_of_one(storage, project, at, keys) for at in s3_keys))
    return max(found, default=0)


async def _of_one(storage: Storage, project: str, s3_key: str, keys: OperatorKeys) -> int:
    key = s3_key.removeprefix(f"{project}/")
    try:
        head = await storage.head(s3_key)
    except MissingError as exc:
        # Listed, and not found: a later listing decides whether it was removed (SPEC 8.6).
        raise StorageUnavailableError("an object to adopt was listed and not found") from exc
    except RefusedError as exc:
        # Passed over, it could be the one at the highest generation.
        raise StorageUnavailableError("an object to adopt cannot be read") from exc
    try:
        envelope = object_metadata.parse(head.metadata)
    except CodedError:
        return 0
    if not isinstance(envelope, Wraps):
        return 0
    return admin_generation(envelope, project, key, keys)
