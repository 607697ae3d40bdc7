"""Check every object of one project with one key (SPEC 15.2).

The project is listed once, with its versions where the bucket keeps them. Each object is read by
one ranged GET of its header. A few are read at once, so memory is bounded, however many there are.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import ArchivedObjectError, NotFoundError, StorageUnavailableError
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.storage import Storage
from keyturn_workers.verify.object_check import ObjectCheck, VerificationKeys, check_object
from keyturn_workers.verify.report import Report

DEFAULT_CONCURRENCY: Final = 32


@dataclass(frozen=True, slots=True)
class Listed:
    """An object, or a version: the latest one has no `version_id` here."""

    s3_key: str
    version_id: str | None = None


async def check_project(
    storage: Storage,
    keys: VerificationKeys,
    report: Report,
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_checked: Callable[[], object] = lambda: None,
) -> None:
    """Add the outcome of each object, and of each noncurrent version, to the report.

    Args:
        storage: The bucket; only read.
        keys: What to open the objects with.
        report: Where the outcomes are counted.
        concurrency: How many objects to read at once.
        on_checked: Called after each object.

    Raises:
        StorageUnavailableError, StorageAnswerError: the check would be incomplete.
    """
    async with aclosing(_list(storage, f"{keys.project}/")) as listing:
        rows = aiter(listing)
        turn = asyncio.Lock()  # a generator runs one step at a time
        must_be_gone = report.expectation == "gone"

        async def check_rows() -> None:
            while (row := await _next(rows, turn)) is not None:
                check = await _check(storage, keys, row, must_be_gone=must_be_gone)
                report.add(row.s3_key, row.version_id, check)
                on_checked()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(check_rows())
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from exc


async def _next(rows: AsyncIterator[Listed], turn: asyncio.Lock) -> Listed | None:
    async with turn:
        return await anext(rows, None)


async def _list(storage: Storage, prefix: str) -> AsyncGenerator[Listed]:
    if not await storage.versioning():
        async for listed in storage.list(prefix):
            yield Listed(listed.key)
        return
    async for version in storage.list_versions(prefix):
        if not version.is_delete_marker:
            yield Listed(version.key, None if version.is_latest else version.version_id)


async def _check(
    storage: Storage, keys: VerificationKeys, row: Listed, *, must_be_gone: bool
) -> ObjectCheck:
    header: bytes | None
    object_key = row.s3_key.removeprefix(f"{keys.project}/")
    try:
        head, header = await storage.read_start(row.s3_key, HEADER_BYTES, version_id=row.version_id)
    except MissingError:
        # Keyturn's own deletes leave a tombstone, so this object was removed by another writer.
        gone = NotFoundError("it was listed, and the storage answers that it does not exist")
        return ObjectCheck.refused("unreadable", gone)
    except ArchivedError as exc:
        if row.version_id is not None:  # its metadata comes only with its bytes
            return ObjectCheck.refused("unreadable", ArchivedObjectError(str(exc)))
        head = await storage.head(row.s3_key)
        header = None if head.size_bytes else b""
    except StorageAnswerError as exc:
        return ObjectCheck.refused("unreadable", StorageUnavailableError(str(exc)))
    return check_object(head.metadata, header, object_key, keys, must_be_gone=must_be_gone)
