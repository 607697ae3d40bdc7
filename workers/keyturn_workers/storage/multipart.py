"""A multipart upload that leaves nothing behind where it does not end in an object (SPEC 7.2).

One whose worker was killed is aborted by what comes after it: the delivery that stores the
upload, the next try of a copy, the sweep of staging.
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
async def multipart(storage: Storage, s3_key: str, headers: Headers) -> AsyncIterator[str]:
    """A multipart upload that is aborted where the block does not end well."""
    upload_id = await storage.create_multipart(s3_key, headers)
    try:
        yield upload_id
    except BaseException:
        # Shielded: a cancelled upload must not leave its parts behind either.
        await asyncio.shield(abort(storage, s3_key, upload_id))
        raise


async def abort(storage: Storage, s3_key: str, upload_id: str) -> None:
    """Abort one upload; what fails here is swept up later."""
    try:
        await storage.abort_multipart(s3_key, upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart upload not aborted", s3_key=s3_key, problem=type(exc).__name__)
