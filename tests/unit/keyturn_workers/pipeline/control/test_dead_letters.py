"""A person's request moves the letters that it names, in that person's name (SPEC 16.1)."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.messages import DeadLettersMoved, DeadLettersRequested, RequestOrigin, encode
from keyturn_workers.keys.audit import trail as trail_module
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.pipeline.control import dead_letters as module
from keyturn_workers.pipeline.control.dead_letters import DeadLetterMover
from keyturn_workers.reports.dead_letters.queue import LockedError, UnreadableQueueError
from tests.unit.keyturn_workers.keys.audit.memory import Stream, trail_to
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import Letter, MemoryBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.keys.audit.trail import AuditTrail
    from keyturn_workers.reports.dead_letters.queue import Letters

NOW: Final = datetime(2026, 11, 26, 10, 0, 30, tzinfo=UTC)
_DEAD: Final = "keyturn.upload.dead"
_EARLIER, _LATER = "2026-11-26T09:59:59Z", "2026-11-26T10:00:01Z"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(trail_module, "_PAUSES_S", (0.0,))
    return Stream()


@pytest.fixture
async def trail(stream: Stream) -> AsyncIterator[AuditTrail]:
    trail = trail_to(stream)
    async with trail.running():
        yield trail


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    made = MemoryBroker()
    made.fill(_DEAD)

    @asynccontextmanager
    async def opened(broker: str, lock_timeout_s: float) -> AsyncIterator[Letters]:
        assert (broker, lock_timeout_s < 30) == ("amqp://broker", True)
        letters = made.letters()
        yield letters
        await letters.channel.close()

    monkeypatch.setattr(module, "open_letters", opened)
    return made


def _request(**fields: Any) -> DeadLettersRequested:
    given: dict[str, Any] = {
        "request_id": "d2f4a6c8-1b3d-4e5f-8a9c-0b2d4f6e8a71",
        "project": "*",
        "requested_at": "2026-11-26T10:00:00Z",
        "actor": "Kim Doe",
        "action": "replay",
        "queue": _DEAD,
        "reason": "the bucket was full",
    }
    selection = {} if "letters" in fields else {"code": "bad_seal"}
    return DeadLettersRequested(**given | selection | fields)


async def _serve(trail: AuditTrail, request: DeadLettersRequested) -> Any:
    mover = DeadLetterMover("amqp://broker", trail, lambda: NOW)
    return await mover.serve(request, RequestOrigin.of("console", encode(request)))


def _letter(name: str, code: str = "bad_seal", dead_at: str = _EARLIER) -> Letter:
    return Letter(name.encode(), {"keyturn-code": code, "keyturn-dead-at": dead_at}, name)


async def test_all_of_a_code_that_died_before_the_request_are_moved_and_counted(
    broker: MemoryBroker, trail: AuditTrail, stream: Stream
) -> None:
    broker.fill(_DEAD, _letter("a"), _letter("b", "bad_signature"), _letter("c", dead_at=_LATER))
    handled = await _serve(trail, _request())
    assert handled.event == DeadLettersMoved(
        request_id="d2f4a6c8-1b3d-4e5f-8a9c-0b2d4f6e8a71",
        project="*",
        at="2026-11-26T10:00:30.000000Z",
        queue=_DEAD,
        action="replay",
        moved=1,
        left=0,
    )
    assert [message.message_id for _, message in broker.sent] == ["a"]
    assert [letter.message_id for letter in broker.queues[_DEAD]] == ["b", "c"]
    (record,) = stream.records
    assert (record.action, record.outcome) == ("dead_letter.replayed", "started")
    assert (record.actor, record.publisher) == ("Kim Doe", "console")
    assert (record.queue, record.reason) == (_DEAD, "the bucket was full")
    assert record.request == hashlib.sha256(b"a").hexdigest()
    assert (handled.logged["moved"], handled.logged["left"]) == (1, 0)


async def test_a_letter_that_dies_again_stays_where_the_requests_clock_is_ahead(
    broker: MemoryBroker, trail: AuditTrail
) -> None:
    broker.fill(_DEAD, _letter("a"), _letter("again", dead_at="2026-11-26T10:00:31Z"))
    await _serve(trail, _request(requested_at="2026-11-26T10:05:00Z"))
    assert [letter.message_id for letter in broker.queues[_DEAD]] == ["again"]


async def test_single_letters_are_named_by_the_digests_of_their_bodies(
    broker: MemoryBroker, trail: AuditTrail
) -> None:
    broker.fill(_DEAD, _letter("a"), _letter("b"), _letter("c"))
    named = [hashlib.sha256(name).hexdigest() for name in (b"b", b"gone")]
    handled = await _serve(trail, _request(letters=named, action="discard", reason=None))
    assert (handled.event.moved, handled.event.left) == (1, 0)
    assert [letter.message_id for letter in broker.queues[_DEAD]] == ["a", "c"]


async def test_the_answer_says_what_stays_and_why(broker: MemoryBroker, trail: AuditTrail) -> None:
    broker.fill(_DEAD, _letter("a"))
    broker.queues[_DEAD][0].headers["keyturn-body-dropped"] = "0" * 64
    event = (await _serve(trail, _request())).event
    assert (event.moved, event.left, event.code) == (0, 1, "malformed_request")
    assert "the body is not kept" in event.detail


async def test_a_request_that_comes_again_moves_the_rest_under_the_same_record_ids(
    broker: MemoryBroker, trail: AuditTrail, stream: Stream
) -> None:
    twins = [_letter("a"), _letter("a")]
    broker.fill(_DEAD, *twins, _letter("b"))

    def fail() -> None:
        raise ConnectionError

    broker.on_ack = fail
    with pytest.raises(NotConfirmedError):
        await _serve(trail, _request())
    assert len(broker.queues[_DEAD]) == 3
    first = [record.audit_id for record in stream.records]
    broker.on_ack = lambda: None
    assert (await _serve(trail, _request())).event.moved == 3
    again = [record.audit_id for record in stream.records[len(first) :]]
    assert len({*again}) == 3
    assert {*first} <= {*again}
    assert (await _serve(trail, _request())).event.moved == 0
    other = _request(actor="Ada")
    broker.fill(_DEAD, _letter("a"))
    await _serve(trail, other)
    assert stream.records[-1].audit_id not in again


@pytest.mark.usefixtures("broker")
async def test_of_a_queue_that_cannot_be_read_the_event_says_why(
    monkeypatch: pytest.MonkeyPatch, trail: AuditTrail
) -> None:
    async def unreadable(*_: object) -> None:
        raise UnreadableQueueError(_DEAD, 7)

    monkeypatch.setattr(module, "move_letters", unreadable)
    event = (await _serve(trail, _request())).event
    assert (event.moved, event.left, event.code) == (0, 7, None)
    assert f"the 7 letters of {_DEAD} cannot be read" in event.detail


async def test_while_another_process_reads_the_letters_the_request_waits_in_the_broker(
    monkeypatch: pytest.MonkeyPatch, trail: AuditTrail
) -> None:
    def locked(*_: object) -> None:
        raise LockedError

    monkeypatch.setattr(module, "open_letters", locked)
    with pytest.raises(DeferError):
        await _serve(trail, _request())
