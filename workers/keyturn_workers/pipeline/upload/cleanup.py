"""Clean staging of abandoned bodies and multipart uploads (SPEC 6.4).

A staged body is deleted once its upload is stored. A body left by a refused upload, or by a
publisher that died before it published, is deleted after the longest age of a request and some
grace: then no request that could still be served names it. The same holds for multipart uploads
that were never completed.
"""

import random
from collections.abc import Awaitable
from datetime import datetime, timedelta

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import OWN_PREFIX, STAGING_PREFIX, is_project, keyring_s3_key
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.process.background import repeat
from keyturn_workers.storage.probe.runner import PREFIX as DOCTOR_PREFIX

_log = structlog.get_logger()


async def clean_staging(
    storage: Storage, *, older_than: timedelta, now: datetime
) -> tuple[int, int]:
    """Delete older staged bodies and abort older multipart uploads; return the number of each.

    `now` is by this machine's clock; ages are counted in days, so its drift does not matter.
    """
    deleted = aborted = 0
    for prefix in (STAGING_PREFIX, DOCTOR_PREFIX):
        async for body in storage.list(prefix):
            if now - body.last_modified > older_than:
                deleted += await _try_to_remove(storage.delete(body.key))
    enrolled: dict[str, bool] = {}
    async for upload in storage.list_multipart_uploads(""):
        if now - upload.initiated > older_than and await _may_be_keyturns(
            upload.key, storage, enrolled
        ):
            aborted += await _try_to_remove(storage.abort_multipart(upload.key, upload.upload_id))
    return deleted, aborted


async def _may_be_keyturns(s3_key: str, storage: Storage, enrolled: dict[str, bool]) -> bool:
    """Check if Keyturn could have begun a multipart upload at this key.

    Outside `.keyturn/` and the projects that have a keyring, the bucket may belong to another
    application (SPEC 10), whatever its keys look like. `enrolled` caches the answers.
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
    except (StorageUnavailableError, StorageResponseError) as exc:
        _log.warning(
            "staging cleanup skipped a project", project=project, problem=type(exc).__name__
        )
        return False
    return True


async def _try_to_remove(removal: Awaitable[None]) -> bool:
    """Return True if the removal succeeded; a failure does not stop the others."""
    try:
        await removal
    except (StorageUnavailableError, StorageResponseError) as exc:
        _log.warning("staging cleanup failed to remove an item", problem=type(exc).__name__)
        return False
    return True


async def clean_staging_periodically(
    storage: Storage, *, older_than: timedelta, interval_s: float
) -> None:
    """Clean staging at intervals, with jitter so that workers do not run in step."""

    async def clean() -> None:
        try:
            deleted, aborted = await clean_staging(
                storage, older_than=older_than, now=datetime.now().astimezone()
            )
        except Exception as exc:  # noqa: BLE001  # any failure: the next round retries
            _log.warning("staging cleanup failed", problem=type(exc).__name__)
            return
        if deleted or aborted:
            _log.info("staging cleaned", bodies=deleted, multipart_uploads=aborted)

    def pause_s() -> float:
        return interval_s * random.uniform(0.5, 1.5)  # noqa: S311  # no secret

    await repeat(clean, pause_s, pause_first=True)
