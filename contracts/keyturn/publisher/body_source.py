"""A body in any form that a caller may have, as a stream of small blocks. No cryptography.

It must never hold more of a body than one block, and never block the event loop: files are read
in a thread.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Final

BLOCK_BYTES: Final = 1024 * 1024
Bytes = bytes | bytearray | memoryview
Body = Bytes | Path | BinaryIO | AsyncIterable[bytes]


async def blocks(body: Body) -> AsyncGenerator[memoryview, None]:
    """The body's bytes in order, at most 1 MiB at a time, never an empty block.

    Raises:
        TypeError: not a `Body`, or a source that yields anything but bytes.
        OSError: a file cannot be read.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        for block in _cut(body):
            yield block
    elif isinstance(body, Path):
        file = await asyncio.to_thread(body.open, "rb")
        try:
            async with aclosing(_file_blocks(file)) as read:
                async for block in read:
                    yield block
        finally:
            await asyncio.to_thread(file.close)
    elif isinstance(body, AsyncIterable):
        async for piece in body:
            for block in _cut(piece):
                yield block
    elif callable(getattr(body, "read", None)):
        async with aclosing(_file_blocks(body)) as read:
            async for block in read:
                yield block
    else:
        raise TypeError(f"a body cannot be a {type(body).__name__}")


async def _file_blocks(file: BinaryIO) -> AsyncGenerator[memoryview, None]:
    while piece := await asyncio.to_thread(file.read, BLOCK_BYTES):
        for block in _cut(piece):
            yield block


def _cut(piece: object) -> list[memoryview]:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(f"a body consists of bytes, not of {type(piece).__name__}")
    view = memoryview(piece).cast("B")
    return [view[start : start + BLOCK_BYTES] for start in range(0, len(view), BLOCK_BYTES)]


async def head(source: AsyncIterator[memoryview], limit_bytes: int) -> tuple[bytearray, bool]:
    """The beginning of the source, and whether that is all of it.

    If the source holds more than `limit_bytes`, up to one block more than that is returned.
    """
    gathered = bytearray()
    async for block in source:
        gathered += block
        if len(gathered) > limit_bytes:
            return gathered, False
    return gathered, True
