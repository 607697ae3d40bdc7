"""`Actions`: publishes what a person asked for, once, and waits for its answer (SPEC 6.7, 16.1).

A request's id is decided by the form that it comes from. So a form that is sent twice publishes
once, and an attempt that the broker did not confirm is repeated under the same id, which takes
effect once.

It is used from one event loop. Memory is bounded: at most `max_kept` requests are remembered, and
none younger than the forms' longest life is forgotten, since its form could be sent again. A new
API key is held only until the broker has confirmed its request, and never longer than
`KEY_LIFE_S`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from pydantic import SecretStr

from keyturn.errors import CodedError, PublisherError, WaitTimeoutError
from keyturn.identifiers import format_time
from keyturn.messages import Event, SweepRequested
from keyturn.publisher.event_matcher import RequestType
from keyturn_workers.console.actions import outcome
from keyturn_workers.console.actions.form_tokens import FORM_LIFE_S, FormTokens
from keyturn_workers.console.actions.fresh_keys import KEY_LIFE_S, FreshKeys
from keyturn_workers.console.actions.outcome import Action, ActionKind, ActionState, SweepOptions
from keyturn_workers.console.auth.person import Person

MAX_KEPT: Final = 1000
PUBLISH_WAIT_S: Final = 2.0
"""How long a page waits for the broker's confirmation; the publish itself continues."""
ANSWER_WAIT_S: Final = 86400.0
_READ_AGAIN_S: Final = 5.0
_TYPES: Final[dict[ActionKind, RequestType]] = {
    "sweep": "sweep.requested",
    "rotation": "rotation.requested",
    "delete": "delete.requested",
}
_log: Final = logging.getLogger(__name__)


class TooManyActionsError(Exception):
    """More requests than are remembered were made within the life of a form."""


class RequestPublisher(Protocol):
    """What is used of `keyturn.Publisher`."""

    async def sweep(
        self,
        project: str,
        *,
        master_key: str | None = None,
        encrypt_plaintext: bool = False,
        repair: bool = False,
        actor: str | None = None,
        sweep_id: str | None = None,
    ) -> str:
        """As `Publisher.sweep`."""
        ...

    async def rotate(
        self,
        project: str,
        *,
        api_key: str | SecretStr,
        expected_generation: int | None = None,
        actor: str | None = None,
        rotation_id: str | None = None,
    ) -> str:
        """As `Publisher.rotate`."""
        ...

    async def delete(
        self,
        project: str,
        object_key: str,
        *,
        actor: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """As `Publisher.delete`."""
        ...

    async def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = 60.0,
        since: datetime | None = None,
        project: str | None = None,
        request_type: RequestType | None = None,
    ) -> Event:
        """As `Publisher.wait`."""
        ...

    def progress(
        self,
        request_id: str,
        *,
        since: datetime | None = None,
        project: str | None = None,
        request_type: RequestType | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `Publisher.progress`."""
        ...


_Publish = Callable[[str], Awaitable[str]]  # of the actor


@dataclass(slots=True)
class _Entry:
    action: Action
    publish: _Publish | None  # None once it is not needed any more: it may hold an API key
    holds_key: bool = False
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Actions:
    """The requests that people made by this console since it started.

    Args:
        publisher: Signs and publishes; connected or not.
        on_change: Called after each change of an action.
        on_sweep: Called with each sweep that the broker has confirmed, and its person.
        max_kept: How many are remembered.
        publish_wait_s: How long a call waits for the broker's confirmation.
        answer_wait_s: How long an answer is waited for.
        read_again_s: The pause before a stream that cannot be read is read again.

    Attributes:
        forms: The tokens of the forms that lead here.
        fresh_keys: API keys that were shown and are not published yet.
    """

    def __init__(
        self,
        publisher: RequestPublisher,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_sweep: Callable[[SweepRequested, str], None] = lambda _request, _person: None,
        max_kept: int = MAX_KEPT,
        publish_wait_s: float = PUBLISH_WAIT_S,
        answer_wait_s: float = ANSWER_WAIT_S,
        read_again_s: float = _READ_AGAIN_S,
    ) -> None:
        self._publisher = publisher
        self._on_change = on_change
        self._on_sweep = on_sweep
        self._max_kept = max_kept
        self._publish_wait_s = publish_wait_s
        self._answer_wait_s = answer_wait_s
        self._read_again_s = read_again_s
        self._entries: dict[str, _Entry] = {}
        self.forms = FormTokens()
        self.fresh_keys = FreshKeys()

    async def start_sweep(
        self, person: Person, request_id: str, project: str, options: SweepOptions
    ) -> Action:
        """Request a sweep of one project, or of `*`; with a known id nothing is published.

        Raises:
            TooManyActionsError: nothing was published.
        """

        def publish(actor: str) -> Awaitable[str]:
            return self._publisher.sweep(
                project,
                master_key=options.master_key,
                encrypt_plaintext=options.encrypt_plaintext,
                repair=options.repair,
                actor=actor,
                sweep_id=request_id,
            )

        action = Action(
            request_id,
            "sweep",
            project,
            person.name,
            datetime.now(UTC),
            options=options,
        )
        return await self._begin(action, publish)

    async def rotate(
        self,
        person: Person,
        request_id: str,
        project: str,
        *,
        api_key: SecretStr,
        expected_generation: int,
    ) -> Action:
        """Request a rotation to a new API key; with a known id nothing is published.

        Raises:
            TooManyActionsError: nothing was published.
        """

        def publish(actor: str) -> Awaitable[str]:
            return self._publisher.rotate(
                project,
                api_key=api_key,
                expected_generation=expected_generation,
                actor=actor,
                rotation_id=request_id,
            )

        action = Action(
            request_id,
            "rotation",
            project,
            person.name,
            datetime.now(UTC),
            expected_generation=expected_generation,
        )
        return await self._begin(action, publish, holds_key=True)

    async def delete(
        self, person: Person, request_id: str, project: str, object_key: str
    ) -> Action:
        """Request that an object be deleted; with a known id nothing is published.

        Raises:
            TooManyActionsError: nothing was published.
        """

        def publish(actor: str) -> Awaitable[str]:
            return self._publisher.delete(project, object_key, actor=actor, request_id=request_id)

        action = Action(
            request_id, "delete", project, person.name, datetime.now(UTC), object_key=object_key
        )
        return await self._begin(action, publish)

    async def repeat(self, person: Person, request_id: str) -> Action | None:
        """Publish a request again under its id; as it is if that cannot help. None if unknown."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        if self.may_repeat(request_id):
            if entry.task is not None:
                entry.task.cancel()
            self._set(entry, outcome.repeated(entry.action, person.name, datetime.now(UTC)))
            await self._publish(entry)
        return entry.action

    def may_repeat(self, request_id: str) -> bool:
        """Whether `repeat` would publish: a request that was not confirmed, and is still held."""
        entry = self._entries.get(request_id)
        return (
            entry is not None
            and entry.publish is not None
            and entry.is_settled.is_set()
            and entry.action.may_be_repeated
        )

    def get(self, request_id: str) -> Action | None:
        """A request by its id; None if it was not made here, or is forgotten."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry.action

    def recent(self, limit: int = 20) -> tuple[Action, ...]:
        """The newest requests first."""
        return tuple(entry.action for entry in reversed(self._entries.values()))[:limit]

    async def close(self) -> None:
        """Stop waiting. What was published continues."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._entries.values():
            entry.publish = None

    async def _begin(self, action: Action, publish: _Publish, *, holds_key: bool = False) -> Action:
        # Registered before anything is awaited: a form that is sent twice at once comes here twice.
        if (known := self._entries.get(action.request_id)) is not None:
            await self._wait_briefly(known)
            return known.action
        self._make_room()
        entry = _Entry(action, publish, holds_key)
        self._entries[action.request_id] = entry
        if holds_key:
            asyncio.get_running_loop().call_later(KEY_LIFE_S, self._forget_request, entry)
        await self._publish(entry)
        return entry.action

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
        publish = entry.publish
        if publish is None:
            return
        try:
            await publish(entry.action.person)
        except (CodedError, PublisherError) as exc:
            self._set(entry, outcome.failed_to_publish(entry.action, exc, datetime.now(UTC)))
        else:
            self._set(entry, outcome.published(entry.action, datetime.now(UTC)))
            entry.publish = None
            self._note_sweep(entry.action)
        finally:
            # The task's own frame would keep the key while it waits for the answer.
            del publish
            entry.is_settled.set()
        action = entry.action
        _log.info("console request %s: %s %s", action.state.value, action.kind, action.request_id)
        if action.state is not ActionState.NOT_SENT:
            await self._wait(entry)

    def _note_sweep(self, action: Action) -> None:
        if action.options is None:
            return
        request = SweepRequested(
            sweep_id=action.request_id,
            project=action.project,
            requested_at=format_time(action.at),
            master_key=action.options.master_key,
            encrypt_plaintext=action.options.encrypt_plaintext,
            repair=action.options.repair,
            actor=action.person,
        )
        self._on_sweep(request, action.person)

    async def _wait(self, entry: _Entry) -> None:
        self._set(entry, replace(entry.action, is_waiting=True))
        try:
            async with asyncio.timeout(self._answer_wait_s):
                event = await self._answer(entry)
        except TimeoutError:
            self._set(entry, replace(entry.action, is_waiting=False))
            return
        entry.publish = None
        self._set(entry, outcome.answered(entry.action, event, datetime.now(UTC)))

    async def _answer(self, entry: _Entry) -> Event:
        while True:
            try:
                return await self._next_event(entry.action)
            except WaitTimeoutError:
                continue
            except PublisherError as exc:
                self._set(entry, outcome.cannot_wait(entry.action, exc, datetime.now(UTC)))
                await asyncio.sleep(self._read_again_s)

    async def _next_event(self, action: Action) -> Event:
        request_type = _TYPES[action.kind]
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

    def _set(self, entry: _Entry, action: Action) -> None:
        if action != entry.action:
            entry.action = action
            self._on_change()

    def _forget_request(self, entry: _Entry) -> None:
        entry.publish = None
        self._on_change()

    def _make_room(self) -> None:
        if len(self._entries) < self._max_kept:
            return
        oldest = next(iter(self._entries.values()))
        if datetime.now(UTC) - oldest.action.at < timedelta(seconds=FORM_LIFE_S):
            raise TooManyActionsError
        if oldest.task is not None:
            oldest.task.cancel()
        del self._entries[oldest.action.request_id]
