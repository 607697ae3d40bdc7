"""Opens one object for an authenticated caller, and reads its plaintext (SPEC 3.1, 4, 5.4, 9.2).

    EncryptedReader   Cobblestone-256: decrypted chunk by chunk, as the storage sends it
    PlaintextReader   stored without encryption: sent as it is, where the keyring allows that

`ObjectOpener` chooses the reader, and opens the object with the right key. A reader never returns
a byte of an unauthenticated chunk, nor the last piece of an object before its end has
authenticated. All reads of one encrypted object are bound to the header checked at its opening:
chunks of another body at the same key do not decrypt, so a read can resume on a new connection.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, Protocol

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    plaintext_size,
)
from keyturn.crypto.wraps import BODY_CONTEXT
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    CorruptObjectError,
    DeletedKeyError,
    NotFoundError,
    SealError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import COBBLESTONE, Wraps, stored_at
from keyturn.tasks import gather_all
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.body_stream import commitment_etag, read_first_bytes
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import CustomerSecrets
from keyturn_workers.core.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    StorageResponseError,
)
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.open_dek import OpenedDek, ReaderKeys, check_not_rolled_back, open_dek
from keyturn_workers.core.storable_key import check_storable, is_alias
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Lease, ObjectHead
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.request import Span

Piece = bytes | bytearray | memoryview
Pieces = AsyncGenerator[Piece, None]

PIECE_BYTES: Final = 256 * 1024
"""The size of pieces that are not chunks: large enough to be fast, and bounded for slow clients."""


class ObjectReader(Protocol):
    """Reads the plaintext of one object."""

    @property
    def head(self) -> ObjectHead:
        """The head of the stored object."""
        ...

    @property
    def etag(self) -> str:
        """The ETag for HTTP, quoted."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size of the plaintext, by the stored length. `verify` proves it."""
        ...

    async def verify(self, prefetch: Span | None = None) -> None:
        """Prove the size. Further calls do nothing.

        `prefetch` is a range that will be read next; it may be fetched at the same time.

        Raises:
            CorruptObjectError: the object does not authenticate.
            NotFoundError: it has been deleted.
            StorageUnavailableError: the storage failed, or the object was replaced.
        """
        ...

    def read_range(self, span: Span) -> Pieces:
        """Yield the plaintext of a range. Call `verify` first. Errors as `verify`."""
        ...

    def read_all(self) -> Pieces:
        """Yield the whole plaintext; the last piece proves the size. Errors as `verify`."""
        ...


def content_modified_at(head: ObjectHead) -> datetime:
    """Return when the object's content was stored, which no rotation changes (SPEC 4.3, 9.2)."""
    return stored_at(head.metadata, head.last_modified) or head.last_modified


class seal_errors_as_corrupt:  # noqa: N801  # a context manager, cheaper than a generator on the hot path
    """Raise CorruptObjectError in place of the crypto package's SealError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, SealError):
            raise CorruptObjectError("the body does not authenticate") from error  # type: ignore[misc]


# A range of up to this many chunks is fetched while the size is verified.
_PREFETCH_CHUNKS: Final = 16
_RESUMES: Final = 3
_RESUME_PAUSES_S: Final = (0.05, 0.3, 1.0)


@dataclass(slots=True)
class EncryptedReader:
    """Decrypts one object whose header commits to the unwrapped DEK.

    `first_bytes` begin the stored body, with the header at least; `stream` is the rest of the
    stream that they came from, if it is still open. `size_bytes` is the size of the plaintext, by
    the stored length.
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
                sealed, *self._prefetched = await gather_all(reads)
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
        """Return a range's first chunk and the end of its chunks, without the object's last."""
        full = self.size_bytes // CHUNK_BYTES
        return span.first // CHUNK_BYTES, min((span.end - 1) // CHUNK_BYTES + 1, full)

    async def _decrypt(self, first: int, end: int, last_chunk: bytearray | None) -> Pieces:
        """Yield the plaintext of full chunks, from `first` to `end` (exclusive).

        If `last_chunk` is given, the stored body is read to its end, from the stream that the
        object was opened with, and the bytes behind these chunks are added to `last_chunk`.
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
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if offset < end:
            raise StorageUnavailableError("the object is shorter than before")


def _offset(chunk: int) -> int:
    return ChunkReader.sealed_span(chunk, 0)[0]


@dataclass(slots=True)
class PlaintextReader:
    """Streams one plaintext object."""

    storage: Storage
    s3_key: str
    head: ObjectHead

    @property
    def etag(self) -> str:
        """The storage's ETag."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """The stored length."""
        return self.head.size_bytes

    async def verify(self, prefetch: Span | None = None) -> None:
        """Do nothing: plaintext is not authenticated. See `ObjectReader`."""

    async def read_range(self, span: Span) -> Pieces:
        """Yield the bytes of a range of exactly this body. See `ObjectReader`."""
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
        """Yield the whole object. See `ObjectReader`."""
        return self.read_range(Span(0, self.head.size_bytes))


START_BYTES: Final = HEADER_BYTES + SEALED_CHUNK_BYTES
"""The header and the first chunk: all of a small object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The state of a key, by one read that opens nothing: nothing of it is proven.

    `etag` is the ETag for HTTP; None for a tombstone, and for an archived object. `modified_at` is
    when the content was stored; None without an ETag.
    """

    etag: str | None = None
    modified_at: datetime | None = None
    is_tombstone: bool = False


class _NewerKeyringError(Exception):
    """The object is of a newer keyring with other customer keys: open it again as this caller."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self.caller = caller


class ObjectOpener:
    """Opens objects of one bucket.

    `auth` reads the keyring again if an object is newer than the caller's snapshot of it.
    """

    def __init__(
        self, storage: Storage, auth: Authenticator, keys: KekDeriver, customer_keys: CustomerKeys
    ) -> None:
        self._storage = storage
        self._auth = auth
        self._keys = keys
        self._customer_keys = customer_keys

    async def require_customer_key(self, caller: Caller) -> None:
        """Check that the project's customer key is available, if it has one.

        It may wait for the key's store: call it without a place that other projects need.

        Raises:
            CustomerKeyRefusedError, CustomerKeyUnavailableError: the secret is not given.
        """
        await self._customer_keys.unlock(caller.snapshot.keyring)

    @asynccontextmanager
    async def open(
        self,
        caller: Caller,
        object_key: str,
        *,
        start_bytes: int | None,
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> AsyncIterator[ObjectReader]:
        """Yield a reader of the object, whose header commits to its DEK.

        `start_bytes` is how much to read first; None opens a stream of the whole object. `hold`
        acquires the caller's place: it is held until the block ends, and never while a customer
        key's store is waited for. Then the place and the connection are released, and the object
        is read again.

        Raises:
            CustomerKeyRefusedError, CustomerKeyUnavailableError: a secret that it needs is not
                given.
            NotFoundError: there is no object, or a tombstone.
            NoUsableWrapError, CorruptObjectError, UnknownAlgorithmError: see SPEC 4.
            UnauthorizedError: the caller's key has been rotated.
            KeyringRolledBackError: the keyring is older than the object (SPEC 5.4).
            ArchivedObjectError, StorageUnavailableError: the object cannot be read.
        """
        if is_alias(object_key, self._storage.capabilities):
            raise NotFoundError("no object has this key")
        try:
            async with AsyncExitStack() as stack:
                opening = partial(self._open_held, object_key, start_bytes, hold, stack)
                yield await self._open_with_secrets(caller, opening)
        except MissingError as exc:
            raise NotFoundError("no object has this key") from exc
        except ArchivedError as exc:
            raise ArchivedObjectError("restore the object from its archive first") from exc
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc

    async def _open_with_secrets(
        self, caller: Caller, opening: Callable[[Caller, CustomerSecrets], Awaitable[ObjectReader]]
    ) -> ObjectReader:
        """Open an object with the customer secrets that it needs, by the caller's keyring."""
        while True:
            keyring = caller.snapshot.keyring
            try:
                return await self._customer_keys.open_with(keyring, partial(opening, caller))
            except _NewerKeyringError as newer:
                caller = newer.caller

    async def _open_held(
        self,
        object_key: str,
        start_bytes: int | None,
        hold: Callable[[], AbstractContextManager[None]],
        stack: AsyncExitStack,
        caller: Caller,
        secrets: CustomerSecrets,
    ) -> ObjectReader:
        """Open an object; what a failed attempt holds is released, what remains goes to `stack`."""
        s3_key = object_s3_key(caller.project, object_key)
        async with AsyncExitStack() as held:
            held.enter_context(hold())
            connection = await held.enter_async_context(AsyncExitStack())
            rest: AsyncIterator[bytes] | None = None
            if start_bytes is None:
                stream = await connection.enter_async_context(self._storage.stream(s3_key))
                rest = stream.chunks(None)
                try:
                    head, start = stream.head, await read_first_bytes(rest)
                except StorageUnavailableError:
                    rest = None  # the connection broke: start over, as a reader would
            if rest is None:
                size_bytes = START_BYTES if start_bytes is None else start_bytes
                head, start = await self._storage.read_start(s3_key, size_bytes)
            opened = await self._open_dek(caller, secrets, object_key, head, start)
            if opened is None:
                # A reader of plaintext opens its own connection. Holding this one meanwhile
                # could exhaust the pool, with every reader waiting for another connection.
                await connection.aclose()
            reader = self._reader(s3_key, head, start, opened, rest)
            await stack.enter_async_context(held.pop_all())
            return reader

    async def require_unused_key(self, caller: Caller, object_key: str) -> None:
        """Refuse a key that has been used: it never gets another body (SPEC 4.4, 9.3).

        Raises:
            AlreadyExistsError: the key has an object.
            DeletedKeyError: the key has a tombstone.
            MalformedRequestError: the storage takes the key for another one.
            StorageUnavailableError: the storage failed.
        """
        check_storable(object_key, self._storage.capabilities)
        stored = await self.find_stored(caller, object_key)
        if stored is None:
            return
        if stored.is_tombstone:
            raise DeletedKeyError("the key was deleted and cannot be used again")
        raise AlreadyExistsError("an object with this key exists")

    async def find_stored(self, caller: Caller, object_key: str) -> StoredObject | None:
        """Return the state of a key by one read that opens nothing; None if nothing is stored."""
        if is_alias(object_key, self._storage.capabilities):
            return None
        s3_key = object_s3_key(caller.project, object_key)
        try:
            head, start = await self._storage.read_start(s3_key, HEADER_BYTES)
        except MissingError:
            return None
        except ArchivedError:
            return StoredObject()
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        algorithm = head.metadata.get(object_metadata.ALGO)
        if algorithm == object_metadata.DELETED:
            return StoredObject(is_tombstone=True)
        etag = commitment_etag(start) if algorithm == COBBLESTONE else f'"{head.etag}"'
        return StoredObject(etag, content_modified_at(head))

    async def presign(self, reader: PlaintextReader | EncryptedReader, lease_s: int) -> str:
        """Return a URL that reads the stored body from the storage itself, for `lease_s` seconds.

        They begin at the storage's own time of `reader.head`: its clock decides.
        """
        return await self._storage.presign_get(reader.s3_key, Lease(reader.head.date, lease_s))

    def _reader(
        self,
        s3_key: str,
        head: ObjectHead,
        start: bytes,
        opened: OpenedDek | None,
        rest: AsyncIterator[bytes] | None,
    ) -> ObjectReader:
        if opened is None:
            return PlaintextReader(self._storage, s3_key, head)
        with seal_errors_as_corrupt():
            chunks = ChunkReader(opened.dek, BODY_CONTEXT, start[:HEADER_BYTES])
            size_bytes = plaintext_size(head.size_bytes)
        return EncryptedReader(self._storage, s3_key, head, start, chunks, size_bytes, rest)

    async def _open_dek(
        self,
        caller: Caller,
        secrets: CustomerSecrets,
        object_key: str,
        head: ObjectHead,
        start: bytes,
    ) -> OpenedDek | None:
        envelope = object_metadata.parse(head.metadata)
        keyring = caller.snapshot.keyring
        if isinstance(envelope, Wraps) and envelope.generation > keyring.current.generation:
            # The project was rotated after the snapshot, an old keyring was put back, or the
            # label is forged. A new read of the keyring decides.
            caller = await self._auth.reauthenticate(caller)
            keyring = caller.snapshot.keyring
            if keyring.customer_keys != secrets.keys:
                raise _NewerKeyringError(caller)
        header, kek = start[:HEADER_BYTES], caller.kek

        def opening(keks: AdminKeks) -> OpenedDek | None:
            reader = ReaderKeys.of(keyring, keks.with_secrets(secrets), kek)
            return open_dek(envelope, header, object_key, reader)

        opened = await self._keys.open_with(keyring.project, opening)
        check_not_rolled_back(keyring, envelope, opened)
        return opened
