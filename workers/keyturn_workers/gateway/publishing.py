"""Requests that are published for callers, and their outcomes (SPEC 8.7, 9.3 to 9.5).

Requests that are not served yet wait on the broker, which all projects share. So one project may
have only so many requests there from one gateway, and so many bytes in them. Without that limit,
one API key fills the broker while no worker runs.

The outcome is the event that answers the request. If it does not become known, because events were
lost or no worker serves the request, the request counts for a limited time. Each gateway process
counts only its own requests, since its start.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto.links import UploadLinkClaims
from keyturn.errors import (
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
    TooManyRequestsError,
    WaitTimeoutError,
)
from keyturn.messages.events import Event, Rejected
from keyturn.publisher.client import Publisher
from keyturn.publisher.event_matcher import RequestType
from keyturn.tasks import cancel_all
from keyturn_workers.gateway.problems import problem, status_for_code
from keyturn_workers.gateway.request import requested_wait_s
from keyturn_workers.gateway.shares import GatewayBusyError
from keyturn_workers.process.background import share
from keyturn_workers.process.http_server.client_connection import run_while_connected

# Between two attempts to read the events.
_RETRY_S: Final = 5.0
_ACCEPTED: Final = 202
_UNAVAILABLE: Final = 503

_log = structlog.get_logger()


@dataclass(slots=True)
class _Usage:
    """The pending requests of one project: `count` is what they count for."""

    requests: int = 0
    count: int = 0
    size_bytes: int = 0


class PendingRequests:
    """Counts requests of one type, from before their publication until their outcome.

    Args:
        publisher: The gateway's publisher, which receives the outcomes.
        request_type: The type of the requests.
        noun: What is counted, for the error's detail: "deletes pending".
        per_project: How many of one project may be pending: `KEYTURN_GATEWAY_PENDING` uploads,
            `KEYTURN_GATEWAY_PROJECT_DELETES` keys or `KEYTURN_GATEWAY_PROJECT_ROTATIONS`. A
            project that has none pending may always have one request.
        total: How many of all projects may be pending: it bounds this process's memory.
        project_requests: How many requests of one project may be pending, if one may count for
            several.
        outcome_wait_s: How long a request counts at most.
        min_s: How long it counts at least, however soon its outcome is known.
        project_bytes: How many bytes of one project may be pending, for uploads
            `KEYTURN_GATEWAY_PENDING_BYTES`. A project that has none pending may always have one
            request.
    """

    def __init__(
        self,
        publisher: Publisher,
        request_type: RequestType,
        *,
        noun: str,
        per_project: int,
        total: int,
        outcome_wait_s: float,
        min_s: float = 0.0,
        project_bytes: int = sys.maxsize,
        project_requests: int = sys.maxsize,
    ) -> None:
        self._publisher = publisher
        self._request_type: RequestType = request_type
        self._noun = noun
        self._per_project = per_project
        self._total = total
        self._outcome_wait_s = outcome_wait_s
        self._min_s = min_s
        self._project_bytes = project_bytes
        self._project_requests = project_requests
        self._projects: dict[str, _Usage] = {}
        self._links: set[UploadLinkClaims] = set()
        self._outcomes: set[asyncio.Task[Event]] = set()
        self._can_read_events = True
        self.in_all = 0

    async def close(self) -> None:
        """Stop waiting for outcomes."""
        await cancel_all(self._outcomes)

    @contextmanager
    def hold(
        self,
        project: str,
        request_id: str,
        *,
        count: int = 1,
        others: int = 0,
        link: UploadLinkClaims | None = None,
    ) -> Iterator["PendingRequest"]:
        """Count a request while the block publishes it; once published, until its outcome.

        It counts `count` times. `others` more of the project are in progress, as the caller
        knows. An upload `link` may have one request pending.

        Raises:
            TooManyRequestsError: the project has as many pending as it may, or the link has one.
            GatewayBusyError: all projects together have too many.
        """
        usage = self._projects.get(project) or _Usage()
        pending = usage.count + others
        is_full = pending and pending + count > self._per_project
        if is_full or usage.requests >= self._project_requests:
            raise TooManyRequestsError(
                f"the project has {pending} {self._noun}: retry when some have ended"
            )
        if self.in_all and self.in_all + count > self._total:
            raise GatewayBusyError
        if link in self._links:
            raise TooManyRequestsError("an upload by this link has no outcome yet")
        self._projects[project] = usage
        usage.requests += 1
        usage.count += count
        self.in_all += count
        if link is not None:
            self._links.add(link)
        request = PendingRequest(self, project, request_id, count, link)
        try:
            yield request
        finally:
            if request.outcome is None:
                self.release(request)

    def resize(self, request: "PendingRequest", size_bytes: int) -> None:
        """Count this many bytes for the request. Errors as `PendingRequest.resize`."""
        usage = self._projects[request.project]
        others = usage.size_bytes - request.size_bytes
        if others and others + size_bytes > self._project_bytes:
            raise TooManyRequestsError(
                f"the project has {others} bytes of {self._noun}: retry when some have ended"
            )
        usage.size_bytes = others + size_bytes
        request.size_bytes = size_bytes

    def release(self, request: "PendingRequest") -> None:
        """Stop counting the request."""
        usage = self._projects[request.project]
        usage.requests -= 1
        usage.count -= request.count
        usage.size_bytes -= request.size_bytes
        self.in_all -= request.count
        if request.link is not None:
            self._links.remove(request.link)
        if not usage.requests:
            del self._projects[request.project]

    def follow(self, request: "PendingRequest") -> asyncio.Task[Event]:
        """Count the request until its outcome; return the task that waits for it."""
        loop = asyncio.get_running_loop()
        release_at = loop.time() + self._min_s

        def ended(outcome: asyncio.Task[Event]) -> None:
            self._outcomes.discard(outcome)
            loop.call_at(release_at, self.release, request)

        outcome = share(self._outcome(request))
        self._outcomes.add(outcome)
        outcome.add_done_callback(ended)
        return outcome

    async def _outcome(self, request: "PendingRequest") -> Event:
        """Return the event that answers the request.

        If events cannot be read, the request may still be pending. If it were released at once, a
        project could publish without a limit in the meantime.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._outcome_wait_s
        while True:
            try:
                event = await self._publisher.wait(
                    request.request_id,
                    timeout_s=until - loop.time(),
                    project=request.project,
                    request_type=self._request_type,
                )
            except WaitTimeoutError:
                raise
            except PublisherError as exc:
                if self._can_read_events:
                    self._can_read_events = False
                    _log.error("events cannot be read: outcomes are not known", reason=str(exc))
                if loop.time() >= until:
                    raise
                await asyncio.sleep(min(_RETRY_S, until - loop.time()))
            else:
                self._can_read_events = True
                return event


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request, created by `PendingRequests.hold`.

    `outcome` is set once the request may have been published.
    """

    _all: PendingRequests
    project: str
    request_id: str
    count: int
    link: UploadLinkClaims | None
    size_bytes: int = 0
    outcome: asyncio.Task[Event] | None = None

    def resize(self, size_bytes: int) -> None:
        """Count this many bytes for the request.

        Raises:
            TooManyRequestsError: the project's pending requests hold too many.
        """
        self._all.resize(self, size_bytes)

    async def publish(self, publishing: Awaitable[object]) -> asyncio.Task[Event]:
        """Publish the request and count it; return the task that waits for its outcome.

        Raises:
            OutcomeUnknownError: it may have been published, and counts until its outcome too.
            PublisherError: it was not published.
        """
        try:
            await publishing
        except BaseException as exc:
            if isinstance(exc, OutcomeUnknownError | asyncio.CancelledError):
                self.outcome = self._all.follow(self)
            raise
        self.outcome = self._all.follow(self)
        return self.outcome


def event_of(outcome: asyncio.Task[Event]) -> Event | None:
    """Return the outcome, if it is known."""
    if not outcome.done() or outcome.cancelled() or outcome.exception() is not None:
        return None
    return outcome.result()


async def outcome_response(
    request: Request,
    outcome: asyncio.Task[Event],
    ids: Mapping[str, object],
    wait_max_s: float,
    completed: Callable[[Event], Response | None],
) -> Response:
    """Return the response to a published request: its outcome if that is known, else 202.

    It waits for the outcome for as long as the caller asks (`Prefer: wait=N`), up to `wait_max_s`.
    If the client leaves meanwhile, only this wait ends. `ids` has the request's id, by the name of
    its member, and further members of the response. `completed` makes the response to an outcome;
    with None, the response is 202, or has the refusal's status.

    Raises:
        ClientGoneError: the client disconnected while it waited.
    """
    accepted = JSONResponse(dict(ids), _ACCEPTED)
    wait_s = requested_wait_s(request.headers, wait_max_s)
    if wait_s is None:
        return accepted
    await run_while_connected(request.receive, asyncio.wait((outcome,), timeout=wait_s))
    event = event_of(outcome)
    response = None if event is None else completed(event)
    if response is None and isinstance(event, Rejected):
        return problem(status_for_code(event.code), event.detail, code=event.code, more=ids)
    response = response or accepted
    response.headers["preference-applied"] = f"wait={wait_s}"
    return response


def publish_failure_response(error: PublisherError, ids: Mapping[str, object]) -> Response:
    """Return the response to a request that the broker did not confirm."""
    match error:
        case OutcomeUnknownError():
            detail = "the broker did not confirm the request: it may have been published"
            return problem(_UNAVAILABLE, detail, more=ids)
        case NotDeliveredError():
            detail = (
                "the broker cannot be reached or accepts no messages now, or no worker consumes "
                "from it"
            )
        case _:
            detail = "the request could not be published"
    return problem(_UNAVAILABLE, detail)
