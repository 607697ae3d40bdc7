"""Deletes of one object or of many, published as the gateway's own request (SPEC 8.7, 9.3).

    DELETE /v1/projects/{project}/objects/{key}     one object
    POST   /v1/projects/{project}/deletes           up to 1,000, each with its own outcome

A worker puts a tombstone in the object's place and publishes the outcome once the tombstone is
final, after two leases. A shorter wait (`Prefer: wait=N`) usually ends in 202. A key that never had
an object is refused after one read of the storage. A tombstone is deleted again, since an earlier
request may have been lost.

All deletes share `keyturn.control` with the enrollments, rotations and sweeps of every project.
A served delete leaves a record in the audit trail, a refused one a dead letter. The limit of
pending deletes bounds what one API key can cause of all three: a request of another project waits
behind at most that many deletes of this one from each gateway. A delete counts for at least as
long as a real one takes. The outcome of deleting a tombstone or a locked object comes within
milliseconds: without that minimum, repeating it would fill the audit trail or the dead letters.
A delete of many counts for each of its keys, and the number of requests is limited as well.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.errors import (
    BrokerUnavailableError,
    NotDeliveredError,
    NotFoundError,
    NotPermittedError,
    NotSentHereError,
    PublisherError,
)
from keyturn.messages.events import DeleteRejected, Event, ObjectDeleted
from keyturn.messages.fields import DeletedKeys
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.gateway.problems import problem
from keyturn_workers.gateway.publishing import (
    PendingRequests,
    outcome_response,
    publish_failure_response,
)
from keyturn_workers.gateway.request import (
    allow_change,
    has_conditions,
    parse_project,
    read_json_body,
)
from keyturn_workers.gateway.shares import ConcurrencyLimit, SharedLimit
from keyturn_workers.process.http_server.client_connection import run_while_connected
from keyturn_workers.process.settings import GatewaySettings

_NO_CONTENT: Final = 204
_PRECONDITION_FAILED: Final = 412
# A delete that has no known outcome by then no longer counts as pending.
_OUTCOME_WAIT_S: Final = 600.0
# Two leases by default: no object is deleted sooner.
_MIN_PENDING_S: Final = 30.0
# Keys of all projects, and requests of one.
_MAX_PENDING: Final = 100_000
_PROJECT_REQUESTS: Final = 64
# Room for 1,000 keys of 900 bytes, with a backslash before each character that may have one.
_BODY_MAX_BYTES: Final = 2 * 1024 * 1024
# Keys of requests for many deletes that are looked up at once, in total and of one project.
_READS_AT_ONCE: Final = 64
_READS_AT_ONCE_A_PROJECT: Final = 16
_NOTHING_THERE: Final = "no object has this key"
_PAUSE_S: Final = 30.0
_FORBIDDEN: Final = "this gateway does not delete objects: ask the operator"

_log = structlog.get_logger()


class DeletesBody(BaseModel):
    """The body of a `POST`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: DeletedKeys


class DeleteRoutes:
    """Handles deletes."""

    def __init__(
        self,
        settings: GatewaySettings,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        publisher: Publisher,
        opener: ObjectOpener,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._publisher = publisher
        self._opener = opener
        self._is_allowed = settings.gateway_delete == "allowed"
        self._wait_max_s = settings.gateway_wait_max_s
        self._idle_timeout_s = settings.gateway_idle_timeout_s
        self._reads = SharedLimit(_READS_AT_ONCE, _READS_AT_ONCE_A_PROJECT)
        self.pending = PendingRequests(
            publisher,
            "delete.requested",
            noun="deletes pending",
            per_project=settings.gateway_project_deletes,
            total=_MAX_PENDING,
            outcome_wait_s=_OUTCOME_WAIT_S,
            min_s=_MIN_PENDING_S,
            project_requests=_PROJECT_REQUESTS,
        )
        self._paused_until = 0.0

    async def delete(self, request: Request, caller: Caller, key: str) -> Response:
        """Publish the delete of this key.

        Raises:
            NotPermittedError: this gateway does not delete objects.
            NotFoundError: there is neither an object nor a tombstone.
            TooManyRequestsError: the project has too many deletes pending.
            GatewayBusyError: too many deletes of all projects are pending.
            StorageUnavailableError: the storage cannot be read.
            ClientGoneError: the client disconnected while it waited.
        """
        # Only now: a wrong key must not reveal how this gateway is set up.
        if not self._is_allowed:
            raise NotPermittedError(_FORBIDDEN)
        request_id = new_id()
        ids = {"request_id": request_id}
        # The request counts before the storage is read: concurrent requests cannot all pass.
        with self.pending.hold(caller.project, request_id) as pending:
            if not await self._meets_conditions(request, caller, key):
                return problem(_PRECONDITION_FAILED, "the object does not meet the conditions")
            publish = partial(self._publisher.delete, caller.project, key, request_id=request_id)
            try:
                outcome = await pending.publish(self._send(publish))
            except PublisherError as exc:
                return publish_failure_response(exc, ids)

        def completed(event: Event) -> Response | None:
            return Response(None, _NO_CONTENT) if isinstance(event, ObjectDeleted) else None

        return await outcome_response(request, outcome, ids, self._wait_max_s, completed)

    async def post(self, request: Request) -> Response:
        """Publish the delete of the keys in the body."""
        project = parse_project(request.scope["raw_path"])
        caller = await self._auth.authenticate(project, request.headers.getlist("authorization"))
        if not self._is_allowed:
            raise NotPermittedError(_FORBIDDEN)
        with self._limit.hold(caller.project):
            caller = await self._auth.with_marks(caller)
            body = await read_json_body(
                request.receive, DeletesBody, _BODY_MAX_BYTES, self._idle_timeout_s
            )
            return await self._delete_many(request, caller, body.keys)

    async def _delete_many(
        self, request: Request, caller: Caller, keys: tuple[str, ...]
    ) -> Response:
        """Publish the delete of the keys that have an object or a tombstone; errors as `delete`.

        The response names each key that is deleted, and each that is refused with its code.
        """
        request_id = new_id()
        with self.pending.hold(caller.project, request_id, count=len(keys)) as pending:
            found = await run_while_connected(request.receive, self._find_used(caller, keys))
            if not found:
                raise NotFoundError(
                    _NOTHING_THERE if len(keys) == 1 else "no object has any of these keys"
                )
            missing = [
                _refused(key, NotFoundError.code, _NOTHING_THERE)
                for key in keys
                if key not in found
            ]
            ids: dict[str, object] = {"request_id": request_id}
            publish = partial(
                self._publisher.delete_many,
                caller.project,
                [key for key in keys if key in found],
                request_id=request_id,
            )
            try:
                outcome = await pending.publish(self._send(publish))
            except PublisherError as exc:
                return publish_failure_response(exc, ids)

        def completed(event: Event) -> Response | None:
            if isinstance(event, DeleteRejected) and event.key is None:
                return None
            try:
                outcomes = self._publisher.delete_outcomes(request_id)
            except NotSentHereError:
                return None
            return JSONResponse(ids | _document(outcomes, missing))

        ids_with_refused = ids | {"rejected": missing}
        return await outcome_response(
            request, outcome, ids_with_refused, self._wait_max_s, completed
        )

    async def _find_used(self, caller: Caller, keys: Sequence[str]) -> set[str]:
        """Return the keys that have an object or a tombstone."""
        found = set[str]()

        async def look(key: str) -> None:
            if await self._opener.find_stored(caller, key) is not None:
                found.add(key)

        await self._reads.run_each(caller.project, keys, look)
        return found

    async def _send(self, publish: Callable[[], Awaitable[str]]) -> None:
        """Publish, unless the broker has just refused a delete.

        A broker whose permissions for this gateway lack `delete.requested` closes the channel. Then
        everything else being published on it fails too: uploads of other projects.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until:
            raise NotDeliveredError("the broker has refused a delete")
        try:
            await publish()
        except BrokerUnavailableError:
            raise
        except NotDeliveredError:
            self._paused_until = loop.time() + _PAUSE_S
            _log.error("the broker refuses deletes: check the permissions of the gateway's user")
            raise

    async def _meets_conditions(self, request: Request, caller: Caller, key: str) -> bool:
        """Check if the request's conditions hold; raise if there is nothing to delete."""
        stored = await self._opener.find_stored(caller, key)
        if stored is None:
            raise NotFoundError(_NOTHING_THERE)
        return not has_conditions(request.headers) or allow_change(
            request.headers, stored.etag, stored.modified_at
        )


def _document(
    outcomes: Mapping[str, ObjectDeleted | DeleteRejected], missing: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """Return the outcome of each key, published or not."""
    deleted = [key for key, event in outcomes.items() if isinstance(event, ObjectDeleted)]
    refused = [
        _refused(key, event.code, event.detail)
        for key, event in outcomes.items()
        if isinstance(event, DeleteRejected)
    ]
    return {"deleted": deleted, "rejected": [*missing, *refused]}


def _refused(key: str, code: str, detail: str) -> dict[str, str]:
    return {"key": key, "code": code, "detail": detail}
