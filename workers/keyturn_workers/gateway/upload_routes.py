"""`PUT` of an object: sealed into staging, published as an upload (SPEC 9.4).

The gateway is a publisher like any other: it signs as itself, and the workers decide. It
never waits for a worker unless it is asked to (`Prefer: wait=N`, RFC 7240), and then answers
what the worker told. It must never write a byte of plaintext anywhere.

A key that holds something is refused before the body is taken. A body up to 256 KiB travels
in the request itself; a larger one needs one of a few places, and room in staging, and no
project has more than its share of either (SPEC 9.3).
"""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn.messages import Rejected, UploadStored
from keyturn.metadata import CALLER_MAX_BYTES, decode_caller_metadata
from keyturn.publisher import (
    NotDeliveredError,
    OutcomeUnknownError,
    Publisher,
    PublisherError,
    WaitTimeoutError,
)
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway.auth import Caller
from keyturn_workers.gateway.client_connection import read_body, run_while_connected
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_opener import ObjectOpener
from keyturn_workers.gateway.paths import object_path
from keyturn_workers.gateway.problems import problem, status_for_code
from keyturn_workers.gateway.response_headers import META_PREFIX
from keyturn_workers.gateway.upload_limits import UploadClaim, UploadLimits

_CREATED: Final = 201
_ACCEPTED: Final = 202
_PRECONDITION_FAILED: Final = 412
_UNAVAILABLE: Final = 503
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
# RFC 7240: preferences with their parameters, either of which may be quoted.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE: Final = re.compile(rf'(?:[^,;"]|{_QUOTED})+(?:;(?:[^,;"]|{_QUOTED})*)*')
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?(?P<seconds>[0-9]{1,18})\"?\s*(?:;.*)?", re.IGNORECASE)
# What a client sends of a value is never longer than what the storage is sent, but for quoted
# forms; and decoding takes time that grows with the square.
_METADATA_MAX_BYTES: Final = 2 * CALLER_MAX_BYTES


class UploadRoutes:
    """Takes bodies in.

    Args:
        publisher: The gateway's own.
        source: Tells whether a key holds something.
        limits: Bounds what larger bodies hold, of one project and in all.
        metrics: Counts.
        max_bytes: The largest body.
        idle_timeout_s: How long a client may send nothing.
        wait_max_s: The longest wait that is granted.
    """

    def __init__(
        self,
        publisher: Publisher,
        opener: ObjectOpener,
        limits: UploadLimits,
        metrics: GatewayMetrics,
        *,
        max_bytes: int,
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

    async def put(self, request: Request, caller: Caller, key: str) -> Response:
        """Hand the body in under this key.

        Raises:
            MalformedRequestError: its headers are not such as an object can keep.
            BodyTooLargeError: it is larger than what is taken.
            AlreadyExistsError, DeletedKeyError: the key holds an object, or a tombstone.
            TooManyRequestsError: the project has its share of places or of staging.
            GatewayBusyError: there is no place, or no room in staging, for anybody.
            StorageUnavailableError: staging failed.
            ClientGoneError: the client sent no more.
        """
        headers = request.headers
        if "if-match" in headers:
            # A key is written once: there is no object that this could take the place of.
            return problem(
                _PRECONDITION_FAILED, "an object is never replaced", headers={"connection": "close"}
            )
        told_bytes = self._check(headers)
        metadata, upload_id = _metadata(headers), new_id()
        # Before a byte of the body is read: what would be refused fills neither staging nor the
        # dead letters. Of two that pass here at once the workers refuse one.
        await self._opener.require_unused_key(caller, key)
        try:
            async with self._limits.hold(caller.project, upload_id) as claim:
                # What tells its length has its place before the client is asked for the body.
                await claim.grow(told_bytes)
                await self._publisher.upload(
                    caller.project,
                    key,
                    self._body(request, claim),
                    content_type=headers.get("content-type"),
                    metadata=metadata,
                    upload_id=upload_id,
                )
        except PublisherError as exc:
            return publish_failure_response(exc, {"upload_id": upload_id})
        return await self._answer(request, caller.project, key, upload_id)

    def _check(self, headers: Headers) -> int:
        """The length that the headers tell, 0 where they tell none."""
        # RFC 9110, 9.3.4 and 14.5: what is not understood of a PUT must not be passed over.
        for name in ("content-range", "content-encoding"):
            if name in headers:
                raise MalformedRequestError(f"{name} is not taken")
        told = headers.get("content-length", "0")
        if _LENGTH.fullmatch(told) is None or int(told) > self._max_bytes:
            raise BodyTooLargeError(f"at most {self._max_bytes} bytes")
        return int(told)

    async def _body(self, request: Request, claim: UploadClaim) -> AsyncIterator[bytes]:
        taken = 0
        async for piece in read_body(request.receive, self._idle_timeout_s):
            taken += len(piece)
            if taken > self._max_bytes:
                raise BodyTooLargeError(f"at most {self._max_bytes} bytes")
            await claim.grow(taken)
            self._metrics.received_bytes.inc(len(piece))
            yield piece

    async def _answer(self, request: Request, project: str, key: str, upload_id: str) -> Response:
        wait_s = requested_wait_s(request.headers, self._wait_max_s)
        accepted = JSONResponse({"upload_id": upload_id}, _ACCEPTED)
        if wait_s is None:
            return accepted
        accepted.headers["preference-applied"] = f"wait={wait_s}"
        try:
            waiting = self._publisher.wait(
                upload_id, timeout_s=wait_s, project=project, request_type="upload.requested"
            )
            event = await run_while_connected(request.receive, waiting)
        except (WaitTimeoutError, PublisherError):
            return accepted
        if isinstance(event, Rejected):
            return rejection_response(event, {"upload_id": upload_id})
        if not isinstance(event, UploadStored):
            return accepted
        place = {"location": object_path(project, key), "preference-applied": f"wait={wait_s}"}
        return JSONResponse({"upload_id": upload_id}, _CREATED, place)


def _metadata(headers: Headers) -> dict[str, str]:
    sent = [item for item in headers.items() if item[0].startswith(META_PREFIX)]
    if sum(len(name) - len(META_PREFIX) + len(value) for name, value in sent) > _METADATA_MAX_BYTES:
        raise MalformedRequestError(f"metadata has more than {CALLER_MAX_BYTES} bytes on the wire")
    told: dict[str, str] = {}
    for name, value in sent:
        short = name.removeprefix(META_PREFIX)
        if short in told:
            raise MalformedRequestError("a metadata name stands twice")
        told[short] = _utf8(value)
    return decode_caller_metadata(told) | {n: v for n, v in told.items() if n.startswith("enc-")}


def _utf8(value: str) -> str:
    """A header's value, whose bytes are UTF-8 today and were Latin-1 once."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def requested_wait_s(headers: Headers, max_s: float) -> int | None:
    """The seconds of `Prefer: wait=N`, no more than `max_s`; None where none is asked for."""
    for preference in _PREFERENCE.findall(",".join(headers.getlist("prefer"))):
        found = _WAIT.fullmatch(preference)
        if found is not None:
            return int(min(int(found["seconds"]), max_s))
    return None


def rejection_response(event: Rejected, more: Mapping[str, str]) -> Response:
    """What a worker refused, as the answer to whoever waited for it."""
    return problem(status_for_code(event.code), event.detail, code=event.code, more=more)


def publish_failure_response(error: PublisherError, more: Mapping[str, str]) -> Response:
    """A request that did not reach the broker, or perhaps did."""
    match error:
        case OutcomeUnknownError():
            return problem(_UNAVAILABLE, "the broker did not confirm: it may have it", more=more)
        case NotDeliveredError():
            return problem(_UNAVAILABLE, "the broker cannot be reached, or no worker serves it")
        case _:
            return problem(_UNAVAILABLE, "the request could not be published")
