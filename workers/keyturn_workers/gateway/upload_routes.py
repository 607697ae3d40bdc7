"""`PUT` of an object: the body is encrypted into staging and published as an upload (SPEC 9.4).

The gateway is a publisher like any other: it signs as itself, and the workers decide. It waits
for a worker only on request (`Prefer: wait=N`, RFC 7240), and then responds with the worker's
outcome. It never writes plaintext anywhere.

A key that is in use is refused before the body is read. A body up to 256 KiB is sent in the
request message; a larger one needs an upload slot and room in staging. Each project has a share of
both, and may have only so many uploads without an outcome (SPEC 9.3).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn.messages import Event, Rejected, UploadStored
from keyturn.metadata import CALLER_MAX_BYTES, decode_caller_metadata
from keyturn.publisher import (
    NotDeliveredError,
    OutcomeUnknownError,
    Publisher,
    PublisherError,
)
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway.auth import Caller
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_opener import ObjectOpener
from keyturn_workers.gateway.paths import object_path
from keyturn_workers.gateway.pending_requests import PendingRequests, event_of
from keyturn_workers.gateway.problems import problem, status_for_code
from keyturn_workers.gateway.response_headers import META_PREFIX
from keyturn_workers.gateway.upload_limits import UploadClaim, UploadLimits
from keyturn_workers.http_server.client_connection import read_body, run_while_connected

_CREATED: Final = 201
_ACCEPTED: Final = 202
_PRECONDITION_FAILED: Final = 412
_UNAVAILABLE: Final = 503
# An upload whose outcome is not known by then no longer counts as pending.
_OUTCOME_WAIT_S: Final = 3600.0
_MAX_PENDING: Final = 50_000
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
# RFC 7240: preferences with their parameters, either of which may be quoted.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE: Final = re.compile(rf'(?:[^,;"]|{_QUOTED})+(?:;(?:[^,;"]|{_QUOTED})*)*')
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?(?P<seconds>[0-9]{1,18})\"?\s*(?:;.*)?", re.IGNORECASE)
# Escaped quotes without an end take quadratic time, so longer headers are ignored.
_PREFER_MAX_CHARACTERS: Final = 1024
# Decoding takes quadratic time, so longer values are refused first. Only quoted forms are longer
# than what the storage is sent.
_METADATA_MAX_BYTES: Final = 2 * CALLER_MAX_BYTES


class UploadRoutes:
    """Handles uploads.

    Args:
        publisher: The gateway's publisher.
        opener: Checks whether a key is in use.
        limits: Limits what larger bodies use, of one project and in all.
        metrics: The gateway's metrics.
        max_bytes: The largest body.
        max_pending: How many uploads of one project may be without an outcome.
        max_pending_bytes: How many bytes of their bodies may be in the requests themselves.
        idle_timeout_s: How long a client may send nothing.
        wait_max_s: The longest wait for `Prefer: wait=N`.
    """

    def __init__(
        self,
        publisher: Publisher,
        opener: ObjectOpener,
        limits: UploadLimits,
        metrics: GatewayMetrics,
        *,
        max_bytes: int,
        max_pending: int,
        max_pending_bytes: int,
        idle_timeout_s: float,
        wait_max_s: float,
    ) -> None:
        self._publisher = publisher
        self._opener = opener
        self._limits = limits
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._idle_timeout_s = idle_timeout_s
        self._wait_max_s = wait_max_s
        self._pending = PendingRequests(
            publisher,
            "upload.requested",
            noun="uploads pending",
            per_project=max_pending,
            total=_MAX_PENDING,
            outcome_wait_s=_OUTCOME_WAIT_S,
            project_bytes=max_pending_bytes,
        )

    async def close(self) -> None:
        """Stop waiting for outcomes."""
        await self._pending.close()

    async def put(self, request: Request, caller: Caller, key: str) -> Response:
        """Publish the request's body as an upload to this key.

        Raises:
            MalformedRequestError: the headers cannot be stored with an object.
            BodyTooLargeError: the body is too large.
            AlreadyExistsError, DeletedKeyError: the key has an object or a tombstone.
            TooManyRequestsError: the project uses its share of slots or of staging, or has too
                many uploads pending.
            GatewayBusyError: no slot became free, staging is full, or too many uploads of all
                projects are pending.
            StorageUnavailableError: staging failed.
            ClientGoneError: the client disconnected or stopped sending.
        """
        headers = request.headers
        if "if-match" in headers:
            # A key is written once: there is nothing that this could replace.
            return problem(
                _PRECONDITION_FAILED, "objects cannot be replaced", headers={"connection": "close"}
            )
        declared_bytes = self._declared_length(headers)
        metadata, upload_id = _metadata(headers), new_id()
        try:
            with self._pending.hold(caller.project, upload_id) as pending:
                # Before the body is read, so that an upload that will be refused fills neither
                # staging nor the dead letters. If two requests pass at once, the workers refuse
                # one.
                await self._opener.require_unused_key(caller, key)
                async with self._limits.hold(pending) as claim:
                    # A declared length is claimed before the body is requested from the client.
                    await claim.grow(declared_bytes)
                    publishing = self._publisher.upload(
                        caller.project,
                        key,
                        self._body(request, claim),
                        content_type=headers.get("content-type"),
                        metadata=metadata,
                        upload_id=upload_id,
                    )
                    outcome = await pending.publish(publishing)
        except PublisherError as exc:
            return publish_failure_response(exc, {"upload_id": upload_id})
        return await self._respond(request, caller.project, key, upload_id, outcome)

    def _declared_length(self, headers: Headers) -> int:
        """Return `Content-Length`, or 0 if there is none."""
        # RFC 9110, 9.3.4 and 14.5: a PUT must not ignore these.
        for name in ("content-range", "content-encoding"):
            if name in headers:
                raise MalformedRequestError(f"{name} is not supported")
        length = headers.get("content-length", "0")
        if _LENGTH.fullmatch(length) is None or int(length) > self._max_bytes:
            raise BodyTooLargeError(f"at most {self._max_bytes} bytes")
        return int(length)

    async def _body(self, request: Request, claim: UploadClaim) -> AsyncIterator[bytes]:
        received = 0
        async for piece in read_body(request.receive, self._idle_timeout_s):
            received += len(piece)
            if received > self._max_bytes:
                raise BodyTooLargeError(f"at most {self._max_bytes} bytes")
            await claim.grow(received)
            self._metrics.received_bytes.inc(len(piece))
            yield piece

    async def _respond(
        self,
        request: Request,
        project: str,
        key: str,
        upload_id: str,
        outcome: asyncio.Task[Event],
    ) -> Response:
        wait_s = requested_wait_s(request.headers, self._wait_max_s)
        accepted = JSONResponse({"upload_id": upload_id}, _ACCEPTED)
        if wait_s is None:
            return accepted
        applied = {"preference-applied": f"wait={wait_s}"}
        await run_while_connected(request.receive, asyncio.wait((outcome,), timeout=wait_s))
        event = event_of(outcome)
        if isinstance(event, Rejected):
            return rejection_response(event, {"upload_id": upload_id})
        if isinstance(event, UploadStored):
            created = {"location": object_path(project, key), **applied}
            return JSONResponse({"upload_id": upload_id}, _CREATED, created)
        accepted.headers.update(applied)
        return accepted


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


def requested_wait_s(headers: Headers, max_s: float) -> int | None:
    """Return the seconds of `Prefer: wait=N`, at most `max_s`; None without that preference."""
    preferences = ",".join(headers.getlist("prefer"))
    if len(preferences) > _PREFER_MAX_CHARACTERS:
        return None
    for preference in _PREFERENCE.findall(preferences):
        match = _WAIT.fullmatch(preference)
        if match is not None:
            return int(min(int(match["seconds"]), max_s))
    return None


def rejection_response(event: Rejected, more: Mapping[str, str]) -> Response:
    """Return the response to a request that a worker rejected."""
    return problem(status_for_code(event.code), event.detail, code=event.code, more=more)


def publish_failure_response(error: PublisherError, more: Mapping[str, str]) -> Response:
    """Return the response to a request that the broker did not confirm."""
    match error:
        case OutcomeUnknownError():
            return problem(
                _UNAVAILABLE,
                "the broker did not confirm the request: it may have been published",
                more=more,
            )
        case NotDeliveredError():
            return problem(
                _UNAVAILABLE,
                "the broker cannot be reached or accepts no messages now, or no worker consumes "
                "from it",
            )
        case _:
            return problem(_UNAVAILABLE, "the request could not be published")
