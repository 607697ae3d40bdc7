"""Reads an object that is encrypted with Cobblestone-256, chunk by chunk (SPEC 3.1, 4, 9.2).

All reads of one object are bound to the header that was checked when it was opened: chunks of
another body at the same key do not decrypt. So a read can resume on a new connection.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from keyturn.crypto import CHUNK_BYTES, HEADER_BYTES, SEALED_CHUNK_BYTES, ChunkReader
from keyturn.errors import NotFoundError, StorageUnavailableError
from keyturn_workers.errors import MissingError, StorageAnswerError
from keyturn_workers.gateway.object_reader import (
    Piece,
    Pieces,
    commitment_etag,
    seal_errors_as_corrupt,
)
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import ObjectHead, Storage

# A range of up to this many chunks is fetched while the size is verified.
_PREFETCH_CHUNKS: Final = 16
_RESUMES: Final = 3
_RESUME_PAUSES_S: Final = (0.05, 0.3, 1.0)


@dataclass(slots=True)
class EncryptedReader:
    """Decrypts one object whose header commits to the unwrapped DEK.

    Args:
        storage: The bucket.
        s3_key: The object's S3 key.
        head: What the storage says about the object.
        first_bytes: The beginning of the stored body: the header at least.
        chunks: Decrypts the chunks under this header.
        size_bytes: The size of the plaintext, by the stored length.
        stream: The rest of the stream that `first_bytes` came from, if it is still open.
    """

    storage: Storage
    s3_key: str
    head: ObjectHead
    first_bytes: bytes = field(repr=False)
    chunks: ChunkReader = field(repr=False)
    size_bytes: int
    stream: AsyncIterator[bytes] | None = None
    _last_chunk: bytes | None = field(default=None, repr=False)
    _prefetched: list[bytes] = field(default_factory=list, repr=False)
    _prefetched_offset: int = 0

    @property
    def etag(self) -> str:
        """The header's commitment, which no rotation changes."""
        return commitment_etag(self.first_bytes)

    async def verify(self, prefetch: Span | None = None) -> None:
        """Decrypt the last chunk: only that proves the size. See `ObjectReader`.

        The chunks of a short range are fetched at the same time, and decrypted only after the
        last chunk.
        """
        if self._last_chunk is None:
            index = self.size_bytes // CHUNK_BYTES
            offset = _offset(index)
            sealed = self.first_bytes[offset:]
            if len(self.first_bytes) < self.head.size_bytes:
                first, end = (0, 0) if prefetch is None else self._full_chunks(prefetch)
                reads = [self._fetch(offset, self.head.size_bytes)]
                if 0 < end - first <= _PREFETCH_CHUNKS:
                    reads.append(self._fetch(_offset(first), _offset(end)))
                sealed, *self._prefetched = await _gather(reads)
                self._prefetched_offset = _offset(first)
            with seal_errors_as_corrupt():
                self._last_chunk = self.chunks.open_chunk(index, sealed, last=True)

    async def read_range(self, span: Span) -> Pieces:
        """Yield the plaintext of a range of a verified object. See `ObjectReader`."""
        if self._last_chunk is None:
            raise RuntimeError("a range can be read only after verify()")
        last_start = self.size_bytes // CHUNK_BYTES * CHUNK_BYTES
        first, end = self._full_chunks(span)
        at = first * CHUNK_BYTES
        if first < end:
            async with aclosing(self._decrypt(first, end, None)) as opened:
                async for piece in opened:
                    yield memoryview(piece)[max(span.first - at, 0) : span.end - at]
                    at += len(piece)
        if span.end > last_start:
            yield self._last_chunk[max(span.first - last_start, 0) : span.end - last_start]

    async def read_all(self) -> Pieces:
        """Yield the whole plaintext. See `ObjectReader`."""
        held: Piece = b""
        async with aclosing(self._read_all()) as opened:
            async for piece in opened:
                if held:
                    yield held
                held = piece
        yield held

    async def _read_all(self) -> Pieces:
        full = self.size_bytes // CHUNK_BYTES
        last_chunk = bytearray()
        if full:
            async with aclosing(self._decrypt(0, full, last_chunk)) as opened:
                async for piece in opened:
                    yield piece
        else:
            stored = self._stored_bytes(HEADER_BYTES, self.head.size_bytes, self.stream)
            async with aclosing(stored) as sealed:
                async for piece in sealed:
                    last_chunk += piece
        with seal_errors_as_corrupt():
            last = self.chunks.open_chunk(full, last_chunk, last=True)
        if last:
            yield last

    def _full_chunks(self, span: Span) -> tuple[int, int]:
        """Return a range's first chunk and the one after its last, without the object's last."""
        full = self.size_bytes // CHUNK_BYTES
        return span.first // CHUNK_BYTES, min((span.end - 1) // CHUNK_BYTES + 1, full)

    async def _decrypt(self, first: int, end: int, last_chunk: bytearray | None) -> Pieces:
        """Yield the plaintext of full chunks, from `first` to `end` (exclusive).

        If `last_chunk` is given, the stored body is read to its end, from the stream that the
        object was opened with, and what follows these chunks is added to it.
        """
        end_offset = _offset(end) if last_chunk is None else self.head.size_bytes
        stream = None if last_chunk is None else self.stream
        buffer = bytearray()
        at = first
        async with aclosing(self._stored_bytes(_offset(first), end_offset, stream)) as sealed:
            async for piece in sealed:
                buffer += piece
                count = min(len(buffer) // SEALED_CHUNK_BYTES, end - at)
                if count:
                    size_bytes = count * SEALED_CHUNK_BYTES
                    with seal_errors_as_corrupt(), memoryview(buffer) as view:
                        opened = self.chunks.open_chunks(at, view[:size_bytes])
                    at += count
                    del buffer[:size_bytes]
                    yield opened
        if last_chunk is not None:
            last_chunk += buffer

    async def _fetch(self, offset: int, end: int) -> bytes:
        async with aclosing(self._stored_bytes(offset, end, None)) as read:
            return b"".join([piece async for piece in read])

    async def _stored_bytes(
        self, offset: int, end: int, stream: AsyncIterator[bytes] | None
    ) -> Pieces:
        """Yield stored bytes from `offset` to `end`; resume if the connection breaks.

        A new connection may find another body at this key. Its chunks do not decrypt.
        """
        available: Piece = self.first_bytes[offset:end]
        if self._prefetched and offset == self._prefetched_offset:
            available = self._prefetched.pop()
        if available:
            yield available
            offset += len(available)
        failures = 0
        while offset < end:
            began = offset
            try:
                async with aclosing(self._read_once(offset, end, stream)) as read:
                    async for piece in read:
                        offset += len(piece)
                        yield piece
            except StorageUnavailableError:
                # Only failures without progress count: a long download meets more broken
                # connections than a short one.
                failures = 0 if offset > began else failures
                if failures == _RESUMES:
                    raise
                await asyncio.sleep(_RESUME_PAUSES_S[failures])
                failures += 1
            stream = None

    async def _read_once(
        self, offset: int, end: int, stream: AsyncIterator[bytes] | None
    ) -> Pieces:
        """Yield stored bytes from one connection: the open stream, or a new one."""
        try:
            if stream is not None:
                async for piece in stream:
                    offset += len(piece)
                    yield piece
            else:
                opening = self.storage.stream(self.s3_key, start=offset, length_bytes=end - offset)
                async with opening as opened:
                    async for piece in opened.chunks(None):
                        offset += len(piece)
                        yield piece
        except MissingError as exc:
            raise NotFoundError("the object was deleted while it was read") from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if offset < end:
            raise StorageUnavailableError("the object is shorter than before")


async def _gather(reads: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """Run the reads at once. The first error cancels the others and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _offset(chunk: int) -> int:
    return ChunkReader.sealed_span(chunk, 0)[0]
