"""Put an upload's object into the bucket: at once, streamed, or in parts (SPEC 7.2, 7.3, 8.4).

`keyturn_workers.core.storage_port` aborts a multipart upload that fails. If the worker was killed,
the delivery that stores the object aborts it (`abort_leftovers`), or else the cleanup of staging.

An object that exists within a lease of the rotation that it missed is covered by that rotation's
sweep: every proof comes later than two leases. So an encrypted object whose one put was
acknowledged within a lease of the keyring read that it rests on needs no second read. A streamed
body, which may take longer, reads the keyring before its last piece.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from keyturn.crypto.cobblestone import seal, sealed_size
from keyturn.crypto.wraps import BODY_CONTEXT, transport_context
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.messages.requests import InlineBody, StagedBody
from keyturn.parts import part_size, send_parts, split_into_parts
from keyturn_workers.core.body_stream import check_before_last_piece, seal_stream
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import IfAbsent, IfMatch, WriteResult
from keyturn_workers.pipeline.upload.attempt import Attempt, UploadContext
from keyturn_workers.pipeline.upload.body import (
    decrypt_stream,
    open_inline,
    open_source,
    open_staged,
    staged_plaintext_size,
    with_description_of,
)
from keyturn_workers.storage.multipart import abort_multipart, open_multipart

_PARTS_IN_FLIGHT: Final = 3

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PutResult:
    """The object that an attempt stored.

    `size_bytes` is that of the plaintext. `snapshot` is the keyring read that the wraps rest on;
    if `within_lease`, the keyring need not be read again (see the module's docstring).
    """

    size_bytes: int
    etag: str
    snapshot: KeyringSnapshot
    is_encrypted: bool
    within_lease: bool


class StateMovedError(Exception):
    """The desired state moved before the end of a body that took long."""


async def put_object(context: UploadContext, attempt: Attempt) -> PutResult:
    """Open the request's body and put the object.

    Raises:
        BadSealError, BodyTooLargeError, StagedBodyMissingError: the body cannot be stored.
        SourceMissingError, SourceChangedError, SourceUnavailableError: the source does not give it.
        MalformedRequestError: nor can its content type or its metadata, or it is encrypted already.
        PreconditionError: the key is taken, or the object to replace has changed.
        RefusedError: the put came after its lease.
        StateMovedError: the wraps are outdated; nothing was stored.
        MissingError: the parts were aborted, or the bucket is gone.
        StorageUnavailableError: the outcome is unknown.
    """
    request, transport_key = attempt.upload.request, attempt.transport_key
    if isinstance(request.body, InlineBody):
        plaintext = open_inline(request.body, transport_key, request.upload_id)
        return await _put_at_once(context, attempt, plaintext)
    if not isinstance(request.body, StagedBody):
        return await _put_from_source(context, attempt)
    size_bytes = staged_plaintext_size(request.body.staged.size, context.limits.upload_max_bytes)
    async with open_staged(context, attempt.upload) as sealed:
        pieces = decrypt_stream(sealed, transport_key, transport_context(request.upload_id))
        if size_bytes == 0 and isinstance(attempt.condition, IfMatch):
            # A streamed put may end long after its lease. An empty body has the ETag of every
            # tombstone: over the upload's own plaintext, its condition would then bring back
            # an object whose delete was published meanwhile.
            plaintext = b"".join([piece async for piece in pieces])
            return await _put_at_once(context, attempt, plaintext)
        return await _put_stream(context, attempt, pieces, size_bytes)


async def _put_from_source(context: UploadContext, attempt: Attempt) -> PutResult:
    size_bytes = attempt.upload.size_bytes()
    if sealed_size(size_bytes) > context.limits.upload_max_bytes:
        raise BodyTooLargeError(
            f"a sealed body has at most {context.limits.upload_max_bytes} bytes"
        )
    async with open_source(context, attempt.upload) as found:
        attempt = replace(attempt, upload=with_description_of(attempt.upload, found.head))
        if attempt.upload.is_streamed:
            return await _put_stream(context, attempt, found.pieces, size_bytes)
        plaintext = b"".join([piece async for piece in found.pieces])
    return await _put_at_once(context, attempt, plaintext)


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
    if not attempt.is_encrypted:
        return await _put_pieces(context, attempt, plaintext, size_bytes, size_bytes)
    pieces = seal_stream(plaintext, attempt.dek)
    return await _put_pieces(context, attempt, pieces, size_bytes, sealed_size(size_bytes))


async def _put_pieces(
    context: UploadContext,
    attempt: Attempt,
    pieces: AsyncIterator[bytes],
    size_bytes: int,
    body_bytes: int,
) -> PutResult:
    """Put `body_bytes` in total. `size_bytes` is the plaintext size of the request's body."""
    if (
        context.storage.capabilities.conditional_completion
        and isinstance(attempt.condition, IfAbsent)
        and body_bytes > context.limits.part_size_bytes
    ):
        return await _put_in_parts(context, attempt, pieces, size_bytes, body_bytes)
    headers = attempt.headers(size_bytes)
    sent_s = context.keyrings.clock.local_s()

    async def check() -> None:
        _check_state(await context.keyrings.read_leased(attempt.upload.request.project), attempt)

    written = await context.storage.put_stream(
        attempt.upload.s3_key,
        check_before_last_piece(pieces, check),
        body_bytes,
        headers,
        condition=attempt.condition,
        lease=attempt.snapshot.lease,
    )
    return _stored(context, attempt, size_bytes, written, sent_s)


def _stored(
    context: UploadContext, attempt: Attempt, size_bytes: int, written: WriteResult, sent_s: float
) -> PutResult:
    """The result of one put; called as soon as its response arrives."""
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
        put = partial(storage.upload_part, s3_key, upload_id)
        bodies = split_into_parts(pieces, part_bytes)
        parts = await send_parts(bodies, put, at_once=_PARTS_IN_FLIGHT)
        # The wraps were fixed when the upload began: they must still be the desired ones.
        snapshot = await context.keyrings.read_fresh(attempt.upload.request.project)
        _check_state(snapshot, attempt)
        written = await storage.complete_multipart(
            s3_key, upload_id, parts, condition=attempt.condition, lease=snapshot.lease
        )
    # Never within the lease: some parts came before this keyring read, and a completion is no put.
    return PutResult(size_bytes, written.etag, snapshot, attempt.is_encrypted, within_lease=False)


def _check_state(now: KeyringSnapshot, attempt: Attempt) -> None:
    if not now.desired.same_state(attempt.snapshot.desired):
        raise StateMovedError


async def abort_leftovers(storage: Storage, s3_key: str) -> None:
    """Abort multipart uploads that earlier deliveries left at this key, once its object exists.

    Never earlier: another delivery or another upload may be sending parts there, and must not
    lose them while it can still win the key. On failure, the cleanup of staging aborts them.
    """
    try:
        async for leftover in storage.list_multipart_uploads(s3_key):
            if leftover.key == s3_key:
                await abort_multipart(storage, s3_key, leftover.upload_id)
    except (StorageUnavailableError, StorageResponseError) as exc:
        _log.warning("multipart uploads not listed", s3_key=s3_key, problem=type(exc).__name__)


@dataclass(frozen=True, slots=True)
class PutResponse:
    """The storage's response to the request that stored an object.

    Attributes:
        date: its `Date` header, if any.
        agrees: the date agrees with the storage's clock as this process knows it.
        received_s: when the response arrived, by the process's own clock.
        by_one_put: False for the completion of a multipart upload.
    """

    date: datetime | None
    agrees: bool
    received_s: float
    by_one_put: bool


def exists_within_lease(
    snapshot: KeyringSnapshot, response: PutResponse, *, is_encrypted: bool
) -> bool:
    """Check that no rotation can have a proof that missed the object; if not, re-read the keyring.

    `snapshot` is the keyring read that the object's wraps rest on. Plaintext never passes: it may
    be forbidden meanwhile, and then no sweep encrypts it.
    """
    lease_s, keyring_lease_s = snapshot.lease_s, snapshot.keyring.lease_s
    if not (is_encrypted and response.by_one_put and response.agrees and snapshot.leased):
        return False
    # A worker whose lease is longer than any that the record names may be later than the
    # proofs expect.
    if response.date is None or lease_s > keyring_lease_s:
        return False
    by_storage_clock = response.date - snapshot.read_at < timedelta(seconds=lease_s)
    # A front end whose clock is slow, or that dates a response before the commit, is not
    # enough: the process's own clock must agree.
    return by_storage_clock and response.received_s - snapshot.sent_s < lease_s
