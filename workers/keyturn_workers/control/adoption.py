"""Adoption of objects under a prefix whose keyring is gone (SPEC 5.4).

Every object counts, whatever its name: one that SPEC 1 does not allow may still be wrapped at the
highest generation.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from keyturn.errors import PermanentError, StorageUnavailableError
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.key_usage import find_key_usage
from keyturn_workers.storage import Storage

_BATCH_SIZE: Final = 64


async def find_highest_generation(
    storage: Storage, project: str, operator_keys: OperatorKeys
) -> int | None:
    """The highest generation whose admin wrap opens under the project's prefix.

    0 if there are objects and none opens; None if there are no objects.
    """
    highest: int | None = None
    batch: list[str] = []
    async for row in storage.list(f"{project}/"):
        batch.append(row.key)
        if len(batch) == _BATCH_SIZE:
            highest = max(highest or 0, await _highest_of(storage, project, batch, operator_keys))
            batch = []
    if batch:
        highest = max(highest or 0, await _highest_of(storage, project, batch, operator_keys))
    return highest


async def _highest_of(
    storage: Storage, project: str, s3_keys: Iterable[str], operator_keys: OperatorKeys
) -> int:
    reads = (_generation(storage, project, s3_key, operator_keys) for s3_key in s3_keys)
    return max(await asyncio.gather(*reads), default=0)


async def _generation(
    storage: Storage, project: str, s3_key: str, operator_keys: OperatorKeys
) -> int:
    object_key = s3_key.removeprefix(f"{project}/")
    try:
        head = await storage.head(s3_key)
    except MissingError as exc:
        # A later listing decides whether it was removed (SPEC 8.6).
        raise StorageUnavailableError("an object to adopt was listed but was not found") from exc
    except RefusedError as exc:
        # It could be the one at the highest generation: do not skip it.
        raise StorageUnavailableError("an object to adopt cannot be read") from exc
    try:
        # Without a keyring, only the label says which generation to try.
        keks = await operator_keys.admin_keks(project)
        usage = find_key_usage(head.metadata, project, object_key, keks, ())
    except PermanentError:
        return 0
    return usage.generation or 0
