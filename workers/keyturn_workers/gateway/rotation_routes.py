"""Rotations over HTTP (SPEC 9.5): asked for by the holder of the current API key.

What is published expects the generation that the caller's key was good for, so that two who
ask at once do not turn the key twice. The state of a rotation is read from the keyring and
from its sweep's record, which every gateway can; only that one was refused, or is still on
its way, is known to the gateway alone that published it.
"""

import asyncio
from collections import Counter, OrderedDict
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto import kek_id
from keyturn.errors import (
    BodyTooLargeError,
    CorruptObjectError,
    KekReusedError,
    MalformedRequestError,
    NotFoundError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import is_uuid
from keyturn.messages import Event, Rejected, load_json, problems
from keyturn.publisher import OutcomeUnknownError, Publisher, PublisherError, WaitTimeoutError
from keyturn.publisher.requests import new_id
from keyturn_workers.errors import MissingError, StorageAnswerError
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.client_connection import read_body, run_while_connected
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit
from keyturn_workers.gateway.paths import parse_project
from keyturn_workers.gateway.upload_routes import (
    publish_failure_response,
    rejection_response,
    requested_wait_s,
)
from keyturn_workers.keyring import find_generation_number
from keyturn_workers.sweep import SweepStore

_ACCEPTED: Final = 202
_BODY_MAX_BYTES: Final = 8 * 1024
_BODY_TIMEOUT_S: Final = 10.0
_MAX_KNOWN: Final = 10_000
# How long an answer is listened for; whoever asks later reads the keyring.
_LISTEN_S: Final = 600.0


class RotationBody(BaseModel):
    """The body of a `POST`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: SecretStr


class RotationRoutes:
    """Publishes rotations, and tells how far they are.

    Args:
        gate: Decides who may ask.
        limit: Bounds what is served at once, of one project and in all.
        publisher: The gateway's own.
        store: The records of sweeps.
        max_under_way: How many rotations of one project may be under way.
        idle_timeout_s: How long a client may send nothing.
        wait_max_s: The longest wait that is granted.
    """

    def __init__(
        self,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        publisher: Publisher,
        store: SweepStore,
        *,
        max_under_way: int,
        idle_timeout_s: float,
        wait_max_s: float,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._publisher = publisher
        self._store = store
        self._max_under_way = max_under_way
        # How many of each project were published here and are not answered yet.
        self._pending: Counter[str] = Counter()
        self._idle_timeout_s = min(idle_timeout_s, _BODY_TIMEOUT_S)
        self._wait_max_s = wait_max_s
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def close(self) -> None:
        """Listen for no answer any more."""
        tasks = [known.answer for known in self._known.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def post(self, request: Request) -> Response:
        """Publish a rotation to the API key in the body."""
        caller = await self._authenticate(request)
        with self._limit.hold(caller.project):
            return await self._post(request, caller)

    async def _post(self, request: Request, caller: Caller) -> Response:
        ask = await self._ask(request)
        self._check(caller, ask.api_key)
        under_way = await self._running(caller)
        # From here to the publication nothing is awaited that others could pass by.
        if under_way + self._pending[caller.project] >= self._max_under_way:
            raise TooManyRequestsError(
                f"the project has {self._max_under_way} rotations under way: wait for their end"
            )
        rotation_id = new_id()
        answer = await self._publish(caller, ask, rotation_id)
        if isinstance(answer, Response):
            return answer
        wait_s = requested_wait_s(request.headers, self._wait_max_s)
        said = {"location": f"{request.url.path}/{rotation_id}"}
        if wait_s is not None:
            said["preference-applied"] = f"wait={wait_s}"
            waiting = asyncio.wait((answer,), timeout=wait_s)
            await run_while_connected(request.receive, waiting)
            if (event := _told(answer)) is not None and isinstance(event, Rejected):
                return rejection_response(event, {"rotation_id": rotation_id})
        return JSONResponse({"rotation_id": rotation_id}, _ACCEPTED, said)

    async def _publish(
        self, caller: Caller, ask: RotationBody, rotation_id: str
    ) -> asyncio.Task[Event] | Response:
        """Publish it: the answer that is listened for, or the refusal where it did not go out."""
        project = caller.project
        self._pending[project] += 1
        try:
            await self._publisher.rotate(
                project,
                api_key=ask.api_key,
                expected_generation=caller.snapshot.keyring.current.generation,
                rotation_id=rotation_id,
            )
        except BaseException as exc:
            if isinstance(exc, OutcomeUnknownError):
                self._listen(project, rotation_id)
            else:
                self._answered(project)
            if isinstance(exc, PublisherError):
                return publish_failure_response(exc, {"rotation_id": rotation_id})
            raise
        return self._listen(project, rotation_id)

    def _answered(self, project: str) -> None:
        self._pending[project] -= 1
        if not self._pending[project]:
            del self._pending[project]

    async def _running(self, caller: Caller) -> int:
        """How many of the project's newest rotations are being swept, by their records."""
        keyring = caller.snapshot.keyring
        if all(entry.kek is None for entry in keyring.history):
            return 0  # a clean sweep has ended since the newest was accepted
        newest = (keyring.current, *reversed(keyring.history))[: self._max_under_way]
        states = [await self._is_running(entry.rotation_id, caller.project) for entry in newest]
        return sum(states)

    async def _is_running(self, rotation_id: str, project: str) -> bool:
        try:
            return (await self._store.read(rotation_id, project)).plan.status == "running"
        except (MissingError, CorruptObjectError, UnknownMasterKeyError):
            return False  # who spoils a record must not keep a project at a key that leaked
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc

    async def get(self, request: Request) -> Response:
        """How far a rotation is."""
        caller = await self._authenticate(request)
        with self._limit.hold(caller.project):
            return await self._get(request, caller)

    async def _get(self, request: Request, caller: Caller) -> Response:
        rotation_id: str = request.path_params["rotation_id"]
        if not is_uuid(rotation_id):
            raise NotFoundError("no rotation has this id")
        state = await self._state(caller, rotation_id)
        document = {"rotation_id": rotation_id, "project": caller.project} | state
        return JSONResponse(document, headers={"cache-control": "no-store"})

    async def _authenticate(self, request: Request) -> Caller:
        project = parse_project(request.scope["raw_path"])
        return await self._auth.authenticate(project, request.headers.getlist("authorization"))

    async def _ask(self, request: Request) -> RotationBody:
        body = bytearray()
        async for piece in read_body(request.receive, self._idle_timeout_s):
            body += piece
            if len(body) > _BODY_MAX_BYTES:
                raise BodyTooLargeError(f"at most {_BODY_MAX_BYTES} bytes")
        try:
            return RotationBody.model_validate(load_json(bytes(body)))
        except ValidationError as exc:
            raise MalformedRequestError(problems(exc)) from None  # the cause repeats values

    def _check(self, caller: Caller, api_key: SecretStr) -> None:
        """Refuse at once what the workers would refuse: a key of the project's past."""
        keyring = caller.snapshot.keyring
        try:
            label = kek_id(self._auth.derive_kek(api_key.get_secret_value(), caller.project))
        except ValueError as exc:  # its text names the rule, never the key
            raise MalformedRequestError(str(exc)) from None
        if label in {entry.kek_id for entry in (keyring.current, *keyring.history)}:
            raise KekReusedError("the project has or had this key")

    def _listen(self, project: str, rotation_id: str) -> asyncio.Task[Event]:
        waiting = self._publisher.wait(
            rotation_id,
            timeout_s=_LISTEN_S,
            project=project,
            request_type="rotation.requested",
        )
        answer = asyncio.create_task(waiting)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        until_s = asyncio.get_running_loop().time() + _LISTEN_S
        answer.add_done_callback(lambda done: self._listened(project, done, until_s))
        self._known[rotation_id] = _Known(project, answer)
        while len(self._known) > _MAX_KNOWN:
            _, oldest = self._known.popitem(last=False)
            oldest.answer.cancel()
        return answer

    def _listened(self, project: str, answer: asyncio.Task[Event], until_s: float) -> None:
        """Give the project its share back, but for an answer that could not be listened for.

        The rotation may be on its way all the same: were the share free at once, a project
        could publish without bound for as long as the stream of events cannot be read.
        """
        failed = None if answer.cancelled() else answer.exception()
        if failed is None or isinstance(failed, WaitTimeoutError):
            self._answered(project)
        else:
            answer.get_loop().call_at(until_s, self._answered, project)

    async def _state(self, caller: Caller, rotation_id: str) -> dict[str, Any]:
        generation = find_generation_number(caller.snapshot.keyring, rotation_id)
        if generation is None:
            # Accepted since that reading, perhaps.
            keyring = (await self._auth.reauthenticate(caller)).snapshot.keyring
            generation = find_generation_number(keyring, rotation_id)
        if generation is None:
            return self._not_accepted(caller.project, rotation_id)
        state = {"state": "accepted", "generation": generation}
        try:
            plan = (await self._store.read(rotation_id, caller.project)).plan
        except MissingError:
            return state  # its sweep is about to begin, or ended so long ago that it was removed
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if plan.ask.kind != "rotation":
            return state  # a sweep of another publisher's, under the id of this rotation
        counts: dict[str, Any] = {**plan.counts.to_json(), "clean": plan.clean}
        if plan.status == "running":
            return state | {"state": "running", "counts": counts}
        if plan.status == "failed":
            return state | {"state": "failed", "code": plan.code, "detail": plan.detail}
        return state | {"state": "completed", "counts": counts}

    def _not_accepted(self, project: str, rotation_id: str) -> dict[str, Any]:
        known = self._known.get(rotation_id)
        if known is None or known.project != project:
            raise NotFoundError("no rotation of this id was accepted")
        event = _told(known.answer)
        if isinstance(event, Rejected):
            return {"state": "rejected", "code": event.code, "detail": event.detail}
        return {"state": "requested"}


class _Known:
    """A rotation that was published here, and the answer that is listened for."""

    __slots__ = ("answer", "project")

    def __init__(self, project: str, answer: asyncio.Task[Event]) -> None:
        self.project = project
        self.answer = answer


def _told(answer: asyncio.Task[Event]) -> Event | None:
    if not answer.done() or answer.cancelled() or answer.exception() is not None:
        return None
    return answer.result()
