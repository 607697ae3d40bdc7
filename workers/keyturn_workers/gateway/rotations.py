"""Rotations over HTTP, requested with the current API key (SPEC 9.5).

The published request expects the generation of the caller's key, so that two concurrent
requests do not rotate twice. Every gateway reads a rotation's state from the keyring and from
the project's record. Only the gateway that published a rotation knows that it was rejected, or is
not accepted yet.

Where the operator forbids rotations here, a current API key alone cannot replace itself: a
request that authenticates is refused before its body is read. States are still reported, since
the operator's own rotations have them too.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto.keys import kek_id
from keyturn.errors import (
    CorruptObjectError,
    KekReusedError,
    MalformedRequestError,
    NotFoundError,
    NotPermittedError,
    PublisherError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import is_uuid
from keyturn.messages.events import Event, Rejected
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.keyring_requests import find_generation_number
from keyturn_workers.core.sweep_progress import progress_of
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.publishing import (
    PendingRequests,
    event_of,
    outcome_response,
    publish_failure_response,
)
from keyturn_workers.gateway.request import parse_project, read_json_body
from keyturn_workers.gateway.shares import ConcurrencyLimit
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.process.settings import GatewaySettings

_ACCEPTED: Final = 202
_BODY_MAX_BYTES: Final = 8 * 1024
_MAX_PUBLISHED: Final = 10_000
# How long to wait for the outcome. Later, the keyring shows it.
_OUTCOME_WAIT_S: Final = 600.0
_FORBIDDEN: Final = "this gateway does not rotate API keys: ask the operator for a rotation"


class RotationBody(BaseModel):
    """The body of a `POST`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: SecretStr


class RotationRoutes:
    """Publishes rotations, and reports their state."""

    def __init__(
        self,
        settings: GatewaySettings,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        publisher: Publisher,
        store: SweepStore,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._publisher = publisher
        self._store = store
        self._is_allowed = settings.gateway_rotation == "allowed"
        self._idle_timeout_s = settings.gateway_idle_timeout_s
        self._wait_max_s = settings.gateway_wait_max_s
        self.pending = PendingRequests(
            publisher,
            "rotation.requested",
            noun="rotations in progress",
            per_project=settings.gateway_project_rotations,
            total=_MAX_PUBLISHED,
            outcome_wait_s=_OUTCOME_WAIT_S,
        )
        self._published: OrderedDict[str, _PublishedRotation] = OrderedDict()

    async def post(self, request: Request) -> Response:
        """Publish a rotation to the API key in the body."""
        caller = await self._authenticate(request)
        # Only now: a wrong key must reveal nothing, not even how this gateway is set up.
        if not self._is_allowed:
            raise NotPermittedError(_FORBIDDEN)
        with self._limit.hold(caller.project):
            caller = await self._auth.with_marks(caller)
            body = await read_json_body(
                request.receive, RotationBody, _BODY_MAX_BYTES, self._idle_timeout_s
            )
            self._check_new_key(caller, body.api_key)
            running = await self._count_running(caller)
            rotation_id = new_id()
            ids = {"rotation_id": rotation_id}
            try:
                outcome = await self._publish(caller, body, rotation_id, running)
            except PublisherError as exc:
                return publish_failure_response(exc, ids)
            response = await outcome_response(
                request, outcome, ids, self._wait_max_s, lambda _: None
            )
            if response.status_code == _ACCEPTED:
                response.headers["location"] = f"{request.url.path}/{rotation_id}"
            return response

    async def _publish(
        self, caller: Caller, body: RotationBody, rotation_id: str, running: int
    ) -> asyncio.Task[Event]:
        """Publish the rotation, and remember it; return the task of its outcome."""
        project = caller.project
        with self.pending.hold(project, rotation_id, others=running) as pending:
            publishing = self._publisher.rotate(
                project,
                api_key=body.api_key,
                expected_generation=caller.snapshot.keyring.current.generation,
                rotation_id=rotation_id,
            )
            try:
                return await pending.publish(publishing)
            finally:
                if pending.outcome is not None:
                    self._remember(project, rotation_id, pending.outcome)

    async def _count_running(self, caller: Caller) -> int:
        """Count the project's newest rotations that are being swept, by their records."""
        keyring = caller.snapshot.keyring
        if not keyring.has_old_keks:
            return 0  # a clean sweep has ended since the newest rotation
        try:
            record = (await self._store.read(caller.project)).record
        except (MissingError, CorruptObjectError, UnknownMasterKeyError):
            return 0  # a damaged record must not prevent the rotation of a leaked key
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        return sum(each.is_open and each.kind == "rotation" for each in record.origins)

    async def get(self, request: Request) -> Response:
        """Return the state of a rotation."""
        caller = await self._authenticate(request)
        rotation_id: str = request.path_params["rotation_id"]
        with self._limit.hold(caller.project):
            if not is_uuid(rotation_id):
                raise NotFoundError("this is not a rotation id")
            state = await self._state(caller, rotation_id)
        document = {"rotation_id": rotation_id, "project": caller.project} | state
        return JSONResponse(document, headers={"cache-control": "no-store"})

    async def _authenticate(self, request: Request) -> Caller:
        project = parse_project(request.scope["raw_path"])
        return await self._auth.authenticate(project, request.headers.getlist("authorization"))

    def _check_new_key(self, caller: Caller, api_key: SecretStr) -> None:
        """Refuse a key that the project has or had, as the workers would."""
        keyring = caller.snapshot.keyring
        try:
            label = kek_id(self._auth.derive_kek(api_key.get_secret_value(), caller.project))
        except ValueError as exc:  # its text names the rule, not the key
            raise MalformedRequestError(str(exc)) from None
        if label in {entry.kek_id for entry in (keyring.current, *keyring.history)}:
            raise KekReusedError("the project has or had this API key")

    def _remember(self, project: str, rotation_id: str, outcome: asyncio.Task[Event]) -> None:
        self._published[rotation_id] = _PublishedRotation(project, outcome)
        while len(self._published) > _MAX_PUBLISHED:
            _, oldest = self._published.popitem(last=False)
            oldest.outcome.cancel()

    async def _state(self, caller: Caller, rotation_id: str) -> dict[str, Any]:
        generation = find_generation_number(caller.snapshot.keyring, rotation_id)
        if generation is None:
            # The rotation may have been accepted after the snapshot.
            keyring = (await self._auth.reauthenticate(caller)).snapshot.keyring
            generation = find_generation_number(keyring, rotation_id)
        try:
            record = (await self._store.read(caller.project)).record
            origins = [each for each in record.origins if each.kind == "rotation"]
        except MissingError:
            origins = []
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        origin = next((each for each in origins if each.id == rotation_id), None)
        if generation is None:
            if origin is None or origin.end is None:
                return self._not_accepted(caller.project, rotation_id)
            # An operator has restored a keyring without it.
            return {"state": "failed", "code": origin.end.code, "detail": origin.end.detail}
        state = {"state": "accepted", "generation": generation}
        if origin is None:
            return state  # it has not been added, or ended long ago
        end = origin.end
        is_clean = end is not None and end.clean
        if end is not None and end.code:
            return state | {"state": "failed", "code": end.code, "detail": end.detail}
        counts: dict[str, Any] = {**record.counts_of(origin).to_json(), "clean": is_clean}
        progress = progress_of(record, origin).model_dump(mode="json", exclude_none=True)
        now = "running" if end is None else "completed"
        return state | {"state": now, "counts": counts, "progress": progress}

    def _not_accepted(self, project: str, rotation_id: str) -> dict[str, Any]:
        rotation = self._published.get(rotation_id)
        if rotation is None or rotation.project != project:
            raise NotFoundError("no rotation with this id was accepted")
        event = event_of(rotation.outcome)
        if isinstance(event, Rejected):
            return {"state": "rejected", "code": event.code, "detail": event.detail}
        return {"state": "requested"}


@dataclass(slots=True)
class _PublishedRotation:
    """A rotation that this gateway published, and its outcome to come."""

    project: str
    outcome: asyncio.Task[Event]
