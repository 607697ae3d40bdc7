"""People's requests through the console: signed, each published once (SPEC 6.7, 16.1).

    actions = Actions(publisher)
    action = Action(request_id, "sweep", "acme", person.name, options=SweepOptions())
    action = await actions.request(action)
    action.state  # sending, published, accepted, rejected, not_sent or unknown

A form determines the id of its request. So a form that is sent twice publishes once, and an attempt
that the broker did not confirm is repeated under the same id, which takes effect once.

Memory is bounded: at most `max_kept` requests are remembered, and none younger than the forms'
longest life is forgotten, since its form could be sent again. A new API key is held until the
broker has confirmed its request, for at most `KEY_LIFE_S`.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

import structlog
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from keyturn.errors import (
    CodedError,
    KeyturnError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
    WaitTimeoutError,
)
from keyturn.messages.events import DeadLettersMoved, Event, Rejected
from keyturn.messages.fields import DeadLettersAction
from keyturn.publisher.client import Publisher
from keyturn.publisher.event_matcher import RequestType
from keyturn_workers.console.auth.person import Person
from keyturn_workers.console.form_tokens import FORM_LIFE_S, KEY_LIFE_S, FormTokens, FreshKeys
from keyturn_workers.core.sweep_options import SweepOptions

ActionKind = Literal["enrollment", "sweep", "rotation", "delete", "dead_letters"]
REQUEST_TYPES: Final[dict[ActionKind, RequestType]] = {
    "enrollment": "enroll.requested",
    "sweep": "sweep.requested",
    "rotation": "rotation.requested",
    "delete": "delete.requested",
    "dead_letters": "dead_letters.requested",
}


class ActionState(StrEnum):
    """The state of a request.

    | state | what is known |
    | --- | --- |
    | `sending` | it is being published |
    | `published` | the broker has it; no worker has answered |
    | `accepted` | a worker has accepted or completed it |
    | `rejected` | a worker has rejected it |
    | `not_sent` | it is on no queue; nothing happens |
    | `unknown` | the broker did not confirm it: it may be on its queue |
    """

    SENDING = "sending"
    PUBLISHED = "published"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters of one queue to replay or discard.

    They are all letters with `code`, or the `letters` with these hex SHA-256 digests of their
    bodies. The person saw `count` of them; `moved` is None until known; `left` could not be
    moved.
    """

    move: DeadLettersAction
    queue: str
    code: str | None = None
    letters: tuple[str, ...] = ()
    count: int = 0
    reason: str | None = None
    moved: int | None = None
    left: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """A request that a person made by the console. It never holds a key.

    Attributes:
        request_id: The id of the request; of a sweep or rotation also that of its sweep.
        project: `*` for all.
        person: The person's name, which the request names as its actor.
        options: Of a sweep.
        object_key: Of a delete.
        letters: Of a replay or discard of dead letters.
        expected_generation: Of a rotation: the generation that it replaces.
        generation: Of an accepted rotation.
        code: The code of a rejection, failed publish or partial move.
        detail: The reason in words; also why its response cannot be read.
        is_waiting: True while the console waits for its answer.
        attempts: The number of publishes, each under the same id.
    """

    request_id: str
    kind: ActionKind
    project: str
    person: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    options: SweepOptions | None = None
    object_key: str | None = None
    letters: Letters | None = None
    expected_generation: int | None = None
    state: ActionState = ActionState.SENDING
    updated_at: datetime | None = None
    generation: int | None = None
    code: str | None = None
    detail: str = ""
    is_waiting: bool = False
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """True if the answer is known."""
        return self.state in (ActionState.ACCEPTED, ActionState.REJECTED)

    @property
    def may_be_repeated(self) -> bool:
        """True if another publish under the same id helps: the request takes effect once."""
        return self.state in (ActionState.NOT_SENT, ActionState.UNKNOWN)


def repeated(action: Action, person: str, at: datetime) -> Action:
    """Return the action when it is published once more, under the same id."""
    # The outcome stays unknown until an attempt is confirmed.
    is_unsent = action.state is ActionState.NOT_SENT
    return replace(
        action,
        state=ActionState.SENDING if is_unsent else action.state,
        person=person,
        attempts=action.attempts + 1,
        updated_at=at,
    )


def published(action: Action, at: datetime) -> Action:
    """Return the action after the broker's confirmation; an answer may have been faster."""
    if action.is_final:
        return action
    return replace(action, state=ActionState.PUBLISHED, updated_at=at, code=None, detail="")


def failed_to_publish(action: Action, error: KeyturnError, at: datetime) -> Action:
    """Return the action after an unconfirmed publish."""
    if action.is_final:
        return action
    detail = error.detail if isinstance(error, CodedError) else str(error)
    code = error.code if isinstance(error, CodedError) else None
    # Once an attempt may have reached a queue, a later failure does not undo it.
    may_be_sent = action.state is ActionState.UNKNOWN or isinstance(error, OutcomeUnknownError)
    is_unsent = isinstance(error, CodedError | NotDeliveredError) and not may_be_sent
    state = ActionState.NOT_SENT if is_unsent else ActionState.UNKNOWN
    return replace(action, state=state, updated_at=at, code=code, detail=detail)


def answered(action: Action, event: Event, at: datetime) -> Action:
    """Return the action after an event of its request, whose signature was checked."""
    if isinstance(event, Rejected):
        return replace(
            action,
            state=ActionState.REJECTED,
            updated_at=at,
            code=event.code,
            detail=event.detail,
            is_waiting=False,
        )
    if isinstance(event, DeadLettersMoved) and action.letters is not None:
        letters = replace(action.letters, moved=event.moved, left=event.left)
        action = replace(action, letters=letters, code=event.code, detail=event.detail or "")
    else:
        generation = getattr(event, "generation", None)
        action = replace(action, generation=generation, code=None, detail="")
    return replace(action, state=ActionState.ACCEPTED, updated_at=at, is_waiting=False)


def cannot_wait(action: Action, error: PublisherError, at: datetime) -> Action:
    """Return the action while the stream with the answer cannot be read."""
    return replace(action, updated_at=at, detail=f"the response cannot be read: {error}")


MAX_KEPT: Final = 1000
PUBLISH_WAIT_S: Final = 2.0
"""A page waits this long for the broker's confirmation; the publish itself continues."""
ANSWER_WAIT_S: Final = 86400.0
_READ_AGAIN_S: Final = 5.0
_log = structlog.get_logger()


class TooManyActionsError(HTTPException):
    """More requests were made within the life of a form than are remembered."""

    def __init__(self) -> None:
        super().__init__(
            503, "Too many requests were made within the last hour. Nothing was published."
        )


@dataclass(slots=True)
class _Entry:
    action: Action
    api_key: SecretStr | None
    is_held: bool = True
    """True until the request is confirmed, or its API key is too old: it can be published."""
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def let_go(self) -> None:
        """Discard the unpublished request, so that no API key stays in memory."""
        self.is_held, self.api_key = False, None


class Actions:
    """The requests that people made through this console since it started.

    `publisher` may be disconnected. At most `max_kept` requests are remembered. A call waits
    `publish_wait_s` for the broker's confirmation, an answer is awaited for `answer_wait_s`, and an
    unreadable stream is read again after `read_again_s`.

    Attributes:
        forms: The tokens of the forms for these requests.
        fresh_keys: API keys that were shown and are not published yet.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        max_kept: int = MAX_KEPT,
        publish_wait_s: float = PUBLISH_WAIT_S,
        answer_wait_s: float = ANSWER_WAIT_S,
        read_again_s: float = _READ_AGAIN_S,
    ) -> None:
        self._publisher = publisher
        self._max_kept = max_kept
        self._publish_wait_s = publish_wait_s
        self._answer_wait_s = answer_wait_s
        self._read_again_s = read_again_s
        self._entries: dict[str, _Entry] = {}
        self.forms = FormTokens()
        self.fresh_keys = FreshKeys()

    async def request(self, action: Action, *, api_key: SecretStr | None = None) -> Action:
        """Publish a request and return its state; with a known id nothing is published.

        `api_key` is the new one of an enrollment or a rotation.

        Raises:
            TooManyActionsError: nothing was published.
        """
        # Registered before any await: a form that is sent twice at once calls this twice.
        if (known := self._entries.get(action.request_id)) is not None:
            await self._wait_briefly(known)
            return known.action
        self._make_room()
        entry = self._entries[action.request_id] = _Entry(action, api_key)
        if api_key is not None:
            asyncio.get_running_loop().call_later(KEY_LIFE_S, entry.let_go)
        await self._publish(entry)
        return entry.action

    async def repeat(self, person: Person, request_id: str) -> Action | None:
        """Publish a request again under its id, if that helps. Return None if the id is unknown."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        if self.may_repeat(request_id):
            if entry.task is not None:
                entry.task.cancel()
            entry.action = repeated(entry.action, person.name, datetime.now(UTC))
            await self._publish(entry)
        return entry.action

    def may_repeat(self, request_id: str) -> bool:
        """Return whether `repeat` would publish: the request is unconfirmed and still held."""
        entry = self._entries.get(request_id)
        return (
            entry is not None
            and entry.is_held
            and entry.is_settled.is_set()
            and entry.action.may_be_repeated
        )

    def get(self, request_id: str) -> Action | None:
        """Return a request by its id; None if it was not made here, or is forgotten."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry.action

    async def close(self) -> None:
        """Stop waiting. Published requests continue."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._entries.values():
            entry.let_go()

    async def _publish(self, entry: _Entry) -> None:
        entry.is_settled.clear()
        entry.task = asyncio.create_task(self._run(entry))
        await self._wait_briefly(entry)

    async def _wait_briefly(self, entry: _Entry) -> None:
        try:
            async with asyncio.timeout(self._publish_wait_s):
                await entry.is_settled.wait()
        except TimeoutError:
            return  # the page shows that it is being sent

    async def _run(self, entry: _Entry) -> None:
        if not entry.is_held:
            return
        try:
            await self._send(entry)
        except (CodedError, PublisherError) as exc:
            entry.action = failed_to_publish(entry.action, exc, datetime.now(UTC))
        else:
            entry.action = published(entry.action, datetime.now(UTC))
            entry.let_go()
        finally:
            entry.is_settled.set()
        action = entry.action
        _log.info(
            "request made", state=action.state.value, kind=action.kind, request_id=action.request_id
        )
        if action.state is not ActionState.NOT_SENT:
            await self._wait(entry)

    async def _send(self, entry: _Entry) -> None:
        action, publisher = entry.action, self._publisher
        match action:
            case Action(kind="sweep", options=SweepOptions() as options):
                await publisher.sweep(
                    action.project,
                    master_key=options.master_key,
                    encrypt_plaintext=options.encrypt_plaintext,
                    repair=options.repair,
                    actor=action.person,
                    sweep_id=action.request_id,
                )
            case Action(kind="enrollment") if entry.api_key is not None:
                await publisher.enroll(
                    action.project,
                    api_key=entry.api_key,
                    actor=action.person,
                    request_id=action.request_id,
                )
            case Action(kind="rotation") if entry.api_key is not None:
                await publisher.rotate(
                    action.project,
                    api_key=entry.api_key,
                    expected_generation=action.expected_generation,
                    actor=action.person,
                    rotation_id=action.request_id,
                )
            case Action(kind="delete", object_key=str() as object_key):
                await publisher.delete(
                    action.project, object_key, actor=action.person, request_id=action.request_id
                )
            case Action(kind="dead_letters", letters=Letters() as letters):
                await publisher.move_dead_letters(
                    letters.move,
                    letters.queue,
                    code=letters.code,
                    letters=letters.letters or None,
                    actor=action.person,
                    reason=letters.reason,
                    request_id=action.request_id,
                )
            case _:
                raise RuntimeError(f"the request lacks a field of its kind: {action.kind}")

    async def _wait(self, entry: _Entry) -> None:
        entry.action = replace(entry.action, is_waiting=True)
        try:
            async with asyncio.timeout(self._answer_wait_s):
                event = await self._answer(entry)
        except TimeoutError:
            entry.action = replace(entry.action, is_waiting=False)
            return
        entry.let_go()
        entry.action = answered(entry.action, event, datetime.now(UTC))

    async def _answer(self, entry: _Entry) -> Event:
        while True:
            try:
                return await self._next_event(entry.action)
            except WaitTimeoutError:
                continue
            except PublisherError as exc:
                entry.action = cannot_wait(entry.action, exc, datetime.now(UTC))
                await asyncio.sleep(self._read_again_s)

    async def _next_event(self, action: Action) -> Event:
        request_type = REQUEST_TYPES[action.kind]
        if action.kind != "sweep":
            return await self._publisher.wait(
                action.request_id, project=action.project, request_type=request_type
            )
        # A sweep has no event that accepts it: its first progress does.
        events = self._publisher.progress(
            action.request_id, project=action.project, request_type=request_type
        )
        async with aclosing(events):
            async for event in events:
                return event
        raise PublisherError("the stream of events ended")

    def _make_room(self) -> None:
        if len(self._entries) < self._max_kept:
            return
        oldest = next(iter(self._entries.values()))
        if datetime.now(UTC) - oldest.action.at < timedelta(seconds=FORM_LIFE_S):
            raise TooManyActionsError
        if oldest.task is not None:
            oldest.task.cancel()
        del self._entries[oldest.action.request_id]
