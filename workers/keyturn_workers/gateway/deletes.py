"""`DELETE` of an object, published as the gateway's own request (SPEC 8.7, 9.3).

A worker puts a tombstone in the object's place and publishes the outcome once the tombstone is
final, after two leases. A shorter wait (`Prefer: wait=N`) usually ends in 202. A key that never had
an object is refused after one read of the storage. A tombstone is deleted again, since an earlier
request may have been lost.

All deletes share `keyturn.control` with the enrollments, rotations and sweeps of every project.
Each one served leaves a record in the audit trail, each one refused a dead letter. The limit of
pending deletes is what one API key can cause of all three: a request of another project waits
behind at most that many deletes of this one from each gateway. A delete counts for at least as
long as a real one takes. The outcome of deleting a tombstone or a locked object comes within
milliseconds: without that minimum, repeating it would fill the audit trail or the dead letters.
"""

import asyncio
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from keyturn.errors import NotFoundError, NotPermittedError
from keyturn.messages import Event, ObjectDeleted
from keyturn.publisher import (
    BrokerUnavailableError,
    NotDeliveredError,
    Publisher,
    PublisherError,
)
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway.auth import Caller
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.gateway.problems import problem
from keyturn_workers.gateway.publishing import (
    PendingRequests,
    outcome_response,
    publish_failure_response,
)
from keyturn_workers.gateway.request import allow_change, has_conditions
from keyturn_workers.settings import GatewaySettings

_NO_CONTENT: Final = 204
_PRECONDITION_FAILED: Final = 412
# A delete whose outcome is not known by then no longer counts as pending.
_OUTCOME_WAIT_S: Final = 600.0
# Two leases by default: no object is deleted sooner.
_MIN_PENDING_S: Final = 30.0
_MAX_PENDING: Final = 10_000
_PAUSE_S: Final = 30.0
_FORBIDDEN: Final = "this gateway does not delete objects: ask the operator"

_log = structlog.get_logger()


class DeleteRoutes:
    """Handles deletes.

    Args:
        settings: Of the gateway.
        publisher: The gateway's publisher.
        opener: Checks whether a key has an object.
    """

    def __init__(
        self, settings: GatewaySettings, publisher: Publisher, opener: ObjectOpener
    ) -> None:
        self._publisher = publisher
        self._opener = opener
        self._is_allowed = settings.gateway_delete == "allowed"
        self._wait_max_s = settings.gateway_wait_max_s
        self._pending = PendingRequests(
            publisher,
            "delete.requested",
            noun="deletes pending",
            per_project=settings.gateway_project_deletes,
            total=_MAX_PENDING,
            outcome_wait_s=_OUTCOME_WAIT_S,
            min_s=_MIN_PENDING_S,
        )
        self._paused_until = 0.0

    async def close(self) -> None:
        """Stop waiting for outcomes."""
        await self._pending.close()

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
        # Not earlier than here: a wrong key must not learn how this gateway is set up.
        if not self._is_allowed:
            raise NotPermittedError(_FORBIDDEN)
        request_id = new_id()
        ids = {"request_id": request_id}
        # It counts before the storage is read: concurrent requests cannot all pass.
        with self._pending.hold(caller.project, request_id) as pending:
            if not await self._meets_conditions(request, caller, key):
                return problem(_PRECONDITION_FAILED, "the object does not meet the conditions")
            try:
                outcome = await pending.publish(self._send(caller.project, key, request_id))
            except PublisherError as exc:
                return publish_failure_response(exc, ids)

        def completed(event: Event) -> Response | None:
            return Response(None, _NO_CONTENT) if isinstance(event, ObjectDeleted) else None

        return await outcome_response(request, outcome, ids, self._wait_max_s, completed)

    async def _send(self, project: str, key: str, request_id: str) -> None:
        """Publish, unless the broker has just refused a delete.

        A broker whose permissions for this gateway lack `delete.requested` closes the channel.
        That fails whatever else is being published on it: uploads of other projects.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until:
            raise NotDeliveredError("the broker has refused a delete")
        try:
            await self._publisher.delete(project, key, request_id=request_id)
        except BrokerUnavailableError:
            raise
        except NotDeliveredError:
            self._paused_until = loop.time() + _PAUSE_S
            _log.error("the broker refuses deletes: check the permissions of the gateway's user")
            raise

    async def _meets_conditions(self, request: Request, caller: Caller, key: str) -> bool:
        """Whether the request's conditions hold; raise if there is nothing to delete."""
        stored = await self._opener.find_stored(caller, key)
        if stored is None:
            raise NotFoundError("no object has this key")
        return not has_conditions(request.headers) or allow_change(
            request.headers, stored.etag, stored.modified_at
        )
