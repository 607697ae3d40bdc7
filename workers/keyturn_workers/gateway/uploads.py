"""`PUT` of an object: the body is encrypted into staging and published as an upload (SPEC 9.4).

The gateway is a publisher like any other: it signs as itself, and the workers decide. It waits
for a worker only on request (`Prefer: wait=N`, RFC 7240), and then responds with the worker's
outcome. It never writes plaintext anywhere.

An upload by link (SPEC 9.3) is limited to the link's size and content type, and to one upload
without an outcome at a time. It has no metadata.

A key that is in use is refused before the body is read. Each request counts until its outcome is
known (`publishing`). A body up to 256 KiB is sent in the request message itself, and counts with
it. A larger one needs an upload slot, since it has some parts of 8 MiB in memory while it is
received, and room in staging until it is stored (SPEC 9.3). Staging is listed when a limit is
reached, and once a minute for the total.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Self

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto.links import UploadLinkClaims
from keyturn.errors import (
    BodyTooLargeError,
    MalformedRequestError,
    OutcomeUnknownError,
    PublisherError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnsupportedMediaTypeError,
)
from keyturn.identifiers import staging_s3_key
from keyturn.messages.events import Event, UploadStored
from keyturn.messages.requests import INLINE_MAX_BYTES
from keyturn.metadata import CALLER_MAX_BYTES, decode_caller_metadata
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.gateway.auth import Caller
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.gateway.problems import problem
from keyturn_workers.gateway.publishing import (
    PendingRequest,
    PendingRequests,
    outcome_response,
    publish_failure_response,
)
from keyturn_workers.gateway.request import META_PREFIX, object_path
from keyturn_workers.gateway.shares import GatewayBusyError, ProjectSlots, share_of
from keyturn_workers.process.background import share
from keyturn_workers.process.http_server.client_connection import read_body
from keyturn_workers.process.settings import GatewaySettings

MIN_STAGED_BYTES: Final = 1024 * 1024
"""A staged body counts as at least this much, so that the total also limits their number."""

# The maximum age of a listing, which shows other gateways' bodies.
_LISTING_MAX_AGE_S: Final = 60.0
_LISTING_MIN_PAUSE_S: Final = 1.0
# A large staging area takes long to list: at most a tenth of the time is spent on it.
_PAUSE_PER_LISTING: Final = 9.0
_SLOT_WAIT_S: Final = 30.0
# An upload that has no known outcome by then no longer counts as pending.
_OUTCOME_WAIT_S: Final = 3600.0
_MAX_PENDING: Final = 50_000
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
# Decoding takes quadratic time, so longer values are refused first. Only quoted forms are longer
# than the values sent to the storage.
_METADATA_MAX_BYTES: Final = 2 * CALLER_MAX_BYTES
_CREATED: Final = 201
_PRECONDITION_FAILED: Final = 412


@dataclass(slots=True)
class _StagedBody:
    """A body that this gateway staged; `completed_at_s` is None while it is being received."""

    project: str
    counted_bytes: int
    completed_at_s: float | None = None


class StagingLedger:
    """Counts the bytes that each project has in staging.

    Workers delete a body from staging once it is stored or refused for good, so a listing of
    the publisher's folder is the truth. It names no project: bodies from before this process
    started, and those of other gateways, count toward the total only.

    One project may have `share` of the total, above 0 and at most 1. A project that has nothing
    in staging may always stage one body.
    """

    def __init__(self, total_bytes: int, share: float) -> None:
        self._total_bytes = total_bytes
        self._share_bytes = share_of(total_bytes, share)
        self._staged: dict[str, _StagedBody] = {}
        self._by_project: dict[str, int] = {}
        self._own_bytes = 0
        self._foreign_bytes = 0

    @property
    def used_bytes(self) -> int:
        """The bytes known to be in staging, and the reserved ones."""
        return self._own_bytes + self._foreign_bytes

    def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Reserve room for a body of at least this size. Call again as the body grows.

        Raises:
            TooManyRequestsError: the project uses its share.
            GatewayBusyError: the total is used up.
        """
        before = self._staged.get(upload_id)
        counted = before.counted_bytes if before else 0
        more = max(size_bytes, MIN_STAGED_BYTES) - counted
        if more <= 0:
            return
        used = self._by_project.get(project, 0)
        if self.used_bytes + more > self._total_bytes:
            raise GatewayBusyError
        if used > counted and used + more > self._share_bytes:
            raise TooManyRequestsError(
                f"the project has {used} bytes in staging that are not stored yet"
            )
        self._staged[upload_id] = _StagedBody(project, counted + more)
        self._by_project[project] = used + more
        self._own_bytes += more

    def complete(self, upload_id: str, now_s: float) -> None:
        """Record that the body is in staging, until a later listing does not show it."""
        if (staged := self._staged.get(upload_id)) is not None:
            staged.completed_at_s = now_s

    def release(self, upload_id: str) -> None:
        """Record that nothing of the body is in staging."""
        staged = self._staged.pop(upload_id, None)
        if staged is None:
            return
        self._own_bytes -= staged.counted_bytes
        remaining = self._by_project[staged.project] - staged.counted_bytes
        if remaining:
            self._by_project[staged.project] = remaining
        else:
            del self._by_project[staged.project]

    def apply_listing(self, sent_at_s: float, sizes_bytes: Mapping[str, int]) -> None:
        """Update from a listing, sent at `sent_at_s` by the clock of `complete`.

        `sizes_bytes` has the sizes of the listed bodies, by upload id.
        """
        deleted = [
            upload_id
            for upload_id, staged in self._staged.items()
            # A body that was completed after the listing was sent may be missing from it.
            if staged.completed_at_s is not None
            and staged.completed_at_s < sent_at_s
            and upload_id not in sizes_bytes
        ]
        for upload_id in deleted:
            self.release(upload_id)
        self._foreign_bytes = sum(
            max(size_bytes, MIN_STAGED_BYTES)
            for upload_id, size_bytes in sizes_bytes.items()
            if upload_id not in self._staged
        )


class StagingQuota:
    """Reserves room in the staging folder of one gateway's publisher."""

    def __init__(self, storage: Storage, publisher: str, ledger: StagingLedger) -> None:
        self._storage = storage
        self._prefix = staging_s3_key(publisher, "")
        self._ledger = ledger
        self._listed_at: float | None = None
        self._next_listing_at = 0.0
        self._listing: asyncio.Task[None] | None = None

    async def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Reserve room for a body of at least this size. Errors as `StagingLedger.reserve`.

        Raises:
            StorageUnavailableError: staging cannot be listed.
        """
        if self._listed_at is None or time.monotonic() - self._listed_at > _LISTING_MAX_AGE_S:
            await self._refresh()
        try:
            self._ledger.reserve(project, upload_id, size_bytes)
        except (TooManyRequestsError, GatewayBusyError):
            await self._refresh()
            self._ledger.reserve(project, upload_id, size_bytes)

    def complete(self, upload_id: str) -> None:
        """Record that the body was staged, or may have been."""
        self._ledger.complete(upload_id, time.monotonic())

    def release(self, upload_id: str) -> None:
        """Record that the body is not in staging."""
        self._ledger.release(upload_id)

    async def _refresh(self) -> None:
        """List staging. Concurrent callers share one listing; there is a pause between two."""
        if self._listing is None:
            if time.monotonic() < self._next_listing_at:
                return
            self._listing = share(self._list())
        await asyncio.shield(self._listing)

    async def _list(self) -> None:
        sent_at = time.monotonic()
        try:
            sizes_bytes = {
                body.key.removeprefix(self._prefix): body.size_bytes
                async for body in self._storage.list(self._prefix)
            }
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        finally:
            self._listing = None
            now = time.monotonic()
            pause_s = max(_LISTING_MIN_PAUSE_S, _PAUSE_PER_LISTING * (now - sent_at))
            self._next_listing_at = now + pause_s
        self._ledger.apply_listing(sent_at, sizes_bytes)
        self._listed_at = sent_at


class UploadClaim:
    """The resources of one upload while its body is received and published: a context manager."""

    def __init__(self, pending: PendingRequest, slots: ProjectSlots, quota: StagingQuota) -> None:
        self._pending = pending
        self._slots = slots
        self._quota = quota
        self._slot = AsyncExitStack()
        self._has_slot = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        upload_id = self._pending.request_id
        if kind is None or issubclass(kind, OutcomeUnknownError | asyncio.CancelledError):
            self._quota.complete(upload_id)  # a worker may be about to store it
        else:
            self._quota.release(upload_id)
        await self._slot.aclose()

    async def grow(self, size_bytes: int) -> None:
        """Acquire the resources for a body of at least this size.

        Raises:
            TooManyRequestsError: the project uses its share, or its pending requests hold too
                many bytes.
            GatewayBusyError: no slot became free, or staging is full.
            StorageUnavailableError: staging cannot be listed.
        """
        if size_bytes <= INLINE_MAX_BYTES:
            self._pending.resize(size_bytes)
            return
        project = self._pending.project
        if not self._has_slot:
            self._pending.resize(0)  # the body is staged
            await self._slot.enter_async_context(self._slots.hold(project))
            self._has_slot = True
        await self._quota.reserve(project, self._pending.request_id, size_bytes)


class UploadRoutes:
    """Handles uploads."""

    def __init__(
        self,
        settings: GatewaySettings,
        publisher: Publisher,
        opener: ObjectOpener,
        storage: Storage,
        metrics: GatewayMetrics,
    ) -> None:
        share = settings.gateway_project_share
        self._publisher = publisher
        self._opener = opener
        self._metrics = metrics
        self._max_bytes = settings.upload_max_bytes
        self._idle_timeout_s = settings.gateway_idle_timeout_s
        self._wait_max_s = settings.gateway_wait_max_s
        self.ledger = StagingLedger(settings.gateway_staging_max_bytes, share)
        self._slots = ProjectSlots(
            settings.gateway_upload_concurrency, share, "uploads", wait_s=_SLOT_WAIT_S
        )
        self._quota = StagingQuota(storage, settings.publisher_name, self.ledger)
        self.pending = PendingRequests(
            publisher,
            "upload.requested",
            noun="uploads pending",
            per_project=settings.gateway_pending,
            total=_MAX_PENDING,
            outcome_wait_s=_OUTCOME_WAIT_S,
            project_bytes=settings.gateway_pending_bytes,
        )

    async def put(self, request: Request, caller: Caller, key: str) -> Response:
        """Publish the request's body as an upload to this key.

        Raises:
            MalformedRequestError: the headers cannot be stored with an object, or there is
                metadata in an upload by link.
            BodyTooLargeError: the body is too large.
            UnsupportedMediaTypeError: the caller's link allows another content type.
            AlreadyExistsError, DeletedKeyError: the key has an object or a tombstone.
            TooManyRequestsError: the project uses its share of slots or of staging, or has too
                many uploads pending, or an upload by the same link is.
            GatewayBusyError: no slot became free, staging is full, or too many uploads of all
                projects are pending.
            StorageUnavailableError: staging failed.
            ClientGoneError: the client disconnected or stopped sending.
        """
        headers = request.headers
        if "if-match" in headers:
            # A key is written once: there is nothing to replace.
            return problem(
                _PRECONDITION_FAILED, "objects cannot be replaced", headers={"connection": "close"}
            )
        link = caller.upload_link
        max_bytes = self._max_bytes if link is None else min(self._max_bytes, link.max_bytes)
        declared_bytes = _declared_length(headers, max_bytes)
        content_type = _content_type(headers, link)
        metadata, upload_id = _metadata(headers), new_id()
        if metadata and link is not None:
            raise MalformedRequestError("an upload by link cannot have metadata")
        ids = {"upload_id": upload_id}
        try:
            with self.pending.hold(caller.project, upload_id, link=link) as pending:
                # Before the body is read, so that an upload that will be refused fills neither
                # staging nor the dead letters. If two requests pass at once, the workers refuse
                # one.
                await self._opener.require_unused_key(caller, key)
                async with UploadClaim(pending, self._slots, self._quota) as claim:
                    # A declared length is claimed before the body is requested from the client.
                    await claim.grow(declared_bytes)
                    publishing = self._publisher.upload(
                        caller.project,
                        key,
                        self._body(request, claim, max_bytes),
                        content_type=content_type,
                        metadata=metadata,
                        upload_id=upload_id,
                    )
                    outcome = await pending.publish(publishing)
        except PublisherError as exc:
            return publish_failure_response(exc, ids)

        def completed(event: Event) -> Response | None:
            if not isinstance(event, UploadStored):
                return None
            location = {"location": object_path(caller.project, key)}
            return JSONResponse(ids, _CREATED, location)

        return await outcome_response(request, outcome, ids, self._wait_max_s, completed)

    async def _body(
        self, request: Request, claim: UploadClaim, max_bytes: int
    ) -> AsyncIterator[bytes]:
        received = 0
        async for piece in read_body(request.receive, self._idle_timeout_s):
            received += len(piece)
            if received > max_bytes:
                raise BodyTooLargeError(f"at most {max_bytes} bytes")
            await claim.grow(received)
            self._metrics.received_bytes.inc(len(piece))
            yield piece


def _declared_length(headers: Headers, max_bytes: int) -> int:
    """Return `Content-Length`, or 0 if there is none."""
    # RFC 9110, 9.3.4 and 14.5: a PUT must not ignore these.
    for name in ("content-range", "content-encoding"):
        if name in headers:
            raise MalformedRequestError(f"{name} is not supported")
    length = headers.get("content-length", "0")
    if _LENGTH.fullmatch(length) is None or int(length) > max_bytes:
        raise BodyTooLargeError(f"at most {max_bytes} bytes")
    return int(length)


def _content_type(headers: Headers, link: UploadLinkClaims | None) -> str | None:
    """Return the content type to store: the link's own, if the caller's link has one."""
    if link is None or link.content_type is None:
        return headers.get("content-type")
    # Names of types have no case (RFC 9110, 8.3.1); what is stored is the link's text.
    sent = [value.lower() for value in headers.getlist("content-type")]
    if sent not in ([], [link.content_type.lower()]):
        raise UnsupportedMediaTypeError(f"this link allows only {link.content_type}")
    return link.content_type


def _metadata(headers: Headers) -> dict[str, str]:
    sent = [item for item in headers.items() if item[0].startswith(META_PREFIX)]
    if sum(len(name) - len(META_PREFIX) + len(value) for name, value in sent) > _METADATA_MAX_BYTES:
        raise MalformedRequestError(f"metadata is longer than {CALLER_MAX_BYTES} bytes")
    metadata: dict[str, str] = {}
    for name, value in sent:
        short = name.removeprefix(META_PREFIX)
        if short in metadata:
            raise MalformedRequestError("a metadata name occurs twice")
        metadata[short] = _utf8(value)
    return decode_caller_metadata(metadata) | {
        n: v for n, v in metadata.items() if n.startswith("enc-")
    }


def _utf8(value: str) -> str:
    """Decode a header's value as UTF-8, or as Latin-1 if it is not."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
