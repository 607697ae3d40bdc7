"""Copying a large object onto itself in parts, under new metadata (SPEC 8.2, 8.4).

Nothing is fenced before the completion: parts are not an object. So keyring and object are
checked again right before it, and only the completion carries a lease. It never completes over
anything but the object that its parts were copied from.
"""

import asyncio
import math
from typing import Final

from keyturn_workers.keyring import KeyringReader
from keyturn_workers.objects.guards import ObjectWrite, check_unchanged, recheck_state
from keyturn_workers.storage import IfMatch, Part, Storage
from keyturn_workers.storage.multipart import open_multipart

_MIN_PART_BYTES: Final = 5 * 1024**2
_MAX_PART_BYTES: Final = 1024**3
_MAX_PARTS: Final = 10_000
_PARTS_IN_FLIGHT: Final = 4


def part_ranges(size_bytes: int, copy_limit_bytes: int) -> list[tuple[int, int]]:
    """First and last byte (both included) of each part of a copy."""
    wanted_bytes = max(_MIN_PART_BYTES, min(copy_limit_bytes, _MAX_PART_BYTES))
    part_bytes = max(wanted_bytes, math.ceil(size_bytes / _MAX_PARTS))
    return [
        (first, min(first + part_bytes, size_bytes) - 1)
        for first in range(0, size_bytes, part_bytes)
    ]


async def copy_in_parts(
    storage: Storage, keyrings: KeyringReader, write: ObjectWrite, *, copy_limit_bytes: int
) -> None:
    """Replace a large object's metadata.

    Raises:
        PreconditionError: the desired state or the object changed: read both again.
        MissingError: the object, or the upload's parts, are gone: read again.
        RefusedError: the completion came after its lease.
    """
    s3_key, head = write.s3_key, write.head
    ranges = part_ranges(head.size_bytes, copy_limit_bytes)
    async with open_multipart(storage, s3_key, write.headers) as upload_id:
        parts = await _copy_parts(storage, s3_key, upload_id, ranges, head.etag)
        now = await recheck_state(keyrings, write.snapshot)
        # The order matters. A tombstone put before this check is seen by it. One put after it
        # is put after the lease began, so its delete waits for the completion before it is
        # published (SPEC 8.7). Otherwise the parts, copied long ago, would bring back a
        # deleted object.
        await check_unchanged(storage, s3_key, head)
        is_conditional = storage.capabilities.conditional_completion
        condition = IfMatch(head.etag) if is_conditional else None
        await storage.complete_multipart(
            s3_key, upload_id, parts, condition=condition, lease=now.lease
        )


async def _copy_parts(
    storage: Storage, s3_key: str, upload_id: str, ranges: list[tuple[int, int]], source_etag: str
) -> list[Part]:
    slots = asyncio.Semaphore(_PARTS_IN_FLIGHT)

    async def copy(number: int, first: int, last: int) -> Part:
        async with slots:
            return await storage.copy_part(
                s3_key, upload_id, number, first=first, last=last, source_etag=source_etag
            )

    copies = [asyncio.ensure_future(copy(n, *span)) for n, span in enumerate(ranges, start=1)]
    try:
        return await asyncio.gather(*copies)
    finally:
        # One failed, or this was canceled: no part may be in flight when the upload is aborted.
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
