"""Sweeping staging of what nobody came for (SPEC 6.4).

A staged body goes once its upload is stored. What stays behind (a publisher that died
before it published, a refused upload) is swept after the longest age of a request and
some grace: no request that could still be served names it then. The same goes for
multipart uploads that nobody completed.
"""

import asyncio
import random
from datetime import datetime, timedelta

import structlog

from contracts.errors import StorageUnavailableError
from contracts.names import STAGING_PREFIX
from workers.errors import StorageAnswerError
from workers.storage import Storage

_log = structlog.get_logger()


async def sweep_staging(
    storage: Storage, *, older_than: timedelta, now: datetime
) -> tuple[int, int]:
    """Delete staged bodies, and abort multipart uploads, older than that.

    `now` is this machine's clock; ages are counted in days, so its drift does not matter.
    Gives how many bodies and how many multipart uploads went.
    """
    bodies = uploads = 0
    async for body in storage.list(STAGING_PREFIX):
        if now - body.last_modified > older_than:
            await storage.delete(body.key)
            bodies += 1
    async for upload in storage.open_multiparts(""):
        if now - upload.initiated > older_than:
            await storage.abort_multipart(upload.key, upload.upload_id)
            uploads += 1
    return bodies, uploads


async def keep_sweeping(storage: Storage, *, older_than: timedelta, interval_s: float) -> None:
    """Sweep staging for ever, a little out of step with other workers."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        try:
            bodies, uploads = await sweep_staging(
                storage, older_than=older_than, now=datetime.now().astimezone()
            )
        except (StorageUnavailableError, StorageAnswerError) as exc:
            _log.warning("staging not swept", problem=type(exc).__name__)
            continue
        if bodies or uploads:
            _log.info("staging swept", bodies=bodies, multipart_uploads=uploads)
