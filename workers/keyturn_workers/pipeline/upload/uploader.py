"""One upload: open, encrypt, store, bring to the desired state (SPEC 7).

An upload may be delivered again at any point. A later delivery first reads the target, and
continues from what exists there. Each attempt to put the object has its own DEK, so a lost response
costs one put and nothing else.
"""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import structlog

from keyturn.errors import (
    MalformedRequestError,
    PermanentError,
    StorageUnavailableError,
)
from keyturn.messages.requests import UploadRequested
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.core.customer_keys import CustomerSecrets
from keyturn_workers.core.errors import (
    MissingError,
    PreconditionError,
    RefusedError,
    StorageResponseError,
    UnstorableKeyError,
)
from keyturn_workers.core.storable_key import check_storable
from keyturn_workers.core.storage_values import Condition, IfAbsent, IfMatch
from keyturn_workers.pipeline.objects.apply import reconcile_object
from keyturn_workers.pipeline.upload.attempt import Attempt, Upload, UploadContext
from keyturn_workers.pipeline.upload.body import BODY_GONE, open_transport_key
from keyturn_workers.pipeline.upload.existing import (
    ExistingUpload,
    find_own_object,
    holds_another_upload,
)
from keyturn_workers.pipeline.upload.put import (
    PutResult,
    StateMovedError,
    abort_leftovers,
    put_object,
)

# A put is tried again when its lease expired or the desired state moved.
_MAX_ATTEMPTS: Final = 4

_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UploadResult:
    """A stored upload: bytes of plaintext, and the generation of its wraps."""

    size_bytes: int
    generation: int


class Uploader:
    """Serves upload requests against one bucket."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        self._stage = context.metrics.queue(UPLOAD_QUEUE).stage

    async def serve(
        self, request: UploadRequested, publisher: str, *, seen_before: bool
    ) -> UploadResult:
        """Store the request's object, once, under wraps of a state that was current after the put.

        If `seen_before`, an earlier delivery of the message may have done part of the work.

        Raises:
            CodedError: the refusal of SPEC 12.
        """
        check_storable(request.key, self._context.storage.capabilities)
        upload = Upload(request, publisher)
        if upload.source is not None:
            self._context.sources.bucket_of(request)
        return await self._unlocked(upload, partial(self._serve, seen_before=seen_before))

    async def _unlocked(self, upload: Upload, work: Callable[[Upload], Awaitable[_T]]) -> _T:
        """Do an upload's work with its project's customer secrets (SPEC 2.6).

        They are asked for before the work takes any place that other projects need. Where it needs
        yet another one, it gives up its places and begins again, like a second delivery.
        """
        snapshot = await self._context.keyrings.read_recent(upload.request.project)

        def with_secrets(secrets: CustomerSecrets) -> Awaitable[_T]:
            return work(replace(upload, secrets=secrets))

        return await self._context.customer_keys.open_with(snapshot.keyring, with_secrets)

    async def _serve(self, upload: Upload, *, seen_before: bool) -> UploadResult:
        existing: ExistingUpload | None = None
        # A body that is not in the request is deleted once its upload is stored, so such a request
        # that was published twice is answered from its target.
        if seen_before or upload.is_staged or upload.source is not None:
            existing = await self._find_own_object(upload)
        if existing is not None:
            return await self._continue(upload, existing)
        result = await self._store(upload, IfAbsent())
        if seen_before:
            await self._abort_leftovers(upload)
        return result

    async def find_completed(self, request: UploadRequested, publisher: str) -> UploadResult | None:
        """The result of an upload whose object exists already, or None; stores no new object.

        Raises:
            TransientError: this cannot be determined now.
        """
        upload = Upload(request, publisher)
        try:
            if upload.source is not None:
                self._context.sources.bucket_of(request)
            return await self._unlocked(upload, self._find_completed)
        except PermanentError as exc:
            _log.info("upload not completed", upload_id=request.upload_id, code=exc.code)
            return None

    async def _find_completed(self, upload: Upload) -> UploadResult | None:
        existing = await self._find_own_object(upload)
        return None if existing is None else await self._continue(upload, existing)

    async def holds_another_upload(self, request: UploadRequested) -> bool:
        """Check if an object with another upload's id exists at the request's target."""
        return await holds_another_upload(request, self._context.storage)

    async def discard_body(self, request: UploadRequested, publisher: str) -> None:
        """Delete a stored upload's body in staging, or in a source that is to be emptied.

        If deleting fails, the cleanup of staging removes the staged body.
        """
        upload = Upload(request, publisher)
        if upload.source is not None:
            await self._context.sources.bucket_of(request).delete_read(upload.source)
        if not upload.is_staged:
            return
        try:
            await self._context.storage.delete(upload.staging_s3_key)
        except (StorageUnavailableError, StorageResponseError) as exc:
            _log.warning(
                "staged body not deleted",
                upload_id=request.upload_id,
                problem=type(exc).__name__,
            )

    async def _continue(self, upload: Upload, existing: ExistingUpload) -> UploadResult:
        if existing.needs_encryption:
            return await self._store(upload, IfMatch(existing.etag))
        return await self._finish_existing(upload, existing)

    async def _abort_leftovers(self, upload: Upload) -> None:
        """Abort multipart uploads that earlier deliveries of a large body left at its key.

        Only after this delivery stored the object. If each delivery aborted before its attempt,
        copies of one retry could keep each other from ever finishing. This way a copy loses its
        parts only to one that has stored the object. The cleanup of staging aborts the parts of
        uploads that no delivery stores.
        """
        if upload.is_streamed and self._context.storage.capabilities.conditional_completion:
            await abort_leftovers(self._context.storage, upload.s3_key)

    async def _find_own_object(
        self, upload: Upload, known_etag: str | None = None
    ) -> ExistingUpload | None:
        with self._stage("look"):
            return await find_own_object(self._context, upload, known_etag)

    async def _store(self, upload: Upload, condition: Condition) -> UploadResult:
        with self._stage("open"):
            transport_key = open_transport_key(self._context, upload)
        for _ in range(_MAX_ATTEMPTS):
            with self._stage("store"):
                stored = await self._put(upload, transport_key, condition)
            if isinstance(stored, ExistingUpload):
                if not stored.needs_encryption:
                    return await self._finish_existing(upload, stored)
            else:
                self._context.metrics.count_stored_bytes(stored.size_bytes)
                result = await self._finish_stored(upload, stored)
                if result is not None:
                    return result
            # Its plaintext is stored, and plaintext is forbidden: encrypt it in place (SPEC 8.2).
            condition = IfMatch(stored.etag)
        raise StorageUnavailableError("the desired state kept changing")

    async def _put(
        self, upload: Upload, transport_key: bytes, condition: Condition
    ) -> PutResult | ExistingUpload:
        """Put the object; if the key is taken, the upload's own object there."""
        # Take the slot before reading the keyring: a wait in between would outlast the lease.
        async with self._context.stream_slots if upload.is_streamed else nullcontext():
            return await self._put_with_retries(upload, transport_key, condition)

    async def _put_with_retries(
        self, upload: Upload, transport_key: bytes, condition: Condition
    ) -> PutResult | ExistingUpload:
        keyrings, project = self._context.keyrings, upload.request.project
        snapshot = await keyrings.read_leased(project)
        for _ in range(_MAX_ATTEMPTS):
            if isinstance(condition, IfMatch):
                # An empty body and a tombstone have the same ETag, so the condition alone could
                # bring back a deleted object. The target is read after the keyring whose lease
                # fences the put: a later delete waits for that lease.
                existing = await self._find_own_object(upload, condition.etag)
                if existing is not None and not existing.needs_encryption:
                    return existing
            attempt = Attempt.begin(self._context, upload, transport_key, condition, snapshot)
            try:
                return await put_object(self._context, attempt)
            except PreconditionError as exc:
                refused = StorageUnavailableError("a put was refused, but no object exists")
                return await self._require_existing(upload, refused, exc)
            except UnstorableKeyError as exc:
                raise MalformedRequestError(str(exc)) from exc
            except BODY_GONE as exc:
                # Another delivery of this very upload may have stored it since the target was
                # read, and deleted the body.
                return await self._require_existing(upload, exc, None)
            except (RefusedError, StateMovedError):
                # The lease expired, or the desired state moved: retry with a new keyring read.
                snapshot = await keyrings.read_fresh(project)
            except MissingError as exc:
                # Another delivery aborted its parts, or the bucket is gone.
                raise StorageUnavailableError("the put's parts or bucket are gone") from exc
        raise StorageUnavailableError("the storage refuses the put")

    async def _require_existing(
        self, upload: Upload, otherwise: Exception, cause: Exception | None
    ) -> ExistingUpload:
        """The upload's own object, after a put failed because an object exists.

        Raises:
            MalformedRequestError: no object exists, but the key is the folder of other objects,
                and the storage reports a folder as an object. Retrying does not help (SPEC 4.4).
        """
        existing = await self._find_own_object(upload)
        if existing is not None:
            return existing
        if isinstance(cause, PreconditionError) and await self._is_folder(upload):
            raise MalformedRequestError(
                "other objects' keys begin with this key and a slash: this bucket's storage "
                "takes that for an object, and cannot create one safely"
            ) from cause
        raise otherwise from cause

    async def _is_folder(self, upload: Upload) -> bool:
        storage = self._context.storage
        if not storage.capabilities.keys_are_paths:
            return False
        async for _ in storage.list(f"{upload.s3_key}/", limit=1):
            return True
        return False

    async def _finish_stored(self, upload: Upload, stored: PutResult) -> UploadResult | None:
        """The result of a put; None if plaintext was stored and is forbidden by now."""
        with self._stage("settle"):
            if stored.within_lease:
                return UploadResult(stored.size_bytes, stored.snapshot.desired.generation)
            after = await self._context.keyrings.read_fresh(upload.request.project)
            if after.desired.same_state(stored.snapshot.desired):
                return UploadResult(stored.size_bytes, after.desired.generation)
            if stored.is_encrypted:
                return await self._reconcile(upload, stored.size_bytes)
            if after.desired.plaintext_allowed:
                return UploadResult(stored.size_bytes, after.desired.generation)
            return None

    async def _finish_existing(self, upload: Upload, existing: ExistingUpload) -> UploadResult:
        if existing.current:
            return UploadResult(existing.size_bytes, existing.snapshot.desired.generation)
        with self._stage("settle"):
            return await self._reconcile(upload, existing.size_bytes)

    async def _reconcile(self, upload: Upload, size_bytes: int) -> UploadResult:
        context = self._context
        snapshot = await reconcile_object(
            upload.request.project,
            upload.request.key,
            context.storage,
            context.keyrings,
            context.operator_keys,
            upload.secrets,
            copy_limit_bytes=context.limits.copy_limit_bytes,
        )
        return UploadResult(size_bytes, snapshot.desired.generation)
