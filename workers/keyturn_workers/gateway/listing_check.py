"""Detects what the gateway must know about the bucket (SPEC 8.4, 10).

Whether listings show overwrites, so that they can be used to renew keyrings; whether keys are
paths, so that a key with a backslash would be read as another one; and the order of listings.

Workers know it from their probe. The gateway's credentials may write only to its own staging
folder, so it tests that folder, in the background. Until the result is known, keyrings are read
one by one.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import STAGING_PREFIX, path_order
from keyturn_workers.errors import PreconditionError, StorageAnswerError
from keyturn_workers.storage import Capabilities, Headers, IfAbsent, Storage
from keyturn_workers.storage.probe.key_checks import find_order
from keyturn_workers.storage.probe.request_checks import overwritten_in_listing

_RETRY_S: Final = 30.0

_log = structlog.get_logger()


async def detect_listing_support(
    storage: Storage, publisher: str, *, retry_s: float = _RETRY_S
) -> None:
    """Test until the storage responds, and set the result in its `capabilities`."""
    while True:
        try:
            found = await _test(storage, f"{STAGING_PREFIX}{publisher}/doctor-")
        except StorageUnavailableError:
            await asyncio.sleep(retry_s)
            continue
        except StorageAnswerError as exc:
            _log.warning("keyrings are read one by one", problem=type(exc).__name__)
            return
        storage.capabilities = found
        return


async def _test(storage: Storage, prefix: str) -> Capabilities:
    """The storage's capabilities with those that a gateway needs."""
    folder = f"{prefix}{secrets.token_hex(8)}"
    try:
        shown = await overwritten_in_listing(storage, f"{folder}/overwrites")
        paths = await _takes_backslash_for_slash(storage, f"{folder}/paths")
        order = await find_order(storage, f"{folder}/order")
        return replace(
            storage.capabilities,
            listings_show_overwrites=shown.ok,
            keys_are_paths=paths,
            lists_by_path=order is path_order,
        )
    finally:
        # What cannot be deleted is swept with old staged bodies.
        with contextlib.suppress(StorageUnavailableError, StorageAnswerError):
            async for left in storage.list(f"{folder}/"):
                await storage.delete(left.key)


async def _takes_backslash_for_slash(storage: Storage, folder: str) -> bool:
    """Whether an object is in the way of one with a backslash for a slash in its key."""
    await storage.put(f"{folder}/a/b", b"", Headers({}))
    try:
        await storage.put(f"{folder}/a\\b", b"", Headers({}), condition=IfAbsent())
    except PreconditionError:
        return True
    return False


@contextlib.asynccontextmanager
async def listing_detection(storage: Storage, publisher: str) -> AsyncIterator[None]:
    """Run `detect_listing_support` in the background for the duration of the block."""
    task = asyncio.create_task(detect_listing_support(storage, publisher))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
