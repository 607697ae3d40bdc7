"""Putting an upload's object into the bucket: at once, streamed, or in parts (SPEC 7.2, 7.3, 8.4).

`keyturn_workers.storage.port` aborts a multipart upload that fails. If the worker was killed,
the delivery that stores the object aborts it (`abort_leftovers`), or else the cleanup of staging.

An object that exists within a lease of the rotation that it missed is covered by that rotation's
sweep: every proof comes later than two leases. So an encrypted object whose one put was
acknowledged within a lease of the keyring read that it rests on needs no second read.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from keyturn.crypto import BODY_CONTEXT, seal, sealed_size, transport_context
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.messages import InlineBody, StagedBody
from keyturn.metadata import parse
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.keyring import KeyringSnapshot
from keyturn_workers.objects.body_stream import seal_stream
from keyturn_workers.objects.open_dek import ReaderKeys, open_dek
from keyturn_workers.objects.plan_action import V0_MIN_BYTES
from keyturn_workers.storage import IfAbsent, IfMatch, Part, Storage, WriteResult
from keyturn_workers.storage.port import abort_multipart, open_multipart
from keyturn_workers.upload.attempt import Attempt, UploadContext
from keyturn_workers.upload.body import (
    FoundObject,
    authentic_v0,
    decrypt_stream,
    is_v0,
    open_inline,
    open_source,
    open_staged,
    split_into_parts,
    staged_plaintext_size,
    with_description_of,
)

_MAX_PARTS: Final = 10_000
_PARTS_IN_FLIGHT: Final = 3

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PutResult:
    """What an attempt stored.

    Attributes:
        size_bytes: of the plaintext.
        etag: of the object.
        snapshot: the keyring read that the wraps rest on.
        is_encrypted: False for plaintext.
        within_lease: the keyring need not be read again
            (`keyturn_workers.upload.put`).
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
        SourceMissingError, SourceChangedError, SourceUnavailableError: the source does not give it.
        MalformedRequestError: nor can its content type or its metadata, or it is encrypted already.
        CorruptObjectError, NoUsableWrapError: an object of the earlier system does not open, or
            the project does not allow it.
        PreconditionError: the key is taken, or what should be replaced changed.
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
        if is_v0(found.head):
            return await _put_v0(context, attempt, found)
        if attempt.upload.is_streamed:
            return await _put_stream(context, attempt, found.pieces, size_bytes)
        plaintext = b"".join([piece async for piece in found.pieces])
    return await _put_at_once(context, attempt, plaintext)


async def _put_v0(context: UploadContext, attempt: Attempt, found: FoundObject) -> PutResult:
    """Put a body of the earlier system as it is, under wraps of the keyring (SPEC 17.2).

    Such a body does not commit to its key, so all of it must open before its last byte is sent.
    """
    request, size_bytes = attempt.upload.request, attempt.upload.size_bytes()
    keyring, envelope = attempt.snapshot.keyring, parse(found.head.metadata)
    opened = await context.operator_keys.open_with(
        request.project,
        lambda keks: open_dek(
            envelope, b"", request.key, ReaderKeys.of(keyring, keks, envelope, user_kek=None)
        ),
    )
    if opened is None:
        raise TypeError("not an object of the earlier system")
    attempt = replace(attempt, dek=opened.dek, algorithm=opened.algorithm, is_encrypted=True)
    pieces = authentic_v0(found.pieces, opened.dek)
    stored = await _put_pieces(context, attempt, pieces, size_bytes, size_bytes)
    return replace(stored, size_bytes=size_bytes - V0_MIN_BYTES)


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
    """Put what is stored: `body_bytes` in total. `size_bytes` is that of the request's body."""
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
        parts = await put_parts(storage, s3_key, upload_id, split_into_parts(pieces, part_bytes))
        # The wraps were fixed when the upload began: they must still be the desired ones.
        snapshot = await context.keyrings.read_fresh(attempt.upload.request.project)
        if not snapshot.desired.same_state(attempt.snapshot.desired):
            raise StateMovedError
        written = await storage.complete_multipart(
            s3_key, upload_id, parts, condition=attempt.condition, lease=snapshot.lease
        )
    # Never within the lease: some parts came before this keyring read, and a completion is no put.
    return PutResult(size_bytes, written.etag, snapshot, attempt.is_encrypted, within_lease=False)


def part_size(size_bytes: int, wanted_bytes: int) -> int:
    """The size of a part in bytes: as wanted, or larger if 10,000 parts need it."""
    return max(wanted_bytes, math.ceil(size_bytes / _MAX_PARTS))


async def abort_leftovers(storage: Storage, s3_key: str) -> None:
    """Abort what earlier deliveries left open at this key, once its object exists.

    Never earlier: another delivery or another upload may be sending parts there, and must not
    lose them while it can still win the key. What fails here is left to the cleanup of staging.
    """
    try:
        async for leftover in storage.list_multipart_uploads(s3_key):
            if leftover.key == s3_key:
                await abort_multipart(storage, s3_key, leftover.upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart uploads not listed", s3_key=s3_key, problem=type(exc).__name__)


async def put_parts(
    storage: Storage, s3_key: str, upload_id: str, parts: AsyncIterator[bytes]
) -> list[Part]:
    """Put parts, a few at a time; returns them in order."""
    done: list[Part] = []
    in_flight: set[asyncio.Task[Part]] = set()
    number = 0
    try:
        async for body in parts:
            number += 1
            if len(in_flight) == _PARTS_IN_FLIGHT:
                in_flight = await _first_done(in_flight, done)
            put = storage.upload_part(s3_key, upload_id, number, body)
            in_flight.add(asyncio.ensure_future(put))
        while in_flight:
            in_flight = await _first_done(in_flight, done)
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)
    return sorted(done, key=lambda part: part.number)


async def _first_done(
    in_flight: set[asyncio.Task[Part]], done: list[Part]
) -> set[asyncio.Task[Part]]:
    ready, waiting = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
    done.extend(task.result() for task in ready)
    return waiting


@dataclass(frozen=True, slots=True)
class PutResponse:
    """The storage's response to the request that stored an object.

    Attributes:
        date: its `Date`; None if it has none.
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
    """Whether no rotation can have a proof that missed the object; if not, re-read the keyring.

    Args:
        snapshot: the keyring read that the object's wraps rest on.
        response: to its put.
        is_encrypted: plaintext may be forbidden meanwhile, and no sweep encrypts it then.
    """
    lease_s, keyring_lease_s = snapshot.lease_s, snapshot.keyring.lease_s
    if not (is_encrypted and response.by_one_put and response.agrees and snapshot.leased):
        return False
    # A worker whose lease is longer than any that the record names may be later than its
    # proofs expect.
    if response.date is None or lease_s > keyring_lease_s:
        return False
    by_storage_clock = response.date - snapshot.read_at < timedelta(seconds=lease_s)
    # A front end whose clock is slow, or that dates a response before the commit, is not
    # enough: the process's own clock must agree.
    return by_storage_clock and response.received_s - snapshot.sent_s < lease_s
