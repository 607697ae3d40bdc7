"""A large body as a multipart upload, where the backend's completion honours conditions (SPEC 7.2).

An upload that does not end in an object is aborted, whatever ended it
(`keyturn_workers.storage.multipart`). One whose worker was killed is aborted by the delivery that
stores the object (`abort_leftovers`), and by the sweep of staging where none does.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage import Part, Storage
from keyturn_workers.storage.multipart import abort

_MAX_PARTS: Final = 10_000
_PARTS_IN_FLIGHT: Final = 3

_log = structlog.get_logger()


def part_size(size_bytes: int, wished_bytes: int) -> int:
    """The size of a part: as wished, or what 10,000 parts need."""
    return max(wished_bytes, math.ceil(size_bytes / _MAX_PARTS))


async def abort_leftovers(storage: Storage, s3_key: str) -> None:
    """Abort what earlier deliveries left open at this key, once its object exists.

    Never before: another delivery, or another upload, may have parts under way there, and must
    not lose them before the key is taken. Afterwards neither can get it. What fails here is
    swept up later: the object exists all the same.
    """
    try:
        async for left in storage.list_multipart_uploads(s3_key):
            if left.key == s3_key:
                await abort(storage, s3_key, left.upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart uploads not listed", s3_key=s3_key, problem=type(exc).__name__)


async def put_parts(
    storage: Storage, s3_key: str, upload_id: str, parts: AsyncIterator[bytes]
) -> list[Part]:
    """Put parts, a few at a time; the list is in their order."""
    done: list[Part] = []
    under_way: set[asyncio.Task[Part]] = set()
    number = 0
    try:
        async for body in parts:
            number += 1
            if len(under_way) == _PARTS_IN_FLIGHT:
                under_way = await _first_done(under_way, done)
            put = storage.upload_part(s3_key, upload_id, number, body)
            under_way.add(asyncio.ensure_future(put))
        while under_way:
            under_way = await _first_done(under_way, done)
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    return sorted(done, key=lambda part: part.number)


async def _first_done(
    under_way: set[asyncio.Task[Part]], done: list[Part]
) -> set[asyncio.Task[Part]]:
    ready, waiting = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    done.extend(task.result() for task in ready)
    return waiting
