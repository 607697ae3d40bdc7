"""Opening the body of an upload request, inline or staged (SPEC 3, 6.4, 7.2)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from keyturn.crypto import transport_context, upload_info
from keyturn.errors import StagedBodyMissingError
from keyturn.messages import InlineBody, StagedBody
from keyturn_workers.errors import MissingError
from keyturn_workers.upload import body_pipeline
from keyturn_workers.upload.context import Upload, UploadContext
from keyturn_workers.worker.authorization import open_secret


def open_transport_key(context: UploadContext, upload: Upload) -> bytes:
    """The 32-byte key that the publisher sealed the body with.

    Raises:
        UnknownIntakeKeyError, BadSealError: the sealed key does not open.
    """
    request = upload.request
    info = upload_info(request.upload_id, request.project, request.key)
    return open_secret(request.sealed_key, info, context.intake_keys)


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
        yield stream.chunks(body_pipeline.PIECE_BYTES)


@asynccontextmanager
async def open_plaintext(
    context: UploadContext, upload: Upload
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The plaintext of the request's body, to compare it with an object.

    Raises:
        UnknownIntakeKeyError, BadSealError, StagedBodyMissingError: the body does not open.
    """
    transport_key = open_transport_key(context, upload)
    body, upload_id = upload.request.body, upload.request.upload_id
    if isinstance(body, InlineBody):
        yield _single(body_pipeline.open_inline(body, transport_key, upload_id))
        return
    async with context.comparison_slots, open_staged(context, upload) as sealed:
        yield body_pipeline.decrypt_stream(sealed, transport_key, transport_context(upload_id))


async def _single(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
