"""Sweeping staging of what nobody came for (SPEC 6.4).

A staged body goes once its upload is stored. What stays behind (a publisher that died
before it published, a refused upload) is swept after the longest age of a request and
some grace: no request that could still be served names it then. The same goes for
multipart uploads that nobody completed.
"""

import asyncio
import random
from collections.abc import Awaitable
from datetime import datetime, timedelta

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import OWN_PREFIX, STAGING_PREFIX, is_project, keyring_s3_key
from keyturn_workers.errors import MissingError, StorageAnswerError
from keyturn_workers.storage import Storage
from keyturn_workers.storage.probe.runner import PREFIX as DOCTOR_PREFIX

_log = structlog.get_logger()


async def clean_staging(
    storage: Storage, *, older_than: timedelta, now: datetime
) -> tuple[int, int]:
    """Delete staged bodies, and abort multipart uploads, older than that.

    `now` is this machine's clock; ages are counted in days, so its drift does not matter.
    Gives how many bodies and how many multipart uploads went.
    """
    bodies = uploads = 0
    for prefix in (STAGING_PREFIX, DOCTOR_PREFIX):
        async for body in storage.list(prefix):
            if now - body.last_modified > older_than:
                bodies += await _went(storage.delete(body.key))
    enrolled: dict[str, bool] = {}
    async for upload in storage.list_multipart_uploads(""):
        if now - upload.initiated > older_than and await _is_ours(upload.key, storage, enrolled):
            uploads += await _went(storage.abort_multipart(upload.key, upload.upload_id))
    return bodies, uploads


async def _is_ours(s3_key: str, storage: Storage, enrolled: dict[str, bool]) -> bool:
    """Whether Keyturn could have begun a multipart upload at this key.

    Outside of `.keyturn/` and of projects that have a keyring the bucket may be another
    application's (SPEC 10), whatever its names look like. `enrolled` remembers the answers.
    """
    if s3_key.startswith(OWN_PREFIX):
        return True
    project = s3_key.partition("/")[0]
    if not is_project(project):
        return False
    if project not in enrolled:
        enrolled[project] = await _has_keyring(project, storage)
    return enrolled[project]


async def _has_keyring(project: str, storage: Storage) -> bool:
    try:
        await storage.read_start(keyring_s3_key(project), 1)
    except MissingError:
        return False
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("not swept", project=project, problem=type(exc).__name__)
        return False
    return True


async def _went(removal: Awaitable[None]) -> bool:
    """Whether it could be removed; one that could not does not keep the others."""
    try:
        await removal
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("not swept", problem=type(exc).__name__)
        return False
    return True


async def clean_staging_periodically(
    storage: Storage, *, older_than: timedelta, interval_s: float
) -> None:
    """Sweep staging for ever, a little out of step with other workers."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        try:
            bodies, uploads = await clean_staging(
                storage, older_than=older_than, now=datetime.now().astimezone()
            )
        except Exception as exc:  # noqa: BLE001  # whatever it was: the next round is an hour away
            _log.warning("staging not swept", problem=type(exc).__name__)
            continue
        if bodies or uploads:
            _log.info("staging swept", bodies=bodies, multipart_uploads=uploads)
