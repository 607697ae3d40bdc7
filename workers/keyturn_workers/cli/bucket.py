"""Opening the configured bucket for one command."""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from keyturn.settings import S3Settings
from keyturn_workers.cli.endpoints import naming_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.s3 import S3Storage


@asynccontextmanager
async def open_bucket(
    settings: S3Settings, *, max_connections: int = 16
) -> "AsyncIterator[S3Storage]":
    """The bucket, for as long as the command lasts; errors as `storage.s3.open_storage`.

    One that does not answer is told with its address.
    """
    # Half a second of imports that `keyturn keygen` and `keyturn --help` do without.
    from keyturn_workers.storage.s3 import open_storage  # noqa: PLC0415

    with naming_storage(settings):
        async with open_storage(settings, max_connections=max_connections) as storage:
            yield storage
