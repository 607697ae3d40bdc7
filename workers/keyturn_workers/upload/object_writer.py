"""Putting an upload's object into the bucket: at once, streamed, or in parts (SPEC 7.2, 8.4)."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from keyturn.crypto import BODY_CONTEXT, seal, sealed_size, transport_context
from keyturn.messages import InlineBody
from keyturn_workers.keyring import KeyringSnapshot
from keyturn_workers.objects.body_stream import seal_stream
from keyturn_workers.storage import IfAbsent, IfMatch, WriteResult
from keyturn_workers.storage.multipart import open_multipart
from keyturn_workers.upload import body_pipeline
from keyturn_workers.upload.attempt import Attempt
from keyturn_workers.upload.context import UploadContext
from keyturn_workers.upload.keyring_recheck import PutResponse, exists_within_lease
from keyturn_workers.upload.multipart import part_size, put_parts
from keyturn_workers.upload.request_body import open_staged


@dataclass(frozen=True, slots=True)
class PutResult:
    """What an attempt stored.

    Attributes:
        size_bytes: of the plaintext.
        etag: of the object.
        snapshot: the keyring read that the wraps rest on.
        is_encrypted: False for plaintext.
        within_lease: the keyring need not be read again
            (`keyturn_workers.upload.keyring_recheck`).
    """

    size_bytes: int
    etag: str
    snapshot: KeyringSnapshot
    is_encrypted: bool
    within_lease: bool


class StateMovedError(Exception):
    """The desired state moved before a multipart upload was completed."""


async def put_object(context: UploadContext, attempt: Attempt) -> PutResult:
    """Open the request's body and put the object.

    Raises:
        BadSealError, BodyTooLargeError, StagedBodyMissingError: the body cannot be stored.
        PreconditionError: the key is taken, or what should be replaced changed.
        RefusedError: the put came after its lease.
        StateMovedError: the wraps are outdated; nothing was stored.
        MissingError: the parts were aborted, or the bucket is gone.
        StorageUnavailableError: the outcome is unknown.
    """
    request, transport_key = attempt.upload.request, attempt.transport_key
    if isinstance(request.body, InlineBody):
        plaintext = body_pipeline.open_inline(request.body, transport_key, request.upload_id)
        return await _put_at_once(context, attempt, plaintext)
    size_bytes = body_pipeline.staged_plaintext_size(
        request.body.staged.size, context.limits.upload_max_bytes
    )
    async with open_staged(context, attempt.upload) as sealed:
        pieces = body_pipeline.decrypt_stream(
            sealed, transport_key, transport_context(request.upload_id)
        )
        if size_bytes == 0 and isinstance(attempt.condition, IfMatch):
            # A streamed put may end long after its lease. An empty body has the ETag of every
            # tombstone: over the upload's own plaintext, its condition would then bring back
            # an object whose delete was published meanwhile.
            plaintext = b"".join([piece async for piece in pieces])
            return await _put_at_once(context, attempt, plaintext)
        return await _put_stream(context, attempt, pieces, size_bytes)


async def _put_at_once(context: UploadContext, attempt: Attempt, plaintext: bytes) -> PutResult:
    body = seal(attempt.dek, BODY_CONTEXT, plaintext) if attempt.is_encrypted else plaintext
    headers = attempt.headers(len(plaintext))
    sent_s = context.keyrings.clock.local_s()
    written = await context.storage.put(
        attempt.upload.s3_key,
        body,
        headers,
        condition=attempt.condition,
        lease=attempt.snapshot.lease,
    )
    return _stored(context, attempt, len(plaintext), written, sent_s)


async def _put_stream(
    context: UploadContext, attempt: Attempt, plaintext: AsyncIterator[bytes], size_bytes: int
) -> PutResult:
    pieces = seal_stream(plaintext, attempt.dek) if attempt.is_encrypted else plaintext
    body_bytes = sealed_size(size_bytes) if attempt.is_encrypted else size_bytes
    if (
        context.storage.capabilities.conditional_completion
        and isinstance(attempt.condition, IfAbsent)
        and body_bytes > context.limits.part_size_bytes
    ):
        return await _put_in_parts(context, attempt, pieces, size_bytes, body_bytes)
    headers = attempt.headers(size_bytes)
    sent_s = context.keyrings.clock.local_s()
    written = await context.storage.put_stream(
        attempt.upload.s3_key,
        pieces,
        body_bytes,
        headers,
        condition=attempt.condition,
        lease=attempt.snapshot.lease,
    )
    return _stored(context, attempt, size_bytes, written, sent_s)


def _stored(
    context: UploadContext, attempt: Attempt, size_bytes: int, written: WriteResult, sent_s: float
) -> PutResult:
    """What one put stored; called as soon as its response is there."""
    clock, snapshot = context.keyrings.clock, attempt.snapshot
    received_s = clock.local_s()
    agrees = clock.observe(written.date, sent_s, received_s).agrees
    response = PutResponse(written.date, agrees, received_s, by_one_put=True)
    within_lease = exists_within_lease(snapshot, response, is_encrypted=attempt.is_encrypted)
    return PutResult(size_bytes, written.etag, snapshot, attempt.is_encrypted, within_lease)


async def _put_in_parts(
    context: UploadContext,
    attempt: Attempt,
    pieces: AsyncIterator[bytes],
    size_bytes: int,
    body_bytes: int,
) -> PutResult:
    storage, s3_key = context.storage, attempt.upload.s3_key
    part_bytes = part_size(body_bytes, context.limits.part_size_bytes)
    async with open_multipart(storage, s3_key, attempt.headers(size_bytes)) as upload_id:
        parts = await put_parts(
            storage, s3_key, upload_id, body_pipeline.split_into_parts(pieces, part_bytes)
        )
        # The wraps were fixed when the upload began: they must still be the desired ones.
        snapshot = await context.keyrings.read_fresh(attempt.upload.request.project)
        if not snapshot.desired.same_state(attempt.snapshot.desired):
            raise StateMovedError
        written = await storage.complete_multipart(
            s3_key, upload_id, parts, condition=attempt.condition, lease=snapshot.lease
        )
    # Never within the lease: some parts came before this keyring read, and a completion is no put.
    return PutResult(size_bytes, written.etag, snapshot, attempt.is_encrypted, within_lease=False)
