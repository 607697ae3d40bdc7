"""A short range is fetched while the size is verified, and yielded only after that (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    seal,
)
from keyturn.errors import CorruptObjectError, StorageUnavailableError
from keyturn_workers.gateway.encrypted_reader import EncryptedReader
from keyturn_workers.gateway.object_opener import START_BYTES
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import Headers
from keyturn_workers.testing.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage import ObjectStream

KEY = "acme/k"
DEK = bytes(32)
PLAINTEXT = os.urandom(40 * CHUNK_BYTES + 5)
MIDDLE = 20 * CHUNK_BYTES


class WatchedStorage(MemoryStorage):
    """Counts open reads, and delays them until `together` are open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int | None]] = []
        self.together = 1
        self._open = 0
        self._enough = asyncio.Event()
        self.fails_at: int | None = None

    @asynccontextmanager
    async def stream(self, key: str, **asked: Any) -> AsyncIterator[ObjectStream]:
        self.asked.append((asked["start"], asked["length_bytes"]))
        self._open += 1
        if self._open >= self.together:
            self._enough.set()
        try:
            await self._enough.wait()
            if asked["start"] == self.fails_at:
                raise StorageUnavailableError("stream: gone")
            async with super().stream(key, **asked) as stream:
                yield stream
        finally:
            self._open -= 1


async def _sealed(
    storage: WatchedStorage, *, sealed: bytes = b"", start_bytes: int = 0
) -> EncryptedReader:
    body = sealed or seal(DEK, BODY_CONTEXT, PLAINTEXT)
    await storage.put(KEY, body, Headers({}))
    head, start = await storage.read_start(KEY, start_bytes or HEADER_BYTES)
    reader = ChunkReader(DEK, BODY_CONTEXT, start[:HEADER_BYTES])
    return EncryptedReader(storage, KEY, head, start, reader, len(PLAINTEXT))


async def _read(reader: EncryptedReader, span: Span) -> bytes:
    return b"".join([bytes(piece) async for piece in reader.read_range(span)])


async def test_a_short_range_is_fetched_while_the_size_is_verified() -> None:
    """Neither waits for the other, and the range is not read again."""
    storage = WatchedStorage()
    storage.together = 2
    reader = await _sealed(storage)
    span = Span(MIDDLE, MIDDLE + 1)
    async with asyncio.timeout(10):
        await reader.verify(span)
    assert await _read(reader, span) == PLAINTEXT[MIDDLE : MIDDLE + 1]
    offset = HEADER_BYTES + 20 * SEALED_CHUNK_BYTES
    assert (offset, SEALED_CHUNK_BYTES) in storage.asked
    assert len(storage.asked) == 2


@pytest.mark.parametrize("start_bytes", [HEADER_BYTES, START_BYTES])
@pytest.mark.parametrize(
    "span",
    [
        Span(0, 1),
        Span(0, 3 * CHUNK_BYTES),
        Span(CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        Span(MIDDLE + 7, MIDDLE + 16 * CHUNK_BYTES),
        Span(MIDDLE + 7, MIDDLE + 17 * CHUNK_BYTES),
        Span(39 * CHUNK_BYTES, len(PLAINTEXT)),
        Span(40 * CHUNK_BYTES, len(PLAINTEXT)),
        Span(0, len(PLAINTEXT)),
    ],
)
async def test_every_prefetched_range_is_its_bytes(span: Span, start_bytes: int) -> None:
    reader = await _sealed(WatchedStorage(), start_bytes=start_bytes)
    await reader.verify(span)
    assert await _read(reader, span) == PLAINTEXT[span.first : span.end]


async def test_a_prefetched_range_is_not_used_for_another_one() -> None:
    """Another range of the same object is fetched."""
    reader = await _sealed(WatchedStorage())
    await reader.verify(Span(MIDDLE, MIDDLE + 1))
    assert await _read(reader, Span(CHUNK_BYTES, CHUNK_BYTES + 9)) == PLAINTEXT[CHUNK_BYTES:][:9]


async def test_a_long_range_is_not_prefetched() -> None:
    """It would be in memory as a whole."""
    storage = WatchedStorage()
    reader = await _sealed(storage)
    await reader.verify(Span(0, 17 * CHUNK_BYTES))
    assert len(storage.asked) == 1


async def test_nothing_of_an_unverified_object_is_yielded() -> None:
    """The prefetched range is authentic by itself; the object is refused all the same."""
    body = bytearray(seal(DEK, BODY_CONTEXT, PLAINTEXT))
    body[-1] ^= 1
    reader = await _sealed(WatchedStorage(), sealed=bytes(body))
    span = Span(MIDDLE, MIDDLE + 1)
    with pytest.raises(CorruptObjectError):
        await reader.verify(span)
    with pytest.raises(RuntimeError):
        await _read(reader, span)


async def test_a_prefetched_chunk_is_authenticated_like_any_other() -> None:
    body = bytearray(seal(DEK, BODY_CONTEXT, PLAINTEXT))
    body[HEADER_BYTES + 20 * SEALED_CHUNK_BYTES] ^= 1
    reader = await _sealed(WatchedStorage(), sealed=bytes(body))
    span = Span(MIDDLE, MIDDLE + 1)
    await reader.verify(span)
    with pytest.raises(CorruptObjectError):
        await _read(reader, span)


@pytest.mark.parametrize("index", [20, 40])
async def test_a_failed_read_is_raised_unwrapped(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two fails, the other is cancelled."""
    monkeypatch.setattr("keyturn_workers.gateway.encrypted_reader._RESUMES", 0)
    storage = WatchedStorage()
    storage.together = 2
    storage.fails_at = HEADER_BYTES + index * SEALED_CHUNK_BYTES
    reader = await _sealed(storage)
    with pytest.raises(StorageUnavailableError, match="gone"):
        await reader.verify(Span(MIDDLE, MIDDLE + 1))
    assert asyncio.all_tasks() == {asyncio.current_task()}
