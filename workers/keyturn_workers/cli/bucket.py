"""The configured bucket for one command, and the addresses in its errors.

An address is shown without its secret parts: user, password, query.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.cli.settings import BrokerSettings
from keyturn_workers.core.errors import first_error
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.process.settings import redacted
from keyturn_workers.storage.setting_hints import with_setting

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage


def broker_endpoint() -> str | None:
    """Return the broker in this command's settings; None without one."""
    try:
        url = BrokerSettings.read().amqp_url
    except SettingsError:
        return None
    return None if url is None else redacted(url.get_secret_value())


def storage_endpoint(settings: S3Settings) -> str:
    """Return the storage and the bucket."""
    if settings.s3_endpoint_url is None:
        return f"AWS, region {settings.s3_region}, bucket {settings.s3_bucket}"
    return f"{redacted(settings.s3_endpoint_url)}, bucket {settings.s3_bucket}"


@contextmanager
def naming_storage(settings: S3Settings) -> Iterator[None]:
    """Add the endpoint to an error of a storage that does not respond.

    Raises:
        StorageUnavailableError: as within, its detail followed by the endpoint.
    """
    try:
        yield
    except (StorageUnavailableError, BaseExceptionGroup) as exc:
        first = first_error(exc)
        if not isinstance(first, StorageUnavailableError):
            raise
        where = f"(the storage at {storage_endpoint(settings)})"
        raise StorageUnavailableError(f"{with_setting(first.detail)} {where}".strip()) from exc


@asynccontextmanager
async def open_bucket(
    settings: S3Settings, *, max_connections: int = 16
) -> AsyncIterator["S3Storage"]:
    """Yield the bucket; errors as `storage.s3.open_storage`.

    If the storage does not respond, the error includes its address.
    """
    # Half a second of imports that `keyturn keygen` and `keyturn --help` do not need.
    from keyturn_workers.storage.s3 import open_storage  # noqa: PLC0415
    from keyturn_workers.storage.vendor_errors import explaining_tls  # noqa: PLC0415  # as above

    with naming_storage(settings):
        async with (
            explaining_tls(settings),
            open_storage(settings, max_connections=max_connections) as storage,
        ):
            yield storage


async def count_objects(storage: Storage, project: str) -> int:
    """Return the number of objects in a project's listing."""
    return await count(storage.list(f"{project}/"))


async def count(items: AsyncIterator[object]) -> int:
    """Return the number of items."""
    number = 0
    async for _ in items:
        number += 1
    return number


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
