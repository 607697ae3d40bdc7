"""From the stored bytes of an object to its plaintext, whole or in part (SPEC 3.1, 4.2, 9.2).

No byte is released before its chunk is authenticated, and the last piece of a whole object not
before its end is. A range is opened only once the object's last chunk has proven its length. All
chunks open under the header that was checked first: chunks of another body do not.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from keyturn.crypto.cobblestone import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SALT_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    Opener,
    plaintext_size,
)
from keyturn.crypto.wraps import BODY_CONTEXT
from keyturn.errors import CorruptObjectError, RangeNotSatisfiableError, SealError
from keyturn.gateway.responses import ByteRange, ObjectBody, ObjectInfo, object_info
from keyturn.metadata import stored_at
from keyturn.open.stored_body import StoredBody, StoredStream
from keyturn.tasks import task_group

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_BYTES: Final = HEADER_BYTES + SEALED_CHUNK_BYTES
"""The header and the first chunk: all of a small object."""


@dataclass(frozen=True, slots=True)
class Source:
    """An object's stored bytes, its metadata, and the DEK from its user wrap."""

    body: StoredBody
    metadata: Mapping[str, str]
    dek: bytes = field(repr=False)


class DecryptedObject(ObjectBody):
    """An object, or a range of one, whose plaintext is not read yet. Made by `Reader.open`.

    Its size is proven if a range is read. If the whole object is read, it is proven at the end:
    until then it is the storage's statement.

    Args:
        info: Its size and metadata.
        length: Bytes of plaintext to come, of the whole object or the range.
        plaintext: These bytes, in authentic pieces.
    """

    def __init__(
        self, info: ObjectInfo, length: int, plaintext: AsyncGenerator[bytes, None]
    ) -> None:
        super().__init__(info, length)
        self._pieces = plaintext

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the plaintext in pieces of any size, once; a second call continues after the first.

        Every piece is authentic when it is yielded. The pieces are the whole object, or range,
        only if the iteration ends without an error.

        Raises:
            CorruptObjectError: the stored bytes do not authenticate, or are cut.
            IncompleteBodyError: the connection broke, again and again.
            LinkExpiredError: it broke, and the link has expired.
            NotFoundError: the object was deleted meanwhile.
            StorageUnavailableError: the storage fails.
        """
        async for piece in self._pieces:
            yield piece


@asynccontextmanager
async def open_whole(source: Source) -> AsyncIterator[DecryptedObject]:
    """Open an object from its beginning to its end, by one request if no connection breaks.

    Raises:
        CorruptObjectError: the body does not commit to the DEK, or no object has its length.
        Exception: as `StoredBody.request`.
    """
    stream = StoredStream(source.body)
    try:
        await stream.start()
        start = bytearray()
        while len(start) < HEADER_BYTES and (piece := await stream.next_piece()):
            start += piece
        header, first = bytes(start[:HEADER_BYTES]), bytes(start[HEADER_BYTES:])
        with _seal_errors_as_corrupt():
            opener = Opener(source.dek, BODY_CONTEXT, header)
            size_bytes = plaintext_size(stream.whole_bytes)
        info = _info(source, stream, size_bytes, header)
        async with aclosing(_decrypt_all(opener, first, stream)) as pieces:
            yield DecryptedObject(info, size_bytes, pieces)
    finally:
        stream.close()


async def _decrypt_all(
    opener: Opener, first: bytes, stream: StoredStream
) -> AsyncGenerator[bytes, None]:
    held, piece, ended = b"", first, False
    while not ended:
        with _seal_errors_as_corrupt():
            opened = opener.update(piece)
        if opened:
            if held:
                yield held
            held = opened
        piece = await stream.next_piece()
        ended = not piece
    with _seal_errors_as_corrupt():
        last = opener.finish()
    # Held back until now: the bytes before the end are as many as the storage stated, even if the
    # end is not authentic.
    for opened in (held, last):
        if opened:
            yield opened


@asynccontextmanager
async def open_range(source: Source, span: ByteRange) -> AsyncIterator[DecryptedObject]:
    """Open a range of an object, once its last chunk has proven its length.

    Raises:
        RangeNotSatisfiableError: the object ends before the range.
        CorruptObjectError: as `open_whole`, or the last chunk does not authenticate.
        Exception: as `StoredBody.request`.
    """
    beginning = StoredStream(source.body, 0, _START_BYTES)
    start = await _start_of(source, beginning)
    with _seal_errors_as_corrupt():
        reader = ChunkReader(source.dek, BODY_CONTEXT, start[:HEADER_BYTES])
        size_bytes = plaintext_size(beginning.whole_bytes)
    part = _Part(*_bounds(span, size_bytes), size_bytes)
    index, end = part.full_chunks
    held = start[HEADER_BYTES:] if index == 0 < end else b""
    stream = StoredStream(source.body, _offset(index) + len(held), _offset(end))
    try:
        with _seal_errors_as_corrupt():
            sealed_last = await _last_chunk(source.body, start, beginning.whole_bytes, stream)
            last_chunk = reader.open_chunk(part.last_chunk, sealed_last, last=True)
        # A rejection states the length, too, so it comes after the proof. The end of an empty
        # object is that object, by RFC 9110.
        if part.is_empty and not (span.start < 0 and size_bytes == 0):
            raise RangeNotSatisfiableError("the object ends before the range")
        info = _info(source, beginning, size_bytes, start[:HEADER_BYTES])
        async with aclosing(_decrypt_part(reader, part, held, stream, last_chunk)) as pieces:
            yield DecryptedObject(info, part.end - part.first, pieces)
    finally:
        stream.close()


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes `first` to `end` (exclusive) of a plaintext of `size_bytes`."""

    first: int
    end: int
    size_bytes: int

    @property
    def is_empty(self) -> bool:
        return self.first >= self.end

    @property
    def last_chunk(self) -> int:
        """The number of the object's last chunk, which is never full."""
        return self.size_bytes // CHUNK_BYTES

    @property
    def full_chunks(self) -> tuple[int, int]:
        """The first full chunk that the part needs, and the one after the last."""
        first = min(self.first // CHUNK_BYTES, self.last_chunk)
        end = min((self.end - 1) // CHUNK_BYTES + 1, self.last_chunk)
        return first, max(first, end)


def _bounds(span: ByteRange, size_bytes: int) -> tuple[int, int]:
    first, last = span.bounds(size_bytes)
    return first, max(first, last + 1)


async def _start_of(source: Source, beginning: StoredStream) -> bytes:
    """Return the header and the first chunk."""
    try:
        return await beginning.read()
    except RangeNotSatisfiableError:
        pass  # an empty body: perhaps a tombstone, which a response to a whole request says
    finally:
        beginning.close()
    whole = StoredStream(source.body)
    try:
        await whole.start()
    finally:
        whole.close()
    raise CorruptObjectError("the stored body is empty")


async def _last_chunk(
    body: StoredBody, start: bytes, stored_bytes: int, stream: StoredStream
) -> bytes:
    """Return the last chunk, still sealed; meanwhile the stream of the range is started."""
    offset = _offset(plaintext_size(stored_bytes) // CHUNK_BYTES)
    if stored_bytes <= len(start):
        return start[offset:]
    last = StoredStream(body, offset, stored_bytes)
    try:
        async with task_group() as group:
            group.create_task(stream.start())
            read = group.create_task(last.read())
    finally:
        last.close()
    return read.result()


async def _decrypt_part(
    reader: ChunkReader, part: _Part, held: bytes, stream: StoredStream, last_chunk: bytes
) -> AsyncGenerator[bytes, None]:
    index, end = part.full_chunks
    sealed = bytearray(held)
    while index < end:
        count = min(len(sealed) // SEALED_CHUNK_BYTES, end - index)
        if not count:
            sealed += await stream.next_piece()
            continue
        with _seal_errors_as_corrupt(), memoryview(sealed) as view:
            opened = reader.open_chunks(index, view[: count * SEALED_CHUNK_BYTES])
        del sealed[: count * SEALED_CHUNK_BYTES]
        at = index * CHUNK_BYTES
        index += count
        yield bytes(memoryview(opened)[max(part.first - at, 0) : part.end - at])
    at = part.last_chunk * CHUNK_BYTES
    if last := last_chunk[max(part.first - at, 0) : max(part.end - at, 0)]:
        yield last


def _offset(chunk: int) -> int:
    return ChunkReader.sealed_span(chunk, 0)[0]


def _info(source: Source, stream: StoredStream, size_bytes: int, header: bytes) -> ObjectInfo:
    found = object_info(size_bytes, stream.headers, by_storage=True)
    modified = found.last_modified
    if modified is not None:
        modified = stored_at(source.metadata, modified) or modified
    return replace(found, etag=f'"{header[SALT_BYTES:].hex()}"', last_modified=modified)


@contextmanager
def _seal_errors_as_corrupt() -> "Iterator[None]":
    try:
        yield
    except SealError as exc:
        raise CorruptObjectError("the stored body does not authenticate") from exc
