"""Reading one object's plaintext from the bucket, with the operator's keys (SPEC 3.1, 4, 5.4, 8.7).

An independent reader: it trusts nothing that an event says. It holds one piece of the body at a
time. It never yields a byte that is not authenticated, nor mistakes the end of a stream for the end
of a body.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import HEADER_BYTES, Opener, plaintext_size
from keyturn.crypto.wraps import BODY_CONTEXT
from keyturn.errors import (
    ArchivedObjectError,
    ChunkError,
    CorruptObjectError,
    NotFoundError,
    SealError,
)
from keyturn.gateway.responses import ObjectInfo
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import Envelope
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.body_stream import commitment_etag, read_first_bytes
from keyturn_workers.core.customer_keys import CustomerSecrets
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.open_dek import OpenedDek, ReaderKeys, check_not_rolled_back, open_dek
from keyturn_workers.core.storage_port import ObjectStream, Storage
from keyturn_workers.keys.keyring.store import parse_keyring

if TYPE_CHECKING:
    from keyturn_workers.core.storage_values import ObjectHead

READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OperatorAccess:
    """Access by the operator's keys. Only admin wraps are opened.

    `customer_keys` has the customer secrets of a project whose wraps need them.
    """

    project: str
    operator_keys: KekDeriver
    customer_keys: GivenSecrets = field(default_factory=GivenSecrets)


class OpenObject:
    """An object whose DEK is known."""

    def __init__(
        self,
        stream: ObjectStream,
        start: bytes,
        rest: AsyncIterator[bytes],
        opened: OpenedDek | None,
    ) -> None:
        self.head: ObjectHead = stream.head
        self.opened = opened
        self._start = start
        self._rest = rest

    @property
    def info(self) -> ObjectInfo:
        """The stated size, type and metadata of the object; only the size is proven, at the end.

        The ETag is the one that a gateway gives.

        Raises:
            CorruptObjectError: no body can have its length.
        """
        size_bytes, etag = self.head.size_bytes, f'"{self.head.etag}"'
        if self.opened is not None:
            etag = commitment_etag(self._start)
            try:
                size_bytes = plaintext_size(size_bytes)
            except ChunkError as exc:
                raise CorruptObjectError("no body has this length") from exc
        modified = self.head.last_modified
        return ObjectInfo(
            size_bytes,
            self.head.headers.content_type,
            object_metadata.decode_caller_metadata(self.head.metadata),
            etag=etag,
            last_modified=object_metadata.stored_at(self.head.metadata, modified) or modified,
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the plaintext in order, each piece authenticated; complete only once this ends.

        Raises:
            CorruptObjectError: a chunk fails, or the body is cut.
            StorageUnavailableError: the connection broke.
        """
        if self.opened is None:
            yield self._start
            async for piece in self._rest:
                yield piece
            return
        try:
            async for piece in self._decrypt(self.opened.dek):
                if piece:
                    yield piece
        except SealError as exc:
            raise CorruptObjectError("the body does not authenticate") from exc

    async def _decrypt(self, dek: bytes) -> AsyncIterator[bytes]:
        opener = Opener(dek, BODY_CONTEXT, self._start[:HEADER_BYTES])
        yield opener.update(self._start[HEADER_BYTES:])
        async for piece in self._rest:
            yield opener.update(piece)
        yield opener.finish()


@asynccontextmanager
async def open_object(
    storage: Storage, object_key: str, access: OperatorAccess
) -> AsyncIterator[OpenObject]:
    """Open an object with one GET, so that header, metadata and body belong together.

    Raises:
        NotFoundError: no object, or a tombstone.
        NoUsableWrapError, CorruptObjectError, UnknownAlgorithmError, WrapsDisagreeError: see
            SPEC 4 and 8.2.
        KeyringRolledBackError: the operator's keyring is older than the object (SPEC 5.4).
        UnknownMasterKeyError: the keyring names a master key that is not available.
        KmsUnavailableError: the provider of a needed master key is unavailable.
        CustomerKeyUnavailableError: a needed customer secret was not given.
        ArchivedObjectError: the object must be restored first.
        StorageUnavailableError: the storage failed.
    """
    try:
        async with storage.stream(object_s3_key(access.project, object_key)) as stream:
            pieces = stream.chunks(READ_BYTES)
            start = await read_first_bytes(pieces)
            envelope = object_metadata.parse(stream.head.metadata)
            # Read after the object: only then does a higher generation in it mean anything.
            keyring = await _read_keyring(storage, access)
            opened = await _open_dek(access, keyring, envelope, start[:HEADER_BYTES], object_key)
            if keyring is not None:
                check_not_rolled_back(keyring, envelope, opened)
            yield OpenObject(stream, start, pieces, opened)
    except MissingError as exc:
        raise NotFoundError(object_key) from exc
    except ArchivedError as exc:
        raise ArchivedObjectError(object_key) from exc


async def _open_dek(
    access: OperatorAccess,
    keyring: Keyring | None,
    envelope: Envelope,
    header: bytes,
    object_key: str,
) -> OpenedDek | None:
    async def opening_with(secrets: CustomerSecrets) -> OpenedDek | None:
        def opening(keks: AdminKeks) -> OpenedDek | None:
            reader = ReaderKeys(access.project, admin_keks=keks.with_secrets(secrets))
            if keyring is not None:
                reader = ReaderKeys.of(keyring, reader.admin_keks, None)
            return open_dek(envelope, header, object_key, reader)

        return await access.operator_keys.open_with(access.project, opening)

    if keyring is None:
        return await opening_with(access.customer_keys.by_label(envelope))
    return await access.customer_keys.open_with(keyring, opening_with)


async def _read_keyring(storage: Storage, access: OperatorAccess) -> Keyring | None:
    """Return the keyring, if it exists.

    Without it the master key still opens its wraps, but no plaintext is allowed.
    """
    try:
        _, record = await storage.read(keyring_s3_key(access.project))
    except MissingError:
        return None
    return await parse_keyring(record, access.project, access.operator_keys)
