"""The configured bucket for one command: opening it, counting and reading it in batches."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from keyturn.settings import S3Settings
from keyturn_workers.cli.endpoints import naming_storage
from keyturn_workers.storage import Storage

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage

_T = TypeVar("_T")


@asynccontextmanager
async def open_bucket(
    settings: S3Settings, *, max_connections: int = 16
) -> AsyncIterator["S3Storage"]:
    """The bucket while the command runs; errors as `storage.s3.open_storage`.

    If the storage does not answer, the error includes its address.
    """
    # Half a second of imports that `keyturn keygen` and `keyturn --help` do without.
    from keyturn_workers.storage.s3 import open_storage  # noqa: PLC0415
    from keyturn_workers.storage.vendor_errors import explaining_tls  # noqa: PLC0415  # as above

    with naming_storage(settings):
        async with (
            explaining_tls(settings),
            open_storage(settings, max_connections=max_connections) as storage,
        ):
            yield storage


async def count_objects(storage: Storage, project: str) -> int:
    """How many objects a project has, by listing them."""
    return await count(storage.list(f"{project}/"))


async def count(items: AsyncIterator[object]) -> int:
    """How many items there are."""
    number = 0
    async for _ in items:
        number += 1
    return number


async def batched(items: AsyncIterator[_T], size: int) -> AsyncIterator[list[_T]]:
    """The items in lists of `size`; the last one may be shorter."""
    batch: list[_T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@asynccontextmanager
async def optional_task(
    work: Callable[[], Coroutine[Any, Any, object]] | None,
) -> AsyncIterator[None]:
    """Run `work`, if any, in the background and cancel it at the end; its failure is ignored."""
    if work is None:
        yield
        return
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
