"""The body of an upload request as plaintext: inline, staged, of a source (SPEC 3, 6.4, 7.2, 17.2).

Only an inline body is held in memory completely. No byte is released before its chunk is
authenticated, so a body that was tampered with cuts the put short.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.cobblestone import (
    HEADER_BYTES,
    Opener,
    open_sealed,
    plaintext_size,
    sealed_size,
)
from keyturn.crypto.intake import upload_info
from keyturn.crypto.wraps import transport_context
from keyturn.errors import (
    BadSealError,
    BodyTooLargeError,
    ChunkError,
    MalformedRequestError,
    SealError,
    SourceChangedError,
    SourceMissingError,
    StagedBodyMissingError,
)
from keyturn.messages.requests import INLINE_MAX_BYTES, InlineBody, StagedBody
from keyturn.metadata import OWN_PREFIX
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.pipeline.sources.description import content_type_of, metadata_of
from keyturn_workers.pipeline.upload.attempt import Upload, UploadContext

PIECE_BYTES: Final = 1024 * 1024
_INLINE_MAX_SEALED_BYTES: Final = sealed_size(INLINE_MAX_BYTES)
BODY_GONE: Final = (StagedBodyMissingError, SourceMissingError, SourceChangedError)
"""Errors of a body that is not where the request says; its upload may be stored by now."""


def open_inline(body: InlineBody, transport_key: bytes, upload_id: str) -> bytes:
    """The plaintext of an inline body.

    Raises:
        BodyTooLargeError: above 256 KiB of plaintext.
        BadSealError: sealed for another upload, or damaged.
    """
    sealed = from_base64(body.inline)
    if len(sealed) > _INLINE_MAX_SEALED_BYTES:
        raise BodyTooLargeError(f"an inline body has at most {INLINE_MAX_BYTES} bytes of plaintext")
    try:
        return open_sealed(transport_key, transport_context(upload_id), sealed)
    except SealError as exc:
        raise BadSealError("the body does not open for this upload") from exc


def staged_plaintext_size(sealed_bytes: int, max_bytes: int) -> int:
    """The bytes of plaintext in a staged body of this size.

    Raises:
        BodyTooLargeError: above the limit for sealed bodies.
        BadSealError: no sealed body has this size.
    """
    if sealed_bytes > max_bytes:
        raise BodyTooLargeError(f"a staged body has at most {max_bytes} bytes")
    try:
        return plaintext_size(sealed_bytes)
    except ChunkError as exc:
        raise BadSealError("no sealed body has this size") from exc


async def decrypt_stream(
    sealed: AsyncIterator[bytes], secret: bytes, context: bytes
) -> AsyncIterator[bytes]:
    """The plaintext of a sealed body, in authenticated pieces.

    Raises:
        BadSealError: sealed under another secret or context, or damaged; at its end at the latest.
    """
    try:
        header = bytearray()
        opener: Opener | None = None
        async for piece in sealed:
            rest: bytes | memoryview = piece
            if opener is None:
                missing = HEADER_BYTES - len(header)
                header += piece[:missing]
                if len(header) < HEADER_BYTES:
                    continue
                opener = Opener(secret, context, bytes(header))
                rest = memoryview(piece)[missing:]
            if plaintext := opener.update(rest):
                yield plaintext
        if opener is None:
            raise BadSealError("the body is shorter than its header")
        yield opener.finish()
    except SealError as exc:
        raise BadSealError("the body does not open for this upload") from exc


async def digest(pieces: AsyncIterator[bytes]) -> bytes:
    """SHA-256 of a body, to compare bodies of any size."""
    hashed = hashlib.sha256()
    async for piece in pieces:
        hashed.update(piece)
    return hashed.digest()


def open_transport_key(context: UploadContext, upload: Upload) -> bytes:
    """The 32-byte key that the publisher sealed the body with; empty for the object of a source.

    Raises:
        UnknownIntakeKeyError, BadSealError: the sealed key does not open.
    """
    request = upload.request
    if request.sealed_key is None:
        return b""
    info = upload_info(request.upload_id, request.project, request.key)
    return context.sessions.open_key(request.sealed_key, info, upload.publisher)


@asynccontextmanager
async def open_staged(
    context: UploadContext, upload: Upload
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The sealed bytes that the publisher put into staging.

    Raises:
        StagedBodyMissingError: staging has no body for this upload, or one of another size.
    """
    if not isinstance(upload.request.body, StagedBody):
        raise TypeError("not a staged body")
    expected_bytes = upload.request.body.staged.size
    async with AsyncExitStack() as stack:
        try:
            stream = await stack.enter_async_context(context.storage.stream(upload.staging_s3_key))
        except MissingError as exc:
            raise StagedBodyMissingError("staging has no body for this upload") from exc
        if stream.head.size_bytes != expected_bytes:
            raise StagedBodyMissingError(
                f"staging has {stream.head.size_bytes} bytes, the request says {expected_bytes}"
            )
        yield stream.chunks(PIECE_BYTES)


@dataclass(frozen=True, slots=True)
class FoundObject:
    """The object of a source: its head, and its bytes."""

    head: ObjectHead
    pieces: AsyncIterator[bytes]


@asynccontextmanager
async def open_source(context: UploadContext, upload: Upload) -> AsyncIterator[FoundObject]:
    """The object of a source that the request names.

    Raises:
        SourceMissingError, SourceChangedError, SourceUnavailableError: the source does not give it.
    """
    if upload.source is None:
        raise TypeError("not the body of a source")
    bucket = context.sources.bucket_of(upload.request)
    async with bucket.stream(upload.source) as stream:
        yield FoundObject(stream.head, bucket.pieces_of(stream))


def with_description_of(upload: Upload, head: ObjectHead) -> Upload:
    """The upload with the content type and metadata of the source's object.

    A value that the request names has precedence.

    Raises:
        MalformedRequestError: SPEC 4.3 does not allow them, or the object is encrypted already.
    """
    if any(name.startswith(OWN_PREFIX) for name in head.metadata):
        raise MalformedRequestError("the source's object has enc- metadata: it is encrypted")
    request = upload.request
    changes: dict[str, object] = {}
    if request.content_type is None:
        changes["content_type"] = content_type_of(head)
    if request.metadata is None:
        changes["metadata"] = metadata_of(head)
    return replace(upload, request=request.model_copy(update=changes))


@asynccontextmanager
async def open_plaintext(
    context: UploadContext, upload: Upload
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The plaintext of the request's body, to compare it with an object.

    Raises:
        UnknownIntakeKeyError, BadSealError, StagedBodyMissingError: the body does not open.
        SourceMissingError, SourceChangedError, SourceUnavailableError: the source does not give it.
    """
    if upload.source is not None:
        async with context.comparison_slots, open_source(context, upload) as found:
            yield found.pieces
        return
    transport_key = open_transport_key(context, upload)
    body, upload_id = upload.request.body, upload.request.upload_id
    if isinstance(body, InlineBody):
        yield _single(open_inline(body, transport_key, upload_id))
        return
    async with context.comparison_slots, open_staged(context, upload) as sealed:
        yield decrypt_stream(sealed, transport_key, transport_context(upload_id))


async def _single(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
