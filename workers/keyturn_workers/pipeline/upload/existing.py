"""The object at an upload's target (SPEC 7.1, 7.2).

Read whenever an upload may have been stored before: on a second delivery, a retry, a put that was
refused because the key is taken, a staged body that is gone.

An upload's id is not authenticated: a bucket writer can put it on any object. An object is this
upload's own by its tag, which only a holder of its DEK can make, or, if it has none, by its
plaintext.
"""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import HEADER_BYTES, plaintext_size
from keyturn.crypto.wraps import BODY_CONTEXT, upload_tag
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    BadSealError,
    ChunkError,
    CorruptObjectError,
    DeletedKeyError,
    StorageUnavailableError,
    UnknownAlgorithmError,
)
from keyturn.identifiers import object_s3_key
from keyturn.messages.requests import UploadRequested
from keyturn.metadata import DELETED, UPLOAD, Plaintext, Wraps
from keyturn_workers.core.errors import ArchivedError, MissingError, StorageResponseError
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.core.wraps import verify_upload
from keyturn_workers.pipeline.upload.attempt import Upload, UploadContext
from keyturn_workers.pipeline.upload.body import (
    BODY_GONE,
    PIECE_BYTES,
    decrypt_stream,
    digest,
    open_plaintext,
)


@dataclass(frozen=True, slots=True)
class ExistingUpload:
    """This upload's own object.

    Attributes:
        size_bytes: the size of the plaintext.
        etag: the object's.
        snapshot: a keyring read that began after the object was read.
        current: the object matches the desired state in `snapshot`.
        needs_encryption: it is the upload's own plaintext, and `snapshot` forbids plaintext. The
            request's own body must replace it, conditional on its ETag.
    """

    size_bytes: int
    etag: str
    snapshot: KeyringSnapshot
    current: bool
    needs_encryption: bool = False


async def find_own_object(
    context: UploadContext, upload: Upload, known_etag: str | None = None
) -> ExistingUpload | None:
    """This upload's own object, or None if there is no object at its target.

    `known_etag` is that of plaintext that this upload put itself, or that was already compared.

    Raises:
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: a customer secret
            is missing.
        DeletedKeyError: a tombstone is there.
        AlreadyExistsError: another upload's object is there, whatever id it carries.
        CorruptObjectError: the object carries this upload's id, but does not verify.
        StagedBodyMissingError, SourceMissingError, SourceChangedError: only a comparison could
            show whose object it is, and the request's body is gone. Plaintext of the same length
            is accepted where plaintext is allowed.
        BadSealError, UnknownIntakeKeyError: the request's own body does not open either.
    """
    request = upload.request
    try:
        head, header = await context.storage.read_start(upload.s3_key, HEADER_BYTES)
    except MissingError:
        return None
    if head.metadata.get(object_metadata.ALGO) == DELETED:
        raise DeletedKeyError(f"{request.key} was deleted")
    if head.metadata.get(UPLOAD) != request.upload_id:
        raise AlreadyExistsError(f"{request.key} holds another object")
    # Read after the object: only then does a higher generation in the object mean anything.
    snapshot = await context.keyrings.read_fresh(request.project)
    try:
        envelope = object_metadata.parse(head.metadata)
    except UnknownAlgorithmError as exc:
        raise CorruptObjectError(f"unknown algorithm {exc.detail}") from exc
    match envelope:
        case Plaintext():
            return await _check_plaintext(context, upload, head, snapshot, known_etag)
        case Wraps():
            return await _check_wrapped(context, upload, head, header, envelope, snapshot)
        case _:
            raise CorruptObjectError("it carries this upload's id, but not its wraps")


async def holds_another_upload(request: UploadRequested, storage: Storage) -> bool:
    """Check if an object with another upload's id exists at the target."""
    s3_key = object_s3_key(request.project, request.key)
    try:
        head, _ = await storage.read_start(s3_key, HEADER_BYTES)
    except StorageResponseError:
        return False
    return head.metadata.get(UPLOAD) not in {None, request.upload_id}


async def _check_plaintext(
    context: UploadContext,
    upload: Upload,
    head: ObjectHead,
    snapshot: KeyringSnapshot,
    known_etag: str | None,
) -> ExistingUpload:
    """Accept plaintext with this upload's id if its bytes are those of the request's body."""
    allowed = snapshot.desired.plaintext_allowed
    existing = ExistingUpload(
        head.size_bytes, head.etag, snapshot, current=allowed, needs_encryption=not allowed
    )
    try:
        if head.etag == known_etag or await _has_body_of(context, upload, head, None):
            return existing
    except BODY_GONE:
        # Published again after its staged body, or the source's object, was deleted. Where
        # plaintext is allowed, nothing authenticates an object, so its length must suffice;
        # without a body it cannot be encrypted.
        if allowed and head.size_bytes == upload.size_bytes():
            return existing
        raise
    if allowed:
        raise AlreadyExistsError(
            f"{upload.request.key} holds another object under this upload's id"
        )
    # A sealed body whose metadata was stripped, or a forgery.
    raise CorruptObjectError("plaintext under this upload's id, and plaintext is forbidden")


async def _check_wrapped(
    context: UploadContext,
    upload: Upload,
    head: ObjectHead,
    header: bytes,
    wraps: Wraps,
    snapshot: KeyringSnapshot,
) -> ExistingUpload:
    object_key = upload.request.key
    if not header:
        raise CorruptObjectError(
            "its object is empty: a connection to the storage was cut, or another program wrote it"
        )
    keyring = snapshot.keyring
    secrets = keyring.secrets_from(upload.secrets)
    verified = await context.operator_keys.open_with(
        upload.request.project,
        lambda keks: verify_upload(wraps, header, object_key, keyring, keks.with_secrets(secrets)),
    )
    size_bytes = _plaintext_size(head)
    tag = object_metadata.upload_tag(head.metadata)
    if tag is None:
        # For example plaintext that a sweep encrypted in place has no tag.
        if not await _has_body_of(context, upload, head, verified.dek):
            raise AlreadyExistsError(f"{object_key} holds another object")
    elif not hmac.compare_digest(tag, _tag(upload, verified.dek)):
        raise AlreadyExistsError(f"{object_key} holds another upload's object")
    elif upload.size_bytes() != size_bytes:
        raise CorruptObjectError("it carries this upload's tag, but has another length")
    return ExistingUpload(size_bytes, head.etag, snapshot, verified.current)


def _tag(upload: Upload, dek: bytes) -> bytes:
    request = upload.request
    return upload_tag(
        dek,
        publisher=upload.tag_publisher,
        project=request.project,
        object_key=request.key,
        upload_id=request.upload_id,
        size_bytes=upload.size_bytes(),
    )


async def _has_body_of(
    context: UploadContext, upload: Upload, head: ObjectHead, dek: bytes | None
) -> bool:
    """Compare the object's plaintext with the request's body, in bounded memory.

    `dek` is the object's; None if the object is plaintext.
    """
    size_bytes = head.size_bytes if dek is None else _plaintext_size(head)
    if size_bytes != upload.size_bytes():
        return False
    async with open_plaintext(context, upload) as pieces:
        expected = await digest(pieces)
    async with _open_object(context, upload, head, dek) as pieces:
        return await digest(pieces) == expected


@asynccontextmanager
async def _open_object(
    context: UploadContext, upload: Upload, head: ObjectHead, dek: bytes | None
) -> AsyncIterator[AsyncIterator[bytes]]:
    try:
        async with context.storage.stream(upload.s3_key, if_match=head.etag) as stream:
            chunks = stream.chunks(PIECE_BYTES)
            yield chunks if dek is None else _decrypt(chunks, dek)
    except ArchivedError as exc:
        raise ArchivedObjectError("its storage class must be restored first") from exc
    except StorageResponseError as exc:
        raise StorageUnavailableError("the object changed while it was compared") from exc


async def _decrypt(chunks: AsyncIterator[bytes], dek: bytes) -> AsyncIterator[bytes]:
    try:
        async for piece in decrypt_stream(chunks, dek, BODY_CONTEXT):
            yield piece
    except BadSealError as exc:
        raise CorruptObjectError("a chunk of the object does not open") from exc


def _plaintext_size(head: ObjectHead) -> int:
    try:
        return plaintext_size(head.size_bytes)
    except ChunkError as exc:
        raise CorruptObjectError("no sealed body has this length") from exc
