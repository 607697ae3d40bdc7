"""Opens one object for an authenticated caller, with the right key (SPEC 4, 5.4, 9.1 to 9.3)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    plaintext_size,
)
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    DeletedKeyError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import COBBLESTONE, Wraps
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.encrypted_reader import EncryptedReader
from keyturn_workers.gateway.legacy_reader import LegacyDecrypter, LegacyReader
from keyturn_workers.gateway.object_reader import (
    ObjectReader,
    commitment_etag,
    content_modified_at,
    seal_errors_as_corrupt,
)
from keyturn_workers.gateway.plaintext_reader import PlaintextReader
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.body_stream import read_first_bytes
from keyturn_workers.objects.open_dek import OpenedDek, ReaderKeys, check_not_rolled_back, open_dek
from keyturn_workers.objects.storable_key import check_storable, is_alias
from keyturn_workers.storage import Lease, ObjectHead, Storage

START_BYTES: Final = HEADER_BYTES + SEALED_CHUNK_BYTES
"""The header and the first chunk: all of a small object."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What one read shows of a key: nothing is opened, so nothing of it is proven.

    Attributes:
        etag: The ETag for HTTP; None for a tombstone, and for an archived object.
        modified_at: When the content was stored; None where there is no ETag.
        is_tombstone: Whether the object was deleted.
    """

    etag: str | None = None
    modified_at: datetime | None = None
    is_tombstone: bool = False


class ObjectOpener:
    """Opens objects of one bucket.

    Args:
        storage: The bucket.
        auth: Reads the keyring again if an object is newer than the caller's snapshot of it.
        keys: The operator's keys.
        legacy: Decrypts objects of the earlier system.
    """

    def __init__(
        self,
        storage: Storage,
        auth: Authenticator,
        keys: OperatorKeys,
        legacy: LegacyDecrypter,
    ) -> None:
        self._storage = storage
        self._auth = auth
        self._keys = keys
        self._legacy = legacy

    @asynccontextmanager
    async def open(
        self, caller: Caller, object_key: str, *, start_bytes: int | None
    ) -> AsyncIterator[ObjectReader]:
        """Yield a reader of the object, whose header commits to its DEK.

        Args:
            caller: Who reads.
            object_key: The object's key.
            start_bytes: How many bytes to read first; None opens a stream of the whole object.

        Raises:
            NotFoundError: there is no object, or a tombstone.
            NoUsableWrapError, CorruptObjectError, UnknownAlgorithmError: see SPEC 4.
            UnauthorizedError: the caller's key has been rotated.
            KeyringRolledBackError: the keyring is older than the object (SPEC 5.4).
            ArchivedObjectError, BodyTooLargeError, StorageUnavailableError: the object cannot
                be read.
        """
        if is_alias(object_key, self._storage.capabilities):
            raise NotFoundError("no object has this key")
        s3_key = object_s3_key(caller.project, object_key)
        try:
            async with AsyncExitStack() as stack:
                rest: AsyncIterator[bytes] | None = None
                if start_bytes is None:
                    stream = await stack.enter_async_context(self._storage.stream(s3_key))
                    rest = stream.chunks(None)
                    try:
                        head, start = stream.head, await read_first_bytes(rest)
                    except StorageUnavailableError:
                        rest = None  # the connection broke: start over, as a reader would
                if rest is None:
                    size_bytes = START_BYTES if start_bytes is None else start_bytes
                    head, start = await self._storage.read_start(s3_key, size_bytes)
                opened = await self._open_dek(caller, object_key, head, start)
                if opened is None or opened.algorithm != COBBLESTONE:
                    # These readers open their own connection. Holding this one meanwhile
                    # could exhaust the pool, with every reader waiting for another connection.
                    await stack.aclose()
                yield self._reader(caller.project, s3_key, head, start, opened, rest, stack)
        except MissingError as exc:
            raise NotFoundError("no object has this key") from exc
        except ArchivedError as exc:
            raise ArchivedObjectError("restore the object from its archive first") from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc

    async def require_unused_key(self, caller: Caller, object_key: str) -> None:
        """Refuse a key that has been used: it never takes another body (SPEC 4.4, 9.3).

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
        """Return what one read shows of a key, which opens nothing; None if there is nothing.

        Raises:
            StorageUnavailableError: the storage failed.
        """
        if is_alias(object_key, self._storage.capabilities):
            return None
        s3_key = object_s3_key(caller.project, object_key)
        try:
            head, start = await self._storage.read_start(s3_key, HEADER_BYTES)
        except MissingError:
            return None
        except ArchivedError:
            return StoredObject()
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        algorithm = head.metadata.get(object_metadata.ALGO)
        if algorithm == object_metadata.DELETED:
            return StoredObject(is_tombstone=True)
        etag = commitment_etag(start) if algorithm == COBBLESTONE else f'"{head.etag}"'
        return StoredObject(etag, content_modified_at(head))

    async def presign(self, reader: PlaintextReader | EncryptedReader, lease_s: int) -> str:
        """Return a URL that reads what is stored from the storage itself, for `lease_s` seconds.

        They begin at the storage's own time of `reader.head`: its clock decides.
        """
        return await self._storage.presign_get(reader.s3_key, Lease(reader.head.date, lease_s))

    def _reader(
        self,
        project: str,
        s3_key: str,
        head: ObjectHead,
        start: bytes,
        opened: OpenedDek | None,
        rest: AsyncIterator[bytes] | None,
        stack: AsyncExitStack,
    ) -> ObjectReader:
        if opened is None:
            return PlaintextReader(self._storage, s3_key, head)
        if opened.algorithm != COBBLESTONE:
            decrypt = partial(self._legacy.decrypt, project, s3_key, head, opened.dek, stack)
            return LegacyReader(head, decrypt)
        with seal_errors_as_corrupt():
            chunks = ChunkReader(opened.dek, BODY_CONTEXT, start[:HEADER_BYTES])
            size_bytes = plaintext_size(head.size_bytes)
        return EncryptedReader(self._storage, s3_key, head, start, chunks, size_bytes, rest)

    async def _open_dek(
        self, caller: Caller, object_key: str, head: ObjectHead, start: bytes
    ) -> OpenedDek | None:
        envelope = object_metadata.parse(head.metadata)
        keyring = caller.snapshot.keyring
        if isinstance(envelope, Wraps) and envelope.generation > keyring.current.generation:
            # The project was rotated after the snapshot, an old keyring was put back, or the
            # label is forged. A new read of the keyring decides.
            caller = await self._auth.reauthenticate(caller)
            keyring = caller.snapshot.keyring
        header, kek = start[:HEADER_BYTES], caller.kek
        opened = await self._keys.open_with(
            keyring.project,
            lambda keks: open_dek(
                envelope, header, object_key, ReaderKeys.of(keyring, keks, envelope, kek)
            ),
        )
        check_not_rolled_back(keyring, envelope, opened)
        return opened
