"""The three kinds of object that a reader may find, and how each is read (SPEC 3.1, 4, 9.2).

    Sealed   Cobblestone-256, chunk by chunk straight from the storage
    Whole    the earlier system's: opened whole before its first byte is given out
    Plain    stored as it is, where the keyring allows that

Nothing is given out before the chunk it stands in is authenticated, and the last piece of a
whole body not before its end is. All reads of one sealed object are pinned to the header that
was checked: its chunks open under no other.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from keyturn.crypto import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SALT_BYTES,
    SEALED_CHUNK_BYTES,
    V0_OVERHEAD_BYTES,
    ChunkReader,
    SealError,
)
from keyturn.errors import CorruptObjectError, NotFoundError, StorageUnavailableError
from keyturn.metadata import stored_at
from keyturn_workers.errors import MissingError, PreconditionError, StorageAnswerError
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import ObjectHead, Storage

Piece = bytes | bytearray | memoryview
Pieces = AsyncGenerator[Piece, None]

# Of what is not read as it comes: large enough to be fast, small enough that a slow reader
# holds little.
PIECE_BYTES: Final = 256 * 1024
# A range no longer than this is read while the object is proven.
_AHEAD_CHUNKS: Final = 16
_RESUMES: Final = 3
_RESUME_PAUSES_S: Final = (0.05, 0.3, 1.0)


def content_modified_at(head: ObjectHead) -> datetime:
    """When the object's content was stored, which no rotation changes (SPEC 4.3, 9.2)."""
    return stored_at(head.metadata, head.last_modified) or head.last_modified


@dataclass(slots=True)
class Encrypted:
    """A sealed object whose header commits to the DEK that was unwrapped.

    `size_bytes` is what the stored length tells; `verify` makes sure of it. `start` is what was
    read of the body, and `rest` what is still to come of the stream that it was read from.
    """

    storage: Storage
    s3_key: str
    head: ObjectHead
    start: bytes = field(repr=False)
    reader: ChunkReader = field(repr=False)
    size_bytes: int
    rest: AsyncIterator[bytes] | None = None
    _last: bytes | None = field(default=None, repr=False)
    _ahead: list[bytes] = field(default_factory=list, repr=False)
    _ahead_offset: int = 0

    @property
    def etag(self) -> str:
        """The commitment, which no rotation changes."""
        return f'"{self.start[SALT_BYTES:HEADER_BYTES].hex()}"'

    async def verify(self, ahead: Span | None = None) -> None:
        """Open the last chunk: only then is the length known.

        What `ahead` needs beside it is read at the same time where that is little: both take
        as long as one. It is opened only once the last chunk was.

        Raises:
            CorruptObjectError: it does not open.
            NotFoundError: the object is gone.
            StorageUnavailableError: the storage failed.
        """
        if self._last is None:
            index = self.size_bytes // CHUNK_BYTES
            offset = _offset(index)
            sealed = self.start[offset:]
            if len(self.start) < self.head.size_bytes:
                first, until = (0, 0) if ahead is None else self._chunks(ahead)
                reads = [self._stored(offset, self.head.size_bytes)]
                if 0 < until - first <= _AHEAD_CHUNKS:
                    reads.append(self._stored(_offset(first), _offset(until)))
                sealed, *self._ahead = await _together(reads)
                self._ahead_offset = _offset(first)
            with seal_errors_as_corrupt():
                self._last = self.reader.open_chunk(index, sealed, last=True)

    def _chunks(self, span: Span) -> tuple[int, int]:
        """The first of a span's chunks and the one behind them, the last chunk never among them."""
        full = self.size_bytes // CHUNK_BYTES
        return span.first // CHUNK_BYTES, min((span.end - 1) // CHUNK_BYTES + 1, full)

    async def _stored(self, offset: int, end: int) -> bytes:
        async with aclosing(self._bytes(offset, end, None)) as read:
            return b"".join([piece async for piece in read])

    async def read_range(self, span: Span) -> Pieces:
        """The plaintext of a span of a proven object, each piece authenticated."""
        if self._last is None:
            raise RuntimeError("a range is read of a proven object alone")
        full = self.size_bytes // CHUNK_BYTES
        first, until = self._chunks(span)
        at = first * CHUNK_BYTES
        if first < until:
            async with aclosing(self._full(first, until, None)) as opened:
                async for piece in opened:
                    yield memoryview(piece)[max(span.first - at, 0) : span.end - at]
                    at += len(piece)
        if span.end > full * CHUNK_BYTES:
            start = full * CHUNK_BYTES
            yield self._last[max(span.first - start, 0) : span.end - start]

    async def read_all(self) -> Pieces:
        """All of the plaintext; what comes last only once the end has authenticated."""
        held: Piece = b""
        async with aclosing(self._all()) as opened:
            async for piece in opened:
                if held:
                    yield held
                held = piece
        yield held

    async def _all(self) -> Pieces:
        full = self.size_bytes // CHUNK_BYTES
        tail = bytearray()
        if full:
            async with aclosing(self._full(0, full, tail)) as opened:
                async for piece in opened:
                    yield piece
        else:
            async with aclosing(self._bytes(HEADER_BYTES, self.head.size_bytes, self.rest)) as rest:
                async for sealed in rest:
                    tail += sealed
        with seal_errors_as_corrupt():
            last = self.reader.open_chunk(full, tail, last=True)
        if last:
            yield last

    async def _full(self, first: int, until: int, tail: bytearray | None) -> Pieces:
        """Chunks `first` to `until`, not included, none of them the last.

        With `tail` the stream that the object was opened with is read to its end, and what
        stands behind these chunks is put there.
        """
        end = _offset(until) if tail is None else self.head.size_bytes
        rest = None if tail is None else self.rest
        held = bytearray()
        at = first
        async with aclosing(self._bytes(_offset(first), end, rest)) as sealed:
            async for piece in sealed:
                held += piece
                count = min(len(held) // SEALED_CHUNK_BYTES, until - at)
                if count:
                    size_bytes = count * SEALED_CHUNK_BYTES
                    with seal_errors_as_corrupt(), memoryview(held) as view:
                        opened = self.reader.open_chunks(at, view[:size_bytes])
                    at += count
                    del held[:size_bytes]
                    yield opened
        if tail is not None:
            tail += held

    async def _bytes(self, offset: int, end: int, rest: AsyncIterator[bytes] | None) -> Pieces:
        """Stored bytes from `offset` to `end`, across connections that break.

        A read that begins anew may meet another body at this key: its chunks do not open.
        """
        begun: Piece = self.start[offset:end]
        if self._ahead and offset == self._ahead_offset:
            begun = self._ahead.pop()
        if begun:
            yield begun
            offset += len(begun)
        failures = 0
        while offset < end:
            began = offset
            try:
                async with aclosing(self._read(offset, end, rest)) as read:
                    async for piece in read:
                        offset += len(piece)
                        yield piece
            except StorageUnavailableError:
                # One that gets on may break as often as it likes: a long download meets more
                # breaks than a short one.
                failures = 0 if offset > began else failures
                if failures == _RESUMES:
                    raise
                await asyncio.sleep(_RESUME_PAUSES_S[failures])
                failures += 1
            rest = None

    async def _read(self, offset: int, end: int, rest: AsyncIterator[bytes] | None) -> Pieces:
        """The same by one connection: what is left of one, or a new one."""
        try:
            if rest is not None:
                async for piece in rest:
                    offset += len(piece)
                    yield piece
            else:
                opening = self.storage.stream(self.s3_key, start=offset, length_bytes=end - offset)
                async with opening as stream:
                    async for piece in stream.chunks(None):
                        offset += len(piece)
                        yield piece
        except MissingError as exc:
            raise NotFoundError("the object went while it was read") from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if offset < end:
            raise StorageUnavailableError("the object is shorter than it was")


@dataclass(slots=True)
class Legacy:
    """An object of the earlier system, opened whole once it is proven.

    `size_bytes` is what the stored length tells; that it opens proves it.
    """

    head: ObjectHead
    read: Callable[[], Awaitable[bytes]] = field(repr=False)
    _plaintext: bytes | None = field(default=None, repr=False)

    @property
    def etag(self) -> str:
        """The storage's own."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """Of the plaintext."""
        return max(self.head.size_bytes - V0_OVERHEAD_BYTES, 0)

    async def verify(self, ahead: Span | None = None) -> None:
        """Open it.

        Raises:
            CorruptObjectError: it does not open.
            BodyTooLargeError: it is larger than what is opened whole.
            StorageUnavailableError: it changed meanwhile, the storage failed, or too many
                of these are open.
        """
        del ahead
        if self._plaintext is None:
            self._plaintext = await self.read()

    async def read_range(self, span: Span) -> Pieces:
        """The plaintext of a span."""
        await self.verify()
        view = memoryview(self._plaintext or b"")[span.first : span.end]
        for at in range(0, len(view), PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]

    def read_all(self) -> Pieces:
        """All of the plaintext."""
        return self.read_range(Span(0, self.size_bytes))


@dataclass(slots=True)
class Plaintext:
    """An object that stands as it is."""

    storage: Storage
    s3_key: str
    head: ObjectHead

    @property
    def etag(self) -> str:
        """The storage's own."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """As stored."""
        return self.head.size_bytes

    async def verify(self, ahead: Span | None = None) -> None:
        """There is nothing to prove it by."""

    async def read_range(self, span: Span) -> Pieces:
        """The bytes of a span of this very body."""
        if not span.length:
            return
        try:
            async with self.storage.stream(
                self.s3_key,
                start=span.first,
                length_bytes=span.length,
                if_match=self.head.etag,
            ) as stream:
                async for piece in stream.chunks(PIECE_BYTES):
                    yield piece
        except (PreconditionError, MissingError) as exc:
            raise StorageUnavailableError("the object changed while it was read") from exc

    def read_all(self) -> Pieces:
        """All of it."""
        return self.read_range(Span(0, self.head.size_bytes))


ObjectReader = Encrypted | Legacy | Plaintext


async def _together(reads: Sequence[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """All of these reads; the first that fails ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _offset(chunk: int) -> int:
    return ChunkReader.sealed_span(chunk, 0)[0]


class seal_errors_as_corrupt:  # noqa: N801  # a context manager, cheaper than a generator on the hot path
    """What does not authenticate is `corrupt_object`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, SealError):
            raise CorruptObjectError("the body does not authenticate") from error  # type: ignore[misc]
