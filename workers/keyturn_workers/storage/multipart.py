"""Multipart uploads that leave nothing behind unless they are completed (SPEC 7.2).

The upload of a killed worker is aborted by what follows it: the delivery that stores the upload,
the next attempt of a copy, or the cleanup of staging.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage.port import Headers, Storage

_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def open_multipart(storage: Storage, s3_key: str, headers: Headers) -> AsyncIterator[str]:
    """Create a multipart upload, and abort it if the block raises. Yields its id."""
    upload_id = await storage.create_multipart(s3_key, headers)
    try:
        yield upload_id
    except BaseException:
        # Shielded: a cancelled upload must not leave its parts behind either.
        await asyncio.shield(abort_multipart(storage, s3_key, upload_id))
        raise


async def abort_multipart(storage: Storage, s3_key: str, upload_id: str) -> None:
    """Abort one upload. A failure is only logged: a later cleanup repeats it."""
    try:
        await storage.abort_multipart(s3_key, upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart upload not aborted", s3_key=s3_key, problem=type(exc).__name__)
