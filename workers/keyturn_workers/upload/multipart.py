"""A large body as a multipart upload, if the backend supports conditional completion (SPEC 7.2).

`keyturn_workers.storage.multipart` aborts an upload that fails. If the worker was killed, the
delivery that stores the object aborts the upload (`abort_leftovers`), or else the cleanup of
staging.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage import Part, Storage
from keyturn_workers.storage.multipart import abort_multipart

_MAX_PARTS: Final = 10_000
_PARTS_IN_FLIGHT: Final = 3

_log = structlog.get_logger()


def part_size(size_bytes: int, wanted_bytes: int) -> int:
    """The size of a part in bytes: as wanted, or larger if 10,000 parts need it."""
    return max(wanted_bytes, math.ceil(size_bytes / _MAX_PARTS))


async def abort_leftovers(storage: Storage, s3_key: str) -> None:
    """Abort what earlier deliveries left open at this key, once its object exists.

    Never earlier: another delivery or another upload may be sending parts there, and must not
    lose them while it can still win the key. What fails here is left to the cleanup of staging.
    """
    try:
        async for leftover in storage.list_multipart_uploads(s3_key):
            if leftover.key == s3_key:
                await abort_multipart(storage, s3_key, leftover.upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart uploads not listed", s3_key=s3_key, problem=type(exc).__name__)


async def put_parts(
    storage: Storage, s3_key: str, upload_id: str, parts: AsyncIterator[bytes]
) -> list[Part]:
    """Put parts, a few at a time; returns them in order."""
    done: list[Part] = []
    in_flight: set[asyncio.Task[Part]] = set()
    number = 0
    try:
        async for body in parts:
            number += 1
            if len(in_flight) == _PARTS_IN_FLIGHT:
                in_flight = await _first_done(in_flight, done)
            put = storage.upload_part(s3_key, upload_id, number, body)
            in_flight.add(asyncio.ensure_future(put))
        while in_flight:
            in_flight = await _first_done(in_flight, done)
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
    return sorted(done, key=lambda part: part.number)


async def _first_done(
    in_flight: set[asyncio.Task[Part]], done: list[Part]
) -> set[asyncio.Task[Part]]:
    ready, waiting = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
    done.extend(task.result() for task in ready)
    return waiting
