"""What stands where an upload wants to go (SPEC 7.1, 7.2).

Every second look at a target goes through here: a second delivery, a retry, a put that
was refused because something stands, a staged body that is gone.

An upload's id is not authenticated: a bucket writer can put it on any object. An object is
this upload's own by its tag, which only a holder of its DEK can make, or, where it has none,
by its plaintext.
"""

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    ChunkError,
    b64_decode,
    plaintext_size,
    upload_tag,
)
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    BadSealError,
    CorruptObjectError,
    DeletedKeyError,
    StagedBodyMissingError,
    StorageUnavailableError,
    UnknownAlgorithmError,
)
from keyturn.identifiers import object_s3_key
from keyturn.messages import InlineBody, StagedBody, UploadRequested
from keyturn.metadata import DELETED, UPLOAD, Plaintext, Wraps
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.verify import verify_upload
from keyturn_workers.storage import ObjectHead, Storage
from keyturn_workers.upload import body_pipeline


@dataclass(frozen=True, slots=True)
class UploadIdentity:
    """What an upload knows of itself.

    Attributes:
        request: as it was signed.
        publisher: who signed it.
        plaintext: opens the request's own body, piece by piece.
        known_etag: of plaintext that this upload put itself, or that was compared already.
    """

    request: UploadRequested
    publisher: str
    plaintext: Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
    known_etag: str | None = None


@dataclass(frozen=True, slots=True)
class ExistingUpload:
    """This upload's own object: `size_bytes` of plaintext, made for `snapshot`.

    `current` is False where the object differs from the desired state in `snapshot`.
    `needs_encryption`: this is the upload's own plaintext, and `snapshot` forbids plaintext; the
    sealed body of the request must replace it, conditional on its ETag.
    """

    size_bytes: int
    etag: str
    snapshot: KeyringSnapshot
    current: bool
    needs_encryption: bool = False


async def find_own_object(
    own: UploadIdentity,
    storage: Storage,
    keyrings: KeyringReader,
    operator_keys: OperatorKeys,
) -> ExistingUpload | None:
    """This upload's own object, or None where nothing stands.

    Raises:
        DeletedKeyError: a tombstone stands there.
        AlreadyExistsError: another upload's object stands there, whatever id it carries.
        CorruptObjectError: it carries this upload's id, but does not verify.
        StagedBodyMissingError: only its bytes could tell whose it is, and the body that they
            would be compared with is gone; but for plaintext of the same length where it is
            allowed, which is taken for its own.
        BadSealError, UnknownIntakeKeyError: neither can the request's own body be opened.
    """
    request = own.request
    try:
        head, header = await storage.read_start(
            object_s3_key(request.project, request.key), HEADER_BYTES
        )
    except MissingError:
        return None
    if head.metadata.get(object_metadata.ALGO) == DELETED:
        raise DeletedKeyError(f"{request.key} was deleted")
    if head.metadata.get(UPLOAD) != request.upload_id:
        raise AlreadyExistsError(f"{request.key} holds another object")
    # Read after the object: only then does a higher generation in it mean anything.
    snapshot = await keyrings.read_fresh(request.project)
    try:
        envelope = object_metadata.parse(head.metadata)
    except UnknownAlgorithmError as exc:
        raise CorruptObjectError(f"unknown algorithm {exc.detail}") from exc
    match envelope:
        case Plaintext():
            return await _plaintext(own, storage, head, snapshot)
        case Wraps():
            return await _wrapped(own, storage, head, envelope, header, snapshot, operator_keys)
        case _:
            raise CorruptObjectError("it carries this upload's id, but not its wraps")


async def holds_another_upload(request: UploadRequested, storage: Storage) -> bool:
    """Whether an object with another upload's id stands at the target."""
    try:
        head, _ = await storage.read_start(
            object_s3_key(request.project, request.key), HEADER_BYTES
        )
    except StorageAnswerError:
        return False
    return head.metadata.get(UPLOAD) not in {None, request.upload_id}


async def _plaintext(
    own: UploadIdentity, storage: Storage, head: ObjectHead, snapshot: KeyringSnapshot
) -> ExistingUpload:
    """Plaintext with this upload's id: its own where the bytes are those of its request."""
    allowed = snapshot.desired.plaintext_allowed
    stored = ExistingUpload(
        head.size_bytes, head.etag, snapshot, current=allowed, needs_encryption=not allowed
    )
    try:
        if head.etag == own.known_etag or await _is_equal(own, storage, head, None):
            return stored
    except StagedBodyMissingError:
        # Published once more after its staged body was cleared. Where plaintext is allowed
        # nothing authenticates an object, so its length has to do; it cannot be sealed from here.
        if allowed and head.size_bytes == _requested_size(own.request):
            return stored
        raise
    if allowed:
        raise AlreadyExistsError(f"{own.request.key} holds another object under this upload's id")
    # A sealed body whose metadata was stripped, or forged.
    raise CorruptObjectError("plaintext under this upload's id, and plaintext is forbidden")


async def _wrapped(
    own: UploadIdentity,
    storage: Storage,
    head: ObjectHead,
    wraps: Wraps,
    header: bytes,
    snapshot: KeyringSnapshot,
    operator_keys: OperatorKeys,
) -> ExistingUpload:
    examined = verify_upload(wraps, header, own.request.key, snapshot.keyring, operator_keys)
    size_bytes = _plaintext_size(head)
    tag = object_metadata.upload_tag(head.metadata)
    if tag is None:
        # Of revision 1, or plaintext that a sweep encrypted in place.
        if not await _is_equal(own, storage, head, examined.dek):
            raise AlreadyExistsError(f"{own.request.key} holds another object")
    elif not hmac.compare_digest(tag, _tag(own, examined.dek)):
        raise AlreadyExistsError(f"{own.request.key} holds another upload's object")
    elif size_bytes != _requested_size(own.request):
        raise CorruptObjectError("it carries this upload's tag, but is of another length")
    return ExistingUpload(size_bytes, head.etag, snapshot, examined.current)


def _tag(own: UploadIdentity, dek: bytes) -> bytes:
    request = own.request
    return upload_tag(
        dek,
        publisher=own.publisher,
        project=request.project,
        key=request.key,
        upload_id=request.upload_id,
        size_bytes=_requested_size(request),
    )


async def _is_equal(
    own: UploadIdentity, storage: Storage, head: ObjectHead, dek: bytes | None
) -> bool:
    """Whether the object's plaintext is the request's body, in bounded memory.

    `dek` is the object's; None of an object that is plaintext itself.
    """
    size_bytes = head.size_bytes if dek is None else _plaintext_size(head)
    if size_bytes != _requested_size(own.request):
        return False
    async with own.plaintext() as pieces:
        wanted = await body_pipeline.digest(pieces)
    async with _object_plaintext(own, storage, head, dek) as pieces:
        return await body_pipeline.digest(pieces) == wanted


@asynccontextmanager
async def _object_plaintext(
    own: UploadIdentity, storage: Storage, head: ObjectHead, dek: bytes | None
) -> AsyncIterator[AsyncIterator[bytes]]:
    s3_key = object_s3_key(own.request.project, own.request.key)
    try:
        async with storage.stream(s3_key, if_match=head.etag) as stream:
            chunks = stream.chunks(body_pipeline.PIECE_BYTES)
            yield chunks if dek is None else _decrypt(chunks, dek)
    except ArchivedError as exc:
        raise ArchivedObjectError("its storage class must be restored first") from exc
    except StorageAnswerError as exc:
        raise StorageUnavailableError("the object changed while it was compared") from exc


async def _decrypt(chunks: AsyncIterator[bytes], dek: bytes) -> AsyncIterator[bytes]:
    try:
        async for piece in body_pipeline.decrypt_stream(chunks, dek, BODY_CONTEXT):
            yield piece
    except BadSealError as exc:
        raise CorruptObjectError("a chunk of the object does not open") from exc


def _plaintext_size(head: ObjectHead) -> int:
    try:
        return plaintext_size(head.size_bytes)
    except ChunkError as exc:
        raise CorruptObjectError("no sealed body has this length") from exc


def _requested_size(request: UploadRequested) -> int:
    """The bytes of plaintext in the request's body, by the length of its seal.

    Raises:
        BadSealError: no sealed body has this length.
    """
    match request.body:
        case InlineBody(inline=inline):
            sealed_bytes = len(b64_decode(inline))
        case StagedBody(staged=staged):
            sealed_bytes = staged.size
    try:
        return plaintext_size(sealed_bytes)
    except ChunkError as exc:
        raise BadSealError("no sealed body has this size") from exc
