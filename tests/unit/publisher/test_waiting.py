"""Which event answers a request and which ends it, without a network (SPEC 6.7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import generate
from contracts.generate.examples import events
from contracts.generate.sealed import ROTATION_ID
from contracts.messages import (
    COUNT_FIELDS,
    Event,
    RotationAccepted,
    RotationCompleted,
    RotationRejected,
    SweepProgressed,
    encode,
    parse_event,
)
from contracts.publisher.errors import WaitTimeoutError
from contracts.publisher.events import Told, Verifier
from contracts.publisher.waiting import Waiter, _claimed_id, is_answer, is_end
from contracts.sealing import SigningKey, VerifyKey

_KEY = SigningKey.from_seed(b"e" * 32)
_AT = "2026-11-24T10:00:00Z"
_COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}
_ACCEPTED = RotationAccepted(rotation_id=ROTATION_ID, project="acme", generation=2, at=_AT)
_PROGRESS = SweepProgressed(sweep_id=ROTATION_ID, project="acme", at=_AT, **_COUNTS)
_COMPLETED = RotationCompleted(rotation_id=ROTATION_ID, project="acme", at=_AT, **_COUNTS)
_REFUSED = RotationRejected(
    rotation_id=ROTATION_ID, project="acme", code="kek_reused", detail="", at=_AT
)
_OPEN = {"sweep.progressed", "rotation.accepted"}


class _Reading(Waiter):
    """A waiter whose shared reader is the test."""

    def __init__(self) -> None:
        key = VerifyKey.from_bytes(_KEY.public_bytes)
        super().__init__(None, Verifier("test", key))  # type: ignore[arg-type]  # no broker
        self._reader_from = self._opened_at
        self._offset = 0

    def _covers(self, sent: object) -> bool:
        return sent is not None

    def tell(self, *told: Event) -> None:
        for event in told:
            body = encode(event)
            self._take(Told(self._offset, body, _KEY.sign_event("test", body)))
            self._offset += 1

    async def answer(self) -> Event:
        return await self.wait(ROTATION_ID, since=None, timeout_s=0.01)

    async def end(self) -> Event:
        return await self.wait(ROTATION_ID, since=None, timeout_s=0.01, ended=True)


@pytest.fixture
def waiter() -> _Reading:
    reading = _Reading()
    reading.sending(ROTATION_ID)
    return reading


@pytest.mark.parametrize("name", list(events()))
def test_every_event_but_two_ends_its_request(name: str) -> None:
    for document in events()[name].values():
        event = parse_event(generate.pretty(document).encode())
        assert is_end(event) is (name not in _OPEN)
        assert is_answer(event) is (name != "sweep.progressed")


async def test_a_rotation_is_answered_when_accepted_and_ended_when_completed(
    waiter: _Reading,
) -> None:
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(waiter.wait(ROTATION_ID, since=None, timeout_s=20))
        end = group.create_task(waiter.wait(ROTATION_ID, since=None, timeout_s=20, ended=True))
        await asyncio.sleep(0)  # both wait now
        waiter.tell(_PROGRESS, _ACCEPTED, _PROGRESS, _COMPLETED)
    assert (answer.result(), end.result()) == (_ACCEPTED, _COMPLETED)
    assert waiter._waiting == {}


async def test_what_was_told_before_anyone_waited_is_known(waiter: _Reading) -> None:
    waiter.tell(_ACCEPTED, _PROGRESS)
    assert await waiter.answer() == _ACCEPTED
    with pytest.raises(WaitTimeoutError):
        await waiter.end()
    waiter.tell(_COMPLETED)
    assert await waiter.answer() == _ACCEPTED
    assert await waiter.end() == _COMPLETED


async def test_progress_answers_nothing(waiter: _Reading) -> None:
    waiter.tell(_PROGRESS)
    with pytest.raises(WaitTimeoutError):
        await waiter.answer()
    with pytest.raises(WaitTimeoutError):
        await waiter.end()


async def test_a_refusal_is_both_the_answer_and_the_end(waiter: _Reading) -> None:
    waiter.tell(_REFUSED)
    assert await waiter.answer() == _REFUSED
    assert await waiter.end() == _REFUSED


async def test_a_refused_rotation_that_was_replayed_goes_on(waiter: _Reading) -> None:
    waiter.tell(_REFUSED, _ACCEPTED)
    assert await waiter.answer() == _ACCEPTED
    with pytest.raises(WaitTimeoutError):
        await waiter.end()


async def test_a_delivery_twice_does_not_take_the_end_away(waiter: _Reading) -> None:
    waiter.tell(_ACCEPTED, _COMPLETED, _ACCEPTED)
    assert await waiter.end() == _COMPLETED


@pytest.mark.parametrize(
    "told", [(_REFUSED,), (_ACCEPTED, _COMPLETED), (_ACCEPTED,)], ids=["no", "done", "yes"]
)
async def test_what_answered_an_earlier_try_answers_no_later_one(
    waiter: _Reading, told: tuple[Event, ...]
) -> None:
    waiter.tell(*told)
    waiter.sending(ROTATION_ID)
    waiter._offset = 0
    waiter.tell(*told)  # a reader that begins anew sees them again
    with pytest.raises(WaitTimeoutError):
        await waiter.answer()
    with pytest.raises(WaitTimeoutError):
        await waiter.end()
    waiter.tell(_ACCEPTED, _COMPLETED)
    assert await waiter.answer() == _ACCEPTED
    assert await waiter.end() == _COMPLETED


@given(st.binary(max_size=80))
def test_any_bytes_claim_an_id_or_none(body: bytes) -> None:
    assert _claimed_id(body) is None


def test_memory_of_what_was_sent_is_bounded() -> None:
    waiter = Waiter(None, None, max_tracked=100)  # type: ignore[arg-type]  # neither is used
    for number in range(1000):
        waiter.sending(str(number))
    assert list(waiter._sent) == [str(number) for number in range(900, 1000)]
