"""One object for a reader: found, and opened by the right key (SPEC 4, 5.4, 9.1 to 9.3)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    plaintext_size,
    v0_open,
)
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    BodyTooLargeError,
    DeletedKeyError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import COBBLESTONE, Wraps
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.object_reader import (
    PIECE_BYTES,
    Encrypted,
    Legacy,
    ObjectReader,
    Plaintext,
    seal_errors_as_corrupt,
)
from keyturn_workers.objects.body_stream import read_first_bytes
from keyturn_workers.objects.open_dek import OpenedDek, ReaderKeys, check_not_rolled_back, open_dek
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Lease, ObjectHead, Storage

# The header and a first chunk: a small object whole.
START_BYTES: Final = HEADER_BYTES + SEALED_CHUNK_BYTES
# Beyond this opening a body would hold up the event loop.
_IN_THREAD_BYTES: Final = 1024 * 1024
_V0_WAIT_S: Final = 5.0


class ObjectOpener:
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
        auth: Authenticator,
        keys: OperatorKeys,
        *,
        v0_max_bytes: int,
        v0_concurrency: int,
    ) -> None:
        self._storage = storage
        self._auth = auth
        self._keys = keys
        self._v0_max_bytes = v0_max_bytes
        self._v0_slots = asyncio.Semaphore(v0_concurrency)

    @asynccontextmanager
    async def open(
        self, caller: Caller, key: str, *, start_bytes: int | None
    ) -> AsyncIterator[ObjectReader]:
        """The object, its DEK known and committed to by its header.

        Args:
            caller: Who asks.
            key: The object's.
            start_bytes: How much of it to read at first; None opens a stream of all of it.

        Raises:
            NotFoundError: nothing stands there, or a tombstone.
            NoUsableWrapError, CorruptObjectError, UnknownAlgorithmError: as SPEC 4 has it.
            UnauthorizedError: the caller's key was turned meanwhile.
            KeyringRolledBackError: the keyring is older than the object (SPEC 5.4).
            ArchivedObjectError, BodyTooLargeError, StorageUnavailableError: it cannot be read.
        """
        s3_key = object_s3_key(caller.project, key)
        try:
            async with AsyncExitStack() as stack:
                rest: AsyncIterator[bytes] | None = None
                if start_bytes is None:
                    stream = await stack.enter_async_context(self._storage.stream(s3_key))
                    rest = stream.chunks(None)
                    try:
                        head, start = stream.head, await read_first_bytes(rest)
                    except StorageUnavailableError:
                        rest = None  # it broke: begin anew, as later on
                if rest is None:
                    size_bytes = START_BYTES if start_bytes is None else start_bytes
                    head, start = await self._storage.read_start(s3_key, size_bytes)
                opened = await self._dek(caller, key, head, start)
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

    async def check_free(self, caller: Caller, key: str) -> None:
        """Refuse a key that holds something: it never takes another body (SPEC 4.4, 9.3).

        Raises:
            AlreadyExistsError: an object is there.
            DeletedKeyError: a tombstone is.
            StorageUnavailableError: the storage did not say.
        """
        try:
            head, _ = await self._storage.read_start(
                object_s3_key(caller.project, key), HEADER_BYTES
            )
        except MissingError:
            return
        except ArchivedError as exc:
            raise AlreadyExistsError("the key holds an object") from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if head.metadata.get(object_metadata.ALGO) == object_metadata.DELETED:
            raise DeletedKeyError("the key was deleted, and takes no other body")
        raise AlreadyExistsError("the key holds an object")

    async def presigned(self, found: Plaintext, lease_s: int) -> str:
        """A URL by which the caller may read it from the storage itself."""
        return await self._storage.presign_get(found.s3_key, Lease(found.head.date, lease_s))

    def _found(
        self,
        s3_key: str,
        head: ObjectHead,
        start: bytes,
        opened: OpenedDek | None,
        rest: AsyncIterator[bytes] | None,
        stack: AsyncExitStack,
    ) -> ObjectReader:
        if opened is None:
            return Plaintext(self._storage, s3_key, head)
        if opened.algorithm != COBBLESTONE:
            return Legacy(head, partial(self._v0_plaintext, s3_key, head, opened.dek, stack))
        with seal_errors_as_corrupt():
            reader = ChunkReader(opened.dek, BODY_CONTEXT, start[:HEADER_BYTES])
            size_bytes = plaintext_size(head.size_bytes)
        return Encrypted(self._storage, s3_key, head, start, reader, size_bytes, rest)

    async def _dek(
        self, caller: Caller, key: str, head: ObjectHead, start: bytes
    ) -> OpenedDek | None:
        envelope = object_metadata.parse(head.metadata)
        keyring = caller.snapshot.keyring
        if isinstance(envelope, Wraps) and envelope.generation > keyring.current.generation:
            # Either the keyring was turned after it was read, or somebody put an old one there
            # (or the label is a lie): a read that begins now tells.
            caller = await self._auth.reauthenticate(caller)
            keyring = caller.snapshot.keyring
        reader = ReaderKeys.of(keyring, self._keys, envelope, caller.kek)
        opened = open_dek(envelope, start[:HEADER_BYTES], key, reader)
        check_not_rolled_back(keyring, envelope, opened)
        return opened

    async def _v0_plaintext(
        self, s3_key: str, head: ObjectHead, dek: bytes, stack: AsyncExitStack
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
            sealed = b"".join([piece async for piece in stream.chunks(PIECE_BYTES)])
        with seal_errors_as_corrupt():
            if len(sealed) > _IN_THREAD_BYTES:
                return await asyncio.to_thread(v0_open, dek, sealed)
            return v0_open(dek, sealed)
