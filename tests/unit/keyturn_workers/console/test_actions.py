"""A request of a person is published once, in their name, and its answer becomes visible."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import SecretStr

from keyturn.errors import (
    BrokerUnavailableError,
    EventsUnavailableError,
    KeyturnError,
    MalformedRequestError,
    NotDeliveredError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from keyturn_workers.console import actions as outcome
from keyturn_workers.console.actions import (
    Action,
    Actions,
    ActionState,
    TooManyActionsError,
)
from keyturn_workers.console.auth.person import Person
from keyturn_workers.core.sweep_options import SweepOptions
from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from keyturn.messages import Event
    from keyturn.publisher import Publisher

__all__ = ["FakePublisher", "event"]
_KIM = Person("kim", "operate", "local:kim")
_LEE = Person("lee", "operate", "local:lee")
_ID = "2f6c9a0e-0000-4000-8000-000000000001"
_OTHER = "2f6c9a0e-0000-4000-8000-000000000002"
_KEY = SecretStr("kt_" + "a" * 43)
_TURNS = 10_000


@dataclass
class FakePublisher:
    """Records requests; each answer is what a test puts into `answers`.

    Attributes:
        sent: Method and arguments of each publication.
        errors: Raised by the first publications, one each.
        wait_errors: Raised by the first waits, one each.
        gate: Publications wait for it.
    """

    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    wait_errors: list[Exception] = field(default_factory=list)
    answers: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waits: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def _publish(self, method: str, given: dict[str, Any]) -> None:
        self.sent.append((method, given))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)

    async def sweep(self, project: str, *, sweep_id: str | None = None, **given: Any) -> str:
        assert sweep_id is not None
        await self._publish("sweep", {"project": project, "sweep_id": sweep_id, **given})
        return sweep_id

    async def rotate(self, project: str, *, rotation_id: str | None = None, **given: Any) -> str:
        assert rotation_id is not None
        await self._publish("rotate", {"project": project, "rotation_id": rotation_id, **given})
        return rotation_id

    async def delete(
        self, project: str, object_key: str, *, request_id: str | None = None, **given: Any
    ) -> str:
        assert request_id is not None
        names = {"project": project, "key": object_key, "request_id": request_id}
        await self._publish("delete", names | given)
        return request_id

    async def move_dead_letters(
        self, action: str, queue: str, *, request_id: str | None = None, **given: Any
    ) -> str:
        assert request_id is not None
        names = {"action": action, "queue": queue, "request_id": request_id}
        await self._publish("move_dead_letters", names | given)
        return request_id

    async def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = 60.0,
        since: datetime | None = None,
        project: str | None = None,
        request_type: str | None = None,
    ) -> Event:
        del request_id, timeout_s, since, project, request_type
        return await self._answer()

    async def progress(
        self,
        request_id: str,
        *,
        since: datetime | None = None,
        project: str | None = None,
        request_type: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        del request_id, since, project, request_type
        while True:
            yield await self._answer()

    async def _answer(self) -> Event:
        self.waits += 1
        if self.wait_errors:
            raise self.wait_errors.pop(0)
        return await self.answers.get()


def _delete(request_id: str, object_key: str) -> Action:
    return Action(request_id, "delete", "acme", "kim", object_key=object_key)


def _rotation(request_id: str) -> Action:
    return Action(request_id, "rotation", "acme", "kim", expected_generation=2)


class _Scene:
    def __init__(self) -> None:
        self.publisher = FakePublisher()
        self.actions = Actions(
            cast("Publisher", self.publisher),
            max_kept=2,
            publish_wait_s=0.02,
            read_again_s=0,
        )

    async def until(self, state: ActionState, request_id: str = _ID) -> Action:
        for _ in range(_TURNS):
            action = self.actions.get(request_id)
            assert action is not None
            if action.state is state:
                return action
            await asyncio.sleep(0)
        raise AssertionError(f"not {state}, but {action}")


@pytest.fixture
async def scene() -> AsyncIterator[_Scene]:
    scene = _Scene()
    yield scene
    await scene.actions.close()


async def test_a_sweep_is_requested_with_its_options_and_the_name_of_the_person(
    scene: _Scene,
) -> None:
    options = SweepOptions(master_key="m2", encrypt_plaintext=True, repair=True)
    action = await scene.actions.request(Action(_ID, "sweep", "*", "kim", options=options))
    assert action.state is ActionState.PUBLISHED
    assert scene.publisher.sent == [
        (
            "sweep",
            {
                "project": "*",
                "sweep_id": _ID,
                "master_key": "m2",
                "encrypt_plaintext": True,
                "repair": True,
                "actor": "kim",
            },
        )
    ]
    scene.publisher.answers.put_nowait(event("sweep.progressed", sweep_id=_ID))
    assert (await scene.until(ActionState.ACCEPTED)).person == "kim"


async def test_a_rotation_shows_its_generation_or_its_refusal(scene: _Scene) -> None:
    for request_id in (_ID, _OTHER):
        await scene.actions.request(_rotation(request_id), api_key=_KEY)
    scene.publisher.answers.put_nowait(event("rotation.accepted", rotation_id=_ID, generation=3))
    scene.publisher.answers.put_nowait(
        event("rotation.rejected", rotation_id=_OTHER, code="generation_mismatch", detail="at 3")
    )
    assert (await scene.until(ActionState.ACCEPTED)).generation == 3
    refused = await scene.until(ActionState.REJECTED, _OTHER)
    assert (refused.code, refused.detail) == ("generation_mismatch", "at 3")


async def test_a_form_that_is_sent_twice_publishes_once(scene: _Scene) -> None:
    first, second = await asyncio.gather(
        scene.actions.request(_delete(_ID, "a.txt")),
        scene.actions.request(_delete(_ID, "b.txt")),
    )
    assert len(scene.publisher.sent) == 1
    assert first.object_key == second.object_key == "a.txt"


async def test_a_page_does_not_wait_for_a_slow_broker(scene: _Scene) -> None:
    scene.publisher.gate.clear()
    action = await scene.actions.request(_delete(_ID, "a.txt"))
    assert action.state is ActionState.SENDING
    assert not scene.actions.may_repeat(_ID)
    scene.publisher.gate.set()
    await scene.until(ActionState.PUBLISHED)


async def test_an_unknown_outcome_is_repeated_under_the_same_id_with_the_same_key(
    scene: _Scene,
) -> None:
    scene.publisher.errors.append(OutcomeUnknownError("not confirmed"))
    action = await scene.actions.request(_rotation(_ID), api_key=_KEY)
    assert action.state is ActionState.UNKNOWN
    assert scene.actions.may_repeat(_ID)
    repeated = await scene.actions.repeat(_LEE, _ID)
    assert repeated is not None
    assert (repeated.state, repeated.attempts) == (ActionState.PUBLISHED, 2)
    (_, first), (_, second) = scene.publisher.sent
    assert second == first | {"actor": "lee"}


async def test_an_answer_is_also_found_after_an_unknown_outcome(scene: _Scene) -> None:
    scene.publisher.errors.append(OutcomeUnknownError("not confirmed"))
    await scene.actions.request(_delete(_ID, "a.txt"))
    scene.publisher.answers.put_nowait(event("object.deleted", request_id=_ID, key="a.txt"))
    await scene.until(ActionState.ACCEPTED)


async def test_what_was_not_sent_waits_for_no_answer(scene: _Scene) -> None:
    scene.publisher.errors.append(BrokerUnavailableError("refused"))
    action = await scene.actions.request(_delete(_ID, "a.txt"))
    assert action.state is ActionState.NOT_SENT
    assert not action.is_waiting
    assert scene.publisher.waits == 0
    again = await scene.actions.repeat(_KIM, _ID)
    assert again is not None
    assert again.state is ActionState.PUBLISHED


async def test_a_confirmed_request_is_not_published_again(scene: _Scene) -> None:
    await scene.actions.request(_delete(_ID, "a.txt"))
    assert not scene.actions.may_repeat(_ID)
    await scene.actions.repeat(_KIM, _ID)
    assert len(scene.publisher.sent) == 1
    assert await scene.actions.repeat(_KIM, _OTHER) is None


async def test_waiting_goes_on_after_timeouts_and_while_events_cannot_be_read(
    scene: _Scene,
) -> None:
    scene.publisher.wait_errors += [EventsUnavailableError("no stream"), WaitTimeoutError("60 s")]
    await scene.actions.request(_delete(_ID, "a.txt"))
    scene.publisher.answers.put_nowait(event("object.deleted", request_id=_ID, key="a.txt"))
    await scene.until(ActionState.ACCEPTED)
    assert scene.publisher.waits == 3


async def test_an_answer_that_does_not_come_is_not_waited_for_without_end() -> None:
    actions = Actions(cast("Publisher", FakePublisher()), answer_wait_s=0)
    action = await actions.request(_delete(_ID, "a.txt"))
    await asyncio.sleep(0.01)
    last = actions.get(_ID)
    assert last is not None
    assert (last.state, last.is_waiting) == (ActionState.PUBLISHED, False)
    assert action.request_id == last.request_id
    await actions.close()


async def test_no_request_is_forgotten_whose_form_can_be_sent_again(scene: _Scene) -> None:
    await scene.actions.request(_delete(_ID, "a.txt"))
    await scene.actions.request(_delete(_OTHER, "b.txt"))
    with pytest.raises(TooManyActionsError):
        await scene.actions.request(_delete(_OTHER[:-1] + "3", "c.txt"))
    assert len(scene.publisher.sent) == 2


async def test_a_key_is_held_no_longer_than_its_life(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.console.actions.KEY_LIFE_S", 0.01)
    scene.publisher.errors.append(OutcomeUnknownError("not confirmed"))
    await scene.actions.request(_rotation(_ID), api_key=_KEY)
    assert scene.actions.may_repeat(_ID)
    await asyncio.sleep(0.03)
    assert not scene.actions.may_repeat(_ID)
    await scene.actions.repeat(_KIM, _ID)
    assert len(scene.publisher.sent) == 1


_AT = datetime(2026, 11, 26, 10, tzinfo=UTC)


_OUTCOME_ID = "2f6c9a0e-0000-4000-8000-000000000001"


_ACTION = Action(_OUTCOME_ID, "rotation", "acme", "kim", _AT, expected_generation=2)


def test_a_confirmed_request_waits_for_its_answer() -> None:
    action = outcome.published(_ACTION, _AT)
    assert action.state is ActionState.PUBLISHED
    assert not action.is_final
    assert not action.may_be_repeated


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (NotDeliveredError("no queue"), ActionState.NOT_SENT, None),
        (BrokerUnavailableError("refused"), ActionState.NOT_SENT, None),
        (MalformedRequestError("project"), ActionState.NOT_SENT, "malformed_request"),
        (OutcomeUnknownError("not confirmed"), ActionState.UNKNOWN, None),
    ],
)
def test_only_a_request_that_was_certainly_not_sent_is_called_so(
    error: KeyturnError, state: ActionState, code: str | None
) -> None:
    action = outcome.failed_to_publish(_ACTION, error, _AT)
    assert (action.state, action.code) == (state, code)
    assert action.may_be_repeated


def test_an_attempt_that_may_have_arrived_is_not_taken_back_by_a_later_failure() -> None:
    unknown = outcome.failed_to_publish(_ACTION, OutcomeUnknownError("not confirmed"), _AT)
    again = outcome.repeated(unknown, "lee", _AT)
    assert again.state is ActionState.UNKNOWN
    action = outcome.failed_to_publish(again, BrokerUnavailableError("refused"), _AT)
    assert action.state is ActionState.UNKNOWN
    assert (action.attempts, action.person) == (2, "lee")


def test_a_request_that_was_not_sent_is_sent_again() -> None:
    unsent = outcome.failed_to_publish(_ACTION, NotDeliveredError("no queue"), _AT)
    assert outcome.repeated(unsent, "kim", _AT).state is ActionState.SENDING


def test_what_became_of_dead_letters_is_counted() -> None:
    letters = outcome.Letters("discard", "keyturn.upload.dead", code="bad_seal", count=3)
    action = outcome.Action(_OUTCOME_ID, "dead_letters", "*", "kim", _AT, letters=letters)
    moved = event(
        "dead_letters.moved",
        request_id=_OUTCOME_ID,
        project="*",
        queue=letters.queue,
        action="discard",
        moved=2,
        left=1,
        code="storage_unavailable",
        detail="503",
    )
    done = outcome.answered(action, moved, _AT)
    assert done.letters is not None
    assert (done.letters.moved, done.letters.left, done.code) == (2, 1, "storage_unavailable")
    assert done.state is ActionState.ACCEPTED


def test_a_refusal_keeps_its_code_and_detail() -> None:
    refusal = event(
        "rotation.rejected", rotation_id=_OUTCOME_ID, code="kek_reused", detail="had it"
    )
    action = outcome.answered(_ACTION, refusal, _AT)
    assert (action.state, action.code, action.detail) == (
        ActionState.REJECTED,
        "kek_reused",
        "had it",
    )


def test_an_answer_that_is_faster_than_the_confirmation_stays() -> None:
    accepted = outcome.answered(
        _ACTION, event("rotation.accepted", rotation_id=_OUTCOME_ID, generation=3), _AT
    )
    assert accepted.generation == 3
    assert outcome.published(accepted, _AT) == accepted
    assert outcome.failed_to_publish(accepted, OutcomeUnknownError("?"), _AT) == accepted


def test_a_stream_that_cannot_be_read_changes_no_state() -> None:
    published = outcome.published(_ACTION, _AT)
    action = outcome.cannot_wait(published, EventsUnavailableError("no stream"), _AT)
    assert action.state is ActionState.PUBLISHED
    assert "no stream" in action.detail
