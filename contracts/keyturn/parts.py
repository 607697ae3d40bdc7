"""The parts of a multipart upload: a body cut into them, and a few of them sent at a time."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Final, TypeVar

from keyturn.tasks import task_group

MAX_PARTS: Final = 10_000  # S3's own limit
_Part = TypeVar("_Part")
_Sent = TypeVar("_Sent")


def part_size(size_bytes: int, wanted_bytes: int) -> int:
    """Return the size of a part in bytes: as wanted, or larger if 10,000 parts need it."""
    return max(wanted_bytes, math.ceil(size_bytes / MAX_PARTS))


async def split_into_parts(
    pieces: AsyncIterable[bytes], part_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield the same bytes in parts of exactly `part_bytes`; the last part may be shorter."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        while len(buffer) >= part_bytes:
            yield bytes(memoryview(buffer)[:part_bytes])
            del buffer[:part_bytes]
    if buffer:
        yield bytes(buffer)


async def send_parts(
    parts: AsyncIterable[_Part],
    send: Callable[[int, _Part], Awaitable[_Sent]],
    *,
    at_once: int,
) -> list[_Sent]:
    """Send parts, numbered from 1, and return the results in order.

    Memory holds the parts in flight and the next one. The first error, of a part or of their
    source, cancels the rest; none is in flight when it is raised.
    """
    slots = asyncio.Semaphore(at_once)

    async def send_one(number: int, part: _Part) -> _Sent:
        try:
            return await send(number, part)
        finally:
            slots.release()

    tasks: list[asyncio.Task[_Sent]] = []
    async with task_group() as group:
        async for part in parts:
            await slots.acquire()
            tasks.append(group.create_task(send_one(len(tasks) + 1, part)))
    return [task.result() for task in tasks]
