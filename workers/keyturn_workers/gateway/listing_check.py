"""Whether the gateway may renew keyrings by listings (SPEC 8.4), asked of the bucket itself.

Workers learn it from their probe. The gateway's keys may write its own staging folder alone,
so it asks there, beside its first requests: until the answer is there keyrings are read one
by one.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import STAGING_PREFIX
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage import Storage
from keyturn_workers.storage.probe.request_checks import overwritten_in_listing

_AGAIN_S: Final = 30.0

_log = structlog.get_logger()


async def detect_listing_support(
    storage: Storage, publisher: str, *, again_s: float = _AGAIN_S
) -> None:
    """Ask until the storage answers, and note the answer in its `capabilities`."""
    while True:
        try:
            shown = await _asked(storage, f"{STAGING_PREFIX}{publisher}/doctor-")
        except StorageUnavailableError:
            await asyncio.sleep(again_s)
            continue
        except StorageAnswerError as exc:
            _log.warning("keyrings are read one by one", problem=type(exc).__name__)
            return
        storage.capabilities = replace(storage.capabilities, listings_show_overwrites=shown)
        return


async def _asked(storage: Storage, prefix: str) -> bool:
    folder = f"{prefix}{secrets.token_hex(8)}"
    try:
        return (await overwritten_in_listing(storage, folder)).ok
    finally:
        # What stays behind is swept with old staged bodies.
        with contextlib.suppress(StorageUnavailableError, StorageAnswerError):
            async for left in storage.list(f"{folder}/"):
                await storage.delete(left.key)


@contextlib.asynccontextmanager
async def listing_detection(storage: Storage, publisher: str) -> AsyncIterator[None]:
    """The same beside the block, and no longer than it."""
    task = asyncio.create_task(detect_listing_support(storage, publisher))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
