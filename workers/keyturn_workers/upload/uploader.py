"""One upload: open, encrypt, store, settle (SPEC 7). What it answers is told by the consumer.

An upload may be delivered again at any point. Whatever was done before, the second time
looks at the target first and goes on from what stands there. Each attempt has a DEK of
its own: two attempts never share one, so a lost answer costs nothing but a put.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from keyturn.crypto import (
    BODY_CONTEXT,
    IntakeKey,
    new_dek,
    seal,
    sealed_size,
    transport_context,
    upload_info,
    upload_tag,
)
from keyturn.errors import PermanentError, StagedBodyMissingError, StorageUnavailableError
from keyturn.identifiers import object_s3_key, staging_s3_key
from keyturn.messages import InlineBody, StagedBody, UploadRequested
from keyturn.metadata import UPLOAD, caller_to_wire, format_upload_tag
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError, StorageAnswerError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.apply import COPY_LIMIT_BYTES
from keyturn_workers.objects.body_stream import seal_stream
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.single import reconcile_object
from keyturn_workers.objects.wrap import build_object_metadata, wrap
from keyturn_workers.storage import Condition, Headers, IfAbsent, IfMatch, Storage, WriteResult
from keyturn_workers.storage.multipart import multipart
from keyturn_workers.upload import body_pipeline
from keyturn_workers.upload.existing import (
    ExistingUpload,
    UploadIdentity,
    find_own_object,
    holds_another_upload,
)
from keyturn_workers.upload.keyring_recheck import PutResponse, exists_within_lease
from keyturn_workers.upload.multipart import abort_leftovers, part_size, put_parts
from keyturn_workers.worker.authorization import open_secret
from keyturn_workers.worker.metrics import WorkerMetrics

# A put is tried once more where its lease had run out or the desired state moved.
_MAX_ATTEMPTS: Final = 4

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of the upload worker, in bytes where not said otherwise."""

    encryption_enabled: bool
    upload_max_bytes: int
    part_size_bytes: int
    stream_concurrency: int
    copy_limit_bytes: int = COPY_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class Stored:
    """What a put of this process stored, by the keyring that it rested on.

    `in_time`: the keyring need not be read again (`keyturn_workers.upload.keyring_recheck`).
    """

    size_bytes: int
    etag: str
    snapshot: KeyringSnapshot
    sealed: bool
    in_time: bool


@dataclass(frozen=True, slots=True)
class UploadResult:
    """The end of an upload: bytes of plaintext, and the generation of the wraps."""

    size_bytes: int
    generation: int


class _MovedError(Exception):
    """The desired state moved before a multipart upload was completed."""


class Uploader:
    """Serves upload requests against one bucket."""

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        operator_keys: OperatorKeys,
        intake_keys: Mapping[str, IntakeKey],
        limits: Limits,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._operator_keys = operator_keys
        self._intake_keys = intake_keys
        self._limits = limits
        self._streams = asyncio.Semaphore(limits.stream_concurrency)
        self._comparisons = asyncio.Semaphore(limits.stream_concurrency)
        self._metrics = metrics or WorkerMetrics()
        self._stage = self._metrics.queue(UPLOAD_QUEUE).stage

    async def serve(
        self, request: UploadRequested, publisher: str, *, seen_before: bool
    ) -> UploadResult:
        """Store the request's object, once, under wraps of a state that held after the put.

        `seen_before` says that an earlier delivery of the message may have done part of it.

        Raises:
            CodedError: the refusal of SPEC 12 that the request meets.
        """
        standing: ExistingUpload | None = None
        # A staged body is gone once its upload is stored, so a request for one that was
        # published twice is answered from its target.
        if seen_before or isinstance(request.body, StagedBody):
            standing = await self._look(request, publisher)
        if standing is not None:
            return await self._go_on(request, publisher, standing)
        settled = await self._store_and_settle(request, publisher, IfAbsent())
        if seen_before:
            await self._abort_leftovers(request)
        return settled

    async def find_completed(self, request: UploadRequested, publisher: str) -> UploadResult | None:
        """The end of an upload whose object exists already, or None; nothing new is stored.

        Raises:
            TransientError: it cannot be said now.
        """
        try:
            standing = await self._look(request, publisher)
            if standing is None:
                return None
            return await self._go_on(request, publisher, standing)
        except PermanentError as exc:
            _log.info("not completed", upload_id=request.upload_id, code=exc.code)
            return None

    async def holds_another_upload(self, request: UploadRequested) -> bool:
        """Whether an object with another upload's id exists at the request's target."""
        return await holds_another_upload(request, self._storage)

    async def _go_on(
        self, request: UploadRequested, publisher: str, standing: ExistingUpload
    ) -> UploadResult:
        if standing.needs_encryption:
            return await self._store_and_settle(request, publisher, IfMatch(standing.etag))
        return await self._settle_standing(request, standing)

    async def _abort_leftovers(self, request: UploadRequested) -> None:
        """Abort what an earlier delivery of a large body left open at its key.

        Only after this one has stored it. To abort before an attempt, or because the message
        came again, would let whoever copies one retry many times over keep every copy from its
        end: each would take the parts of the others. Now a copy loses its parts to one that
        has the key already. What no delivery stores is aborted by the sweep of staging.
        """
        if (
            isinstance(request.body, StagedBody)
            and self._storage.capabilities.conditional_completion
        ):
            await abort_leftovers(self._storage, object_s3_key(request.project, request.key))

    async def discard_staged(self, request: UploadRequested, publisher: str) -> None:
        """Delete a stored upload's staged body; what fails here is swept up later."""
        if not isinstance(request.body, StagedBody):
            return
        try:
            await self._storage.delete(staging_s3_key(publisher, request.upload_id))
        except (StorageUnavailableError, StorageAnswerError) as exc:
            _log.warning(
                "staged body not deleted",
                upload_id=request.upload_id,
                problem=type(exc).__name__,
            )

    async def _look(
        self, request: UploadRequested, publisher: str, known_etag: str | None = None
    ) -> ExistingUpload | None:
        own = UploadIdentity(
            request, publisher, lambda: self._compared(request, publisher), known_etag
        )
        with self._stage("look"):
            return await find_own_object(own, self._storage, self._keyrings, self._operator_keys)

    @asynccontextmanager
    async def _compared(
        self, request: UploadRequested, publisher: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The request's own plaintext, to be compared with an object."""
        transport_key = self._transport_key(request)
        if isinstance(request.body, InlineBody):
            yield _one(body_pipeline.open_inline(request.body, transport_key, request.upload_id))
            return
        # Not a slot of `_streams`: the caller may hold one.
        async with self._comparisons, self._staged(request, publisher) as staged:
            yield body_pipeline.decrypt_stream(
                staged, transport_key, transport_context(request.upload_id)
            )

    def _transport_key(self, request: UploadRequested) -> bytes:
        info = upload_info(request.upload_id, request.project, request.key)
        return open_secret(request.sealed_key, info, self._intake_keys)

    async def _store_and_settle(
        self, request: UploadRequested, publisher: str, condition: Condition
    ) -> UploadResult:
        with self._stage("open"):
            transport_key = self._transport_key(request)
        for _ in range(_MAX_ATTEMPTS):
            with self._stage("store"):
                stored = await self._store(request, publisher, transport_key, condition)
            if isinstance(stored, ExistingUpload):
                if not stored.needs_encryption:
                    return await self._settle_standing(request, stored)
            else:
                self._metrics.count_stored_bytes(stored.size_bytes)
                settled = await self._settle_stored(request, stored)
                if settled is not None:
                    return settled
            # Its plaintext stands, and none is allowed: seal it where it stands (SPEC 8.2).
            condition = IfMatch(stored.etag)
        raise StorageUnavailableError("the desired state kept moving")

    async def _settle_stored(self, request: UploadRequested, stored: Stored) -> UploadResult | None:
        """What is told of what was just stored; None where plaintext was forbidden meanwhile."""
        with self._stage("settle"):
            if stored.in_time:
                return UploadResult(stored.size_bytes, stored.snapshot.desired.generation)
            after = await self._keyrings.read_fresh(request.project)
            if after.desired.same_state(stored.snapshot.desired):
                return UploadResult(stored.size_bytes, after.desired.generation)
            if stored.sealed:
                return await self._reconcile(request, stored.size_bytes)
            if after.desired.plaintext_allowed:
                return UploadResult(stored.size_bytes, after.desired.generation)
            return None

    async def _settle_standing(
        self, request: UploadRequested, standing: ExistingUpload
    ) -> UploadResult:
        if standing.current:
            return UploadResult(standing.size_bytes, standing.snapshot.desired.generation)
        with self._stage("settle"):
            return await self._reconcile(request, standing.size_bytes)

    async def _reconcile(self, request: UploadRequested, size_bytes: int) -> UploadResult:
        snapshot = await reconcile_object(
            request.project,
            request.key,
            self._storage,
            self._keyrings,
            self._operator_keys,
            copy_limit_bytes=self._limits.copy_limit_bytes,
        )
        return UploadResult(size_bytes, snapshot.desired.generation)

    async def _store(
        self,
        request: UploadRequested,
        publisher: str,
        transport_key: bytes,
        condition: Condition,
    ) -> Stored | ExistingUpload:
        """Put the object; or, where something stands, what stands if it is this upload's own."""
        if isinstance(request.body, InlineBody):
            return await self._try_to_store(request, publisher, transport_key, condition)
        # The slot comes first: a keyring reading that waited for one would outlive its lease.
        async with self._streams:
            return await self._try_to_store(request, publisher, transport_key, condition)

    async def _try_to_store(
        self,
        request: UploadRequested,
        publisher: str,
        transport_key: bytes,
        condition: Condition,
    ) -> Stored | ExistingUpload:
        snapshot = await self._keyrings.read_leased(request.project)
        for _ in range(_MAX_ATTEMPTS):
            if isinstance(condition, IfMatch):
                # An empty body and a tombstone have one ETag, so the condition alone could
                # bring a deleted object back. Looked at after the keyring reading whose
                # lease fences the put: a delete that comes later waits for that lease.
                standing = await self._look(request, publisher, condition.etag)
                if standing is not None and not standing.needs_encryption:
                    return standing
            try:
                return await self._put(request, publisher, transport_key, condition, snapshot)
            except PreconditionError as exc:
                refused = StorageUnavailableError("a put was refused where nothing stands")
                return await self._require_existing(request, publisher, refused, exc)
            except StagedBodyMissingError as exc:
                # Another delivery of this very upload may have stored it since the look at
                # the target, and cleared staging.
                return await self._require_existing(request, publisher, exc, None)
            except (RefusedError, _MovedError):
                # Sent after its lease, or the desired state moved: again, by a new reading.
                snapshot = await self._keyrings.read_fresh(request.project)
            except MissingError as exc:
                # Its parts were aborted by another delivery, or the bucket is gone.
                raise StorageUnavailableError("the put's place is gone") from exc
        raise StorageUnavailableError("the storage refuses the put")

    async def _require_existing(
        self,
        request: UploadRequested,
        publisher: str,
        otherwise: Exception,
        cause: Exception | None,
    ) -> ExistingUpload:
        """What stands, where a put ended in a way that says that something does."""
        standing = await self._look(request, publisher)
        if standing is None:
            raise otherwise from cause
        return standing

    async def _put(
        self,
        request: UploadRequested,
        publisher: str,
        transport_key: bytes,
        condition: Condition,
        snapshot: KeyringSnapshot,
    ) -> Stored:
        sealed = (
            self._limits.encryption_enabled
            or not snapshot.desired.plaintext_allowed
            or isinstance(condition, IfMatch)
        )
        if isinstance(request.body, InlineBody):
            plaintext = body_pipeline.open_inline(request.body, transport_key, request.upload_id)
            size_bytes = len(plaintext)
            attempt = _Attempt(request, publisher, size_bytes, condition, snapshot, sealed=sealed)
            return await self._put_inline(attempt, plaintext)
        size_bytes = body_pipeline.staged_plaintext_size(
            request.body.staged.size, self._limits.upload_max_bytes
        )
        attempt = _Attempt(request, publisher, size_bytes, condition, snapshot, sealed=sealed)
        async with self._staged(request, publisher) as staged:
            context = transport_context(request.upload_id)
            plaintext_pieces = body_pipeline.decrypt_stream(staged, transport_key, context)
            return await self._put_staged(attempt, plaintext_pieces)

    async def _put_inline(self, attempt: "_Attempt", plaintext: bytes) -> Stored:
        body = seal(attempt.dek, BODY_CONTEXT, plaintext) if attempt.sealed else plaintext
        sent_s = self._keyrings.clock.local_s()
        written = await self._storage.put(
            attempt.s3_key,
            body,
            attempt.headers,
            condition=attempt.condition,
            lease=attempt.snapshot.lease,
        )
        return self._stored(attempt, written, sent_s)

    def _stored(self, attempt: "_Attempt", written: WriteResult, sent_s: float) -> Stored:
        """What one put stored; called as soon as its answer is there."""
        clock, snapshot = self._keyrings.clock, attempt.snapshot
        received_s = clock.local_s()
        agrees = clock.observe(written.date, sent_s, received_s).agrees
        put = PutResponse(written.date, agrees, received_s, by_one_put=True)
        in_time = exists_within_lease(snapshot, put, sealed=attempt.sealed)
        return Stored(attempt.size_bytes, written.etag, snapshot, attempt.sealed, in_time)

    @asynccontextmanager
    async def _staged(
        self, request: UploadRequested, publisher: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The sealed bytes that the publisher put into staging."""
        if not isinstance(request.body, StagedBody):
            raise TypeError("not a staged body")
        told = request.body.staged.size
        key = staging_s3_key(publisher, request.upload_id)
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._storage.stream(key))
            except MissingError as exc:
                raise StagedBodyMissingError("nothing stands in staging for this upload") from exc
            if stream.head.size_bytes != told:
                raise StagedBodyMissingError(
                    f"{stream.head.size_bytes} bytes stand in staging, {told} were told"
                )
            yield stream.chunks(body_pipeline.PIECE_BYTES)

    async def _put_staged(self, attempt: "_Attempt", plaintext: AsyncIterator[bytes]) -> Stored:
        size_bytes = attempt.size_bytes
        if size_bytes == 0 and isinstance(attempt.condition, IfMatch):
            # A streamed put may end long after its lease. A body of no bytes has the ETag of
            # every tombstone: over one's own plaintext its condition would then bring back
            # what was deleted, and told, meanwhile.
            return await self._put_inline(attempt, b"".join([piece async for piece in plaintext]))
        pieces = seal_stream(plaintext, attempt.dek) if attempt.sealed else plaintext
        body_bytes = sealed_size(size_bytes) if attempt.sealed else size_bytes
        split_into_parts = (
            self._storage.capabilities.conditional_completion
            and isinstance(attempt.condition, IfAbsent)
            and body_bytes > self._limits.part_size_bytes
        )
        if split_into_parts:
            return await self._put_in_parts(attempt, pieces, body_bytes)
        sent_s = self._keyrings.clock.local_s()
        written = await self._storage.put_stream(
            attempt.s3_key,
            pieces,
            body_bytes,
            attempt.headers,
            condition=attempt.condition,
            lease=attempt.snapshot.lease,
        )
        return self._stored(attempt, written, sent_s)

    async def _put_in_parts(
        self, attempt: "_Attempt", pieces: AsyncIterator[bytes], body_bytes: int
    ) -> Stored:
        wished = part_size(body_bytes, self._limits.part_size_bytes)
        storage, s3_key = self._storage, attempt.s3_key
        async with multipart(storage, s3_key, attempt.headers) as upload_id:
            parts = await put_parts(
                storage, s3_key, upload_id, body_pipeline.split_into_parts(pieces, wished)
            )
            # The wraps were fixed when the upload began: they must still be the desired ones.
            snapshot = await self._keyrings.read_fresh(attempt.request.project)
            if not snapshot.desired.same_state(attempt.snapshot.desired):
                raise _MovedError
            written = await storage.complete_multipart(
                s3_key, upload_id, parts, condition=attempt.condition, lease=snapshot.lease
            )
        # Never in time: some of its parts came before this reading, and its completion is no put.
        return Stored(attempt.size_bytes, written.etag, snapshot, attempt.sealed, in_time=False)


class _Attempt:
    """One attempt to store an object: its own DEK, and the wraps and headers that go with it."""

    def __init__(
        self,
        request: UploadRequested,
        publisher: str,
        size_bytes: int,
        condition: Condition,
        snapshot: KeyringSnapshot,
        *,
        sealed: bool,
    ) -> None:
        self.request = request
        self.publisher = publisher
        self.size_bytes = size_bytes
        self.condition = condition
        self.snapshot = snapshot
        self.sealed = sealed
        self.s3_key = object_s3_key(request.project, request.key)
        self.dek = new_dek()
        self.headers = Headers(self._metadata(), (request.content_type or "").strip(" ") or None)

    def _metadata(self) -> dict[str, str]:
        caller_wire = caller_to_wire(self.request.metadata or {})
        if not self.sealed:
            return {**caller_wire, UPLOAD: self.request.upload_id}
        wraps = wrap(self.snapshot.desired, self.request.key, self.dek)
        tag = upload_tag(
            self.dek,
            publisher=self.publisher,
            project=self.request.project,
            key=self.request.key,
            upload_id=self.request.upload_id,
            size_bytes=self.size_bytes,
        )
        return build_object_metadata(
            wraps,
            upload_id=self.request.upload_id,
            tag=format_upload_tag(tag),
            caller_wire=caller_wire,
        )


async def _one(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
