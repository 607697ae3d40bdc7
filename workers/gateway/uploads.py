"""`PUT` of an object: sealed into staging, published as an upload (SPEC 9.4).

The gateway is a publisher like any other: it signs as itself, and the workers decide. It
never waits for a worker unless it is asked to (`Prefer: wait=N`, RFC 7240), and then answers
what the worker told. It must never write a byte of plaintext anywhere.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from contracts.errors import BodyTooLargeError, MalformedRequestError
from contracts.messages import Rejected, UploadStored
from contracts.metadata import caller_from_wire
from contracts.publisher import (
    NotDeliveredError,
    OutcomeUnknownError,
    Publisher,
    PublisherError,
    WaitTimeoutError,
)
from contracts.publisher.requests import new_id
from workers.gateway.answers import META_PREFIX
from workers.gateway.client import body_of
from workers.gateway.gate import Admitted
from workers.gateway.metrics import GatewayMetrics
from workers.gateway.paths import object_path
from workers.gateway.problems import problem, status_of

_CREATED: Final = 201
_ACCEPTED: Final = 202
_PRECONDITION_FAILED: Final = 412
_UNAVAILABLE: Final = 503
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_WAIT: Final = re.compile(
    r"(?:^|[,;\s])wait\s*=\s*\"?(?P<seconds>[0-9]{1,6})\"?(?=$|[,;\s])", re.IGNORECASE
)


class Uploads:
    """Takes bodies in.

    Args:
        publisher: The gateway's own.
        metrics: Counts.
        max_bytes: The largest body.
        concurrency: How many bodies at once; each holds some parts of 8 MiB.
        idle_timeout_s: How long a client may send nothing.
        wait_max_s: The longest wait that is granted.
    """

    def __init__(
        self,
        publisher: Publisher,
        metrics: GatewayMetrics,
        *,
        max_bytes: int,
        concurrency: int,
        idle_timeout_s: float,
        wait_max_s: float,
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(concurrency)
        self._idle_timeout_s = idle_timeout_s
        self._wait_max_s = wait_max_s

    async def put(self, request: Request, admitted: Admitted, key: str) -> Response:
        """Hand the body in under this key.

        Raises:
            MalformedRequestError: its headers are not such as an object can keep.
            BodyTooLargeError: it is larger than what is taken.
            StorageUnavailableError: staging failed.
            ClientGoneError: the client sent no more.
        """
        headers = request.headers
        if "if-match" in headers:
            # A key is written once: there is no object that this could take the place of.
            return problem(
                _PRECONDITION_FAILED, "an object is never replaced", headers={"connection": "close"}
            )
        self._check(headers)
        metadata, upload_id = _metadata(headers), new_id()
        try:
            async with self._slots:
                await self._publisher.upload(
                    admitted.project,
                    key,
                    self._body(request),
                    content_type=headers.get("content-type"),
                    metadata=metadata,
                    upload_id=upload_id,
                )
        except PublisherError as exc:
            return unpublished(exc, {"upload_id": upload_id})
        return await self._answer(request, admitted.project, key, upload_id)

    def _check(self, headers: Headers) -> None:
        # RFC 9110, 9.3.4 and 14.5: what is not understood of a PUT must not be passed over.
        for name in ("content-range", "content-encoding"):
            if name in headers:
                raise MalformedRequestError(f"{name} is not taken")
        told = headers.get("content-length", "0")
        if _LENGTH.fullmatch(told) is None or int(told) > self._max_bytes:
            raise BodyTooLargeError(f"at most {self._max_bytes} bytes")

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        taken = 0
        async for piece in body_of(request.receive, self._idle_timeout_s):
            taken += len(piece)
            if taken > self._max_bytes:
                raise BodyTooLargeError(f"at most {self._max_bytes} bytes")
            self._metrics.received_bytes.inc(len(piece))
            yield piece

    async def _answer(self, request: Request, project: str, key: str, upload_id: str) -> Response:
        wait_s = wait_asked(request.headers, self._wait_max_s)
        accepted = JSONResponse({"upload_id": upload_id}, _ACCEPTED)
        if wait_s is None:
            return accepted
        accepted.headers["preference-applied"] = f"wait={wait_s}"
        try:
            event = await self._publisher.wait(upload_id, timeout_s=wait_s)
        except (WaitTimeoutError, PublisherError):
            return accepted
        if isinstance(event, Rejected):
            return refused(event, {"upload_id": upload_id})
        if not isinstance(event, UploadStored):
            return accepted
        place = {"location": object_path(project, key), "preference-applied": f"wait={wait_s}"}
        return JSONResponse({"upload_id": upload_id}, _CREATED, place)


def _metadata(headers: Headers) -> dict[str, str]:
    told: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith(META_PREFIX):
            short = name.removeprefix(META_PREFIX)
            if short in told:
                raise MalformedRequestError("a metadata name stands twice")
            told[short] = _utf8(value)
    return caller_from_wire(told) | {n: v for n, v in told.items() if n.startswith("enc-")}


def _utf8(value: str) -> str:
    """A header's value, whose bytes are UTF-8 today and were Latin-1 once."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def wait_asked(headers: Headers, max_s: float) -> int | None:
    """The seconds of `Prefer: wait=N`, no more than `max_s`; None where none is asked for."""
    found = _WAIT.search(",".join(headers.getlist("prefer")))
    return None if found is None else int(min(int(found["seconds"]), max_s))


def refused(event: Rejected, more: Mapping[str, str]) -> Response:
    """What a worker refused, as the answer to whoever waited for it."""
    return problem(status_of(event.code), event.detail, code=event.code, more=more)


def unpublished(error: PublisherError, more: Mapping[str, str]) -> Response:
    """A request that did not reach the broker, or perhaps did."""
    match error:
        case OutcomeUnknownError():
            return problem(_UNAVAILABLE, "the broker did not confirm: it may have it", more=more)
        case NotDeliveredError():
            return problem(_UNAVAILABLE, "the broker cannot be reached, or no worker serves it")
        case _:
            return problem(_UNAVAILABLE, "the request could not be published")
