"""Multipart uploads that are aborted if something fails, over the storage's port (SPEC 8.4)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers

_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def open_multipart(storage: Storage, s3_key: str, headers: Headers) -> AsyncIterator[str]:
    """Create a multipart upload, and abort it if the block raises. Yields its id."""
    upload_id = await storage.create_multipart(s3_key, headers)
    try:
        yield upload_id
    except BaseException:
        # Shielded: a canceled upload must not leave its parts behind either.
        await asyncio.shield(abort_multipart(storage, s3_key, upload_id))
        raise


async def abort_multipart(storage: Storage, s3_key: str, upload_id: str) -> None:
    """Abort one upload. A failure is only logged: a later cleanup repeats it."""
    try:
        await storage.abort_multipart(s3_key, upload_id)
    except (StorageUnavailableError, StorageResponseError) as exc:
        _log.warning("multipart upload not aborted", s3_key=s3_key, problem=type(exc).__name__)
