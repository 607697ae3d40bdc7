"""One object for a reader: opened by the right key, read by chunks (SPEC 3.1, 4, 5.4, 9.1 to 9.3).

    Sealed   Cobblestone-256, chunk by chunk straight from the storage
    Whole    the earlier system's: opened whole before its first byte is given out
    Plain    stored as it is, where the keyring allows that

Nothing is given out before the chunk it stands in is authenticated, and the last piece of a
whole body not before its end is. All reads of one sealed object are pinned to the header that
was checked: its chunks open under no other.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from contracts import metadata as object_metadata
from contracts.errors import (
    ArchivedObjectError,
    BodyTooLargeError,
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    StorageUnavailableError,
)
from contracts.metadata import COBBLESTONE, V0_ALGORITHM, Envelope, Wraps
from contracts.names import object_key
from contracts.sealing import (
    BODY_CONTEXT,
    CHUNK_BYTES,
    HEADER_BYTES,
    SALT_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    SealError,
    Secret,
    plaintext_size,
    v0_open,
)
from workers.envelope import OpenedDek, Reader, open_dek
from workers.errors import ArchivedError, MissingError, PreconditionError, StorageAnswerError
from workers.gateway.gate import Admitted, Gate
from workers.gateway.ranges import Span
from workers.storage import Head, Lease, Storage

Piece = bytes | bytearray | memoryview
Pieces = AsyncGenerator[Piece, None]

# Of what is not read as it comes: large enough to be fast, small enough that a slow reader
# holds little.
_PIECE_BYTES: Final = 256 * 1024
# The header and a first chunk: a small object whole.
START_BYTES: Final = HEADER_BYTES + SEALED_CHUNK_BYTES
# A range no longer than this is read while the object is proven.
_AHEAD_CHUNKS: Final = 16
_RESUMES: Final = 3
_RESUME_PAUSES_S: Final = (0.05, 0.3, 1.0)
# Beyond this opening a body would hold up the event loop.
_IN_THREAD_BYTES: Final = 1024 * 1024
_V0_OVERHEAD_BYTES: Final = 12 + 16
_V0_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What the gateway opens objects with, beside the keyrings."""

    master_keys: Mapping[str, Secret]
    v0_admin_kek: Secret | None = None


@dataclass(slots=True)
class Sealed:
    """A sealed object whose header commits to the DEK that was unwrapped.

    `size_bytes` is what the stored length tells; `prove` makes sure of it. `start` is what was
    read of the body, and `rest` what is still to come of the stream that it was read from.
    """

    storage: Storage
    s3_key: str
    head: Head
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

    async def prove(self, ahead: Span | None = None) -> None:
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
            with _as_corrupt():
                self._last = self.reader.open_chunk(index, sealed, last=True)

    def _chunks(self, span: Span) -> tuple[int, int]:
        """The first of a span's chunks and the one behind them, the last chunk never among them."""
        full = self.size_bytes // CHUNK_BYTES
        return span.first // CHUNK_BYTES, min((span.end - 1) // CHUNK_BYTES + 1, full)

    async def _stored(self, offset: int, end: int) -> bytes:
        async with aclosing(self._bytes(offset, end, None)) as read:
            return b"".join([piece async for piece in read])

    async def pieces(self, span: Span) -> Pieces:
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

    async def whole(self) -> Pieces:
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
        with _as_corrupt():
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
                    with _as_corrupt(), memoryview(held) as view:
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
class Whole:
    """An object of the earlier system, opened whole once it is proven.

    `size_bytes` is what the stored length tells; that it opens proves it.
    """

    head: Head
    read: Callable[[], Awaitable[bytes]] = field(repr=False)
    _plaintext: bytes | None = field(default=None, repr=False)

    @property
    def etag(self) -> str:
        """The storage's own."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """Of the plaintext."""
        return max(self.head.size_bytes - _V0_OVERHEAD_BYTES, 0)

    async def prove(self, ahead: Span | None = None) -> None:
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

    async def pieces(self, span: Span) -> Pieces:
        """The plaintext of a span."""
        await self.prove()
        view = memoryview(self._plaintext or b"")[span.first : span.end]
        for at in range(0, len(view), _PIECE_BYTES):
            yield view[at : at + _PIECE_BYTES]

    def whole(self) -> Pieces:
        """All of the plaintext."""
        return self.pieces(Span(0, self.size_bytes))


@dataclass(slots=True)
class Plain:
    """An object that stands as it is."""

    storage: Storage
    s3_key: str
    head: Head

    @property
    def etag(self) -> str:
        """The storage's own."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """As stored."""
        return self.head.size_bytes

    async def prove(self, ahead: Span | None = None) -> None:
        """There is nothing to prove it by."""

    async def pieces(self, span: Span) -> Pieces:
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
                async for piece in stream.chunks(_PIECE_BYTES):
                    yield piece
        except (PreconditionError, MissingError) as exc:
            raise StorageUnavailableError("the object changed while it was read") from exc

    def whole(self) -> Pieces:
        """All of it."""
        return self.pieces(Span(0, self.head.size_bytes))


Found = Sealed | Whole | Plain


class Source:
    """Opens objects of one bucket for callers that the gate admitted.

    Args:
        storage: The bucket.
        gate: For a second look at the keyring, where an object is newer than the first.
        keys: The operator's.
        v0_max_bytes: The largest object of the earlier system that is opened.
        v0_concurrency: How many of these at once.
    """

    def __init__(
        self,
        storage: Storage,
        gate: Gate,
        keys: Keys,
        *,
        v0_max_bytes: int,
        v0_concurrency: int,
    ) -> None:
        self._storage = storage
        self._gate = gate
        self._keys = keys
        self._v0_max_bytes = v0_max_bytes
        self._v0_slots = asyncio.Semaphore(v0_concurrency)

    @asynccontextmanager
    async def open(
        self, admitted: Admitted, key: str, *, start_bytes: int | None
    ) -> AsyncIterator[Found]:
        """The object, its DEK known and committed to by its header.

        Args:
            admitted: The caller.
            key: The object's.
            start_bytes: How much of it to read at first; None opens a stream of all of it.

        Raises:
            NotFoundError: nothing stands there, or a tombstone.
            NoUsableWrapError, CorruptObjectError, UnknownAlgorithmError: as SPEC 4 has it.
            UnauthorizedError: the caller's key was turned meanwhile.
            KeyringRolledBackError: the keyring is older than the object (SPEC 5.4).
            ArchivedObjectError, BodyTooLargeError, StorageUnavailableError: it cannot be read.
        """
        s3_key = object_key(admitted.project, key)
        try:
            async with AsyncExitStack() as stack:
                rest: AsyncIterator[bytes] | None = None
                if start_bytes is None:
                    stream = await stack.enter_async_context(self._storage.stream(s3_key))
                    rest = stream.chunks(None)
                    try:
                        head, start = stream.head, await _first(rest)
                    except StorageUnavailableError:
                        rest = None  # it broke: begin anew, as later on
                if rest is None:
                    size_bytes = START_BYTES if start_bytes is None else start_bytes
                    head, start = await self._storage.read_start(s3_key, size_bytes)
                opened = await self._dek(admitted, key, head, start)
                if opened is None or opened.algorithm != COBBLESTONE:
                    # Read anew, or by somebody else. Whoever held a second connection beside
                    # this one could wait for it for ever, with as many others as the pool holds.
                    await stack.aclose()
                yield self._found(s3_key, head, start, opened, rest, stack)
        except MissingError as exc:
            raise NotFoundError("nothing stands at this key") from exc
        except ArchivedError as exc:
            raise ArchivedObjectError("it must be restored from its archive first") from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc

    async def presigned(self, found: Plain, lease_s: int) -> str:
        """A URL by which the caller may read it from the storage itself."""
        return await self._storage.presigned(found.s3_key, Lease(found.head.date, lease_s))

    def _found(
        self,
        s3_key: str,
        head: Head,
        start: bytes,
        opened: OpenedDek | None,
        rest: AsyncIterator[bytes] | None,
        stack: AsyncExitStack,
    ) -> Found:
        if opened is None:
            return Plain(self._storage, s3_key, head)
        if opened.algorithm != COBBLESTONE:
            return Whole(head, partial(self._v0_plaintext, s3_key, head, opened.dek, stack))
        with _as_corrupt():
            reader = ChunkReader(opened.dek, BODY_CONTEXT, start[:HEADER_BYTES])
            size_bytes = plaintext_size(head.size_bytes)
        return Sealed(self._storage, s3_key, head, start, reader, size_bytes, rest)

    async def _dek(
        self, admitted: Admitted, key: str, head: Head, start: bytes
    ) -> OpenedDek | None:
        envelope = object_metadata.parse(head.metadata)
        generation = admitted.observed.keyring.current.generation
        if isinstance(envelope, Wraps) and envelope.generation > generation:
            # Either the keyring was turned after it was read, or somebody put an old one there
            # (or the label is a lie): a read that begins now tells.
            admitted = await self._gate.again(admitted)
            generation = admitted.observed.keyring.current.generation
        opened = open_dek(envelope, start[:HEADER_BYTES], key, self._reader(admitted, envelope))
        if (
            opened is not None
            and opened.role == "admin"
            and isinstance(envelope, Wraps)
            and envelope.generation > generation
        ):
            # The wrap is bound to its label: this is no lie.
            raise KeyringRolledBackError(
                f"the object stands at generation {envelope.generation}, "
                f"the keyring at {generation}"
            )
        return opened

    def _reader(self, admitted: Admitted, envelope: Envelope) -> Reader:
        keyring = admitted.observed.keyring
        kek: Secret | None = admitted.kek
        if isinstance(envelope, Wraps) and envelope.algorithm == V0_ALGORITHM:
            # Such a body commits to no key: both wraps are opened, and one that was not yet
            # swept has its user wrap under the KEK of its own generation (SPEC 4.6).
            kek = keyring.user_keks.get(envelope.generation)
        return Reader(
            admitted.project,
            user_kek=kek,
            master_keys=self._keys.master_keys,
            v0_user_kek=keyring.v0_kek,
            v0_admin_kek=self._keys.v0_admin_kek,
            plaintext_allowed=keyring.plaintext_allowed,
            v0_allowed=keyring.v0_allowed,
        )

    async def _v0_plaintext(
        self, s3_key: str, head: Head, dek: bytes, stack: AsyncExitStack
    ) -> bytes:
        """The plaintext; its place is held until the answer is sent, as its memory is."""
        if head.size_bytes > self._v0_max_bytes:
            raise BodyTooLargeError(
                f"an object of the earlier system is opened whole, up to {self._v0_max_bytes} bytes"
            )
        try:
            async with asyncio.timeout(_V0_WAIT_S):
                await stack.enter_async_context(self._v0_slots)
        except TimeoutError as exc:
            raise StorageUnavailableError("too many objects are opened whole just now") from exc
        async with self._storage.stream(s3_key, if_match=head.etag) as stream:
            sealed = b"".join([piece async for piece in stream.chunks(_PIECE_BYTES)])
        with _as_corrupt():
            if len(sealed) > _IN_THREAD_BYTES:
                return await asyncio.to_thread(v0_open, dek, sealed)
            return v0_open(dek, sealed)


async def _first(pieces: AsyncIterator[bytes]) -> bytes:
    """The first of the pieces, at least a header's bytes where they have so many."""
    start = b""
    async for piece in pieces:
        start += piece
        if len(start) >= HEADER_BYTES:
            break
    return start


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


class _as_corrupt:  # noqa: N801  # a context manager, cheaper than a generator on the hot path
    """What does not authenticate is `corrupt_object`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, SealError):
            raise CorruptObjectError("the body does not authenticate") from error  # type: ignore[misc]
