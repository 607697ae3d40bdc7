"""Reports of status and moves of dead letters, with a guard taken out: each is caught (SPEC 16.1).

Each story runs twice: with the workers' own classes nothing is violated, and without the guard a
publisher learns what it may not know, or a console believes what is not so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import NotPermittedError
from keyturn.messages import parse_request, request_id
from keyturn.publisher.event_matcher import EventMatcher
from keyturn_workers.core.authorization import authorize
from keyturn_workers.keys.audit.trail import AuditTrail
from keyturn_workers.pipeline.amqp import requests
from keyturn_workers.reports.status.index import Index
from keyturn_workers.reports.status.reader import StatusReader
from tests.protocol.hostile import HostilePublisher
from tests.protocol.letter_mover import LetterMover
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, stop_at, violations
from tests.protocol.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import (
        DeadLettersRequested,
        Event,
        Request,
        RequestOrigin,
        StatusReported,
        StatusRequested,
    )
    from keyturn_workers.core.authorization import Signer
    from keyturn_workers.core.storage_values import ObjectSummary
    from keyturn_workers.reports.dead_letters.move import Record
    from tests.protocol.broker import QueuedMessage

_matches = EventMatcher.matches
_authorize = authorize


def _by_id_alone(matcher: EventMatcher, event: Event) -> bool:
    return request_id(event) == matcher.request_id


def _whatever_the_publisher(matcher: EventMatcher, event: Event) -> bool:
    return _matches(matcher, event.model_copy(update={"publisher": matcher.publisher}))


def _whatever_the_bytes(matcher: EventMatcher, event: Event) -> bool:
    return _matches(matcher, event.model_copy(update={"request": matcher.digest or "0" * 64}))


def _whatever_it_was_granted(body: bytes, signer: Signer, arrival: Any) -> Request:
    try:
        return _authorize(body, signer, arrival)
    except NotPermittedError:
        return parse_request(body)


# Who may know what.


def a_publisher_of_one_project_requests_all(world: World) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    refused = world.status("*", publisher="other")
    world.run()
    assert world.ended(refused)


def a_publisher_of_one_project_has_letters_moved(world: World) -> None:
    """Dead letters belong to no project, so only a publisher of all may act on them."""
    begin(world, "a")
    world.upload("acme", "a", b"again", publisher="api")
    world.run()
    ((letter, _),) = world.dead
    refused = world.move_letters(letter, publisher="second")
    world.run()
    assert world.ended(refused)


@pytest.mark.parametrize(
    ("story", "caught"),
    [
        (a_publisher_of_one_project_requests_all, "status.reported of other in *"),
        (a_publisher_of_one_project_has_letters_moved, "dead_letters.moved of second in *"),
        (
            a_publisher_of_one_project_has_letters_moved,
            "dead_letter.replayed was recorded, and second may not do it",
        ),
    ],
)
def test_what_concerns_all_projects_needs_the_grant_for_all(
    story: Callable[[World], None], caught: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(requests, "authorize", _whatever_it_was_granted)
    assert caught in violations(story)


def a_publisher_of_one_project_requests_it(world: World) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    world.status("beta", publisher="other")


class _ReaderOfAll(StatusReader):
    """Reports every project, whichever was requested."""

    async def report(self, request: StatusRequested) -> StatusReported:
        found = await super().report(request.model_copy(update={"project": "*"}))
        return found.model_copy(update={"project": request.project})


def test_a_report_of_one_project_has_no_rows_of_others() -> None:
    assert violations(a_publisher_of_one_project_requests_it) == []
    found = violations(a_publisher_of_one_project_requests_it, Parts(status_reader=_ReaderOfAll))
    assert "status.reported published of other's request has rows of acme" in found


def a_report_after_a_rotation(world: World) -> None:
    """The row of the first report is kept by the worker; it is no more so."""
    begin(world, "a")
    world.status("acme")
    world.run()
    world.rotate("acme")
    world.run(seconds=3600)
    world.status("acme")


def test_a_report_has_no_row_from_before_it_was_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(processes=1)
    assert violations(a_report_after_a_rotation, options=options) == []

    def whatever_the_etag(index: Index, row: ObjectSummary) -> bool:
        return row.key in index._entries

    monkeypatch.setattr(Index, "_is_kept", whatever_the_etag)
    found = violations(a_report_after_a_rotation, options=options)
    assert any("has a state from before it was requested" in what for what in found)


# Which answer is whose.


def a_report_of_an_earlier_attempt_that_is_published_again(world: World) -> None:
    """Reported, rotated, requested again; then a broker writer repeats the first report."""
    begin(world, "a")
    status = world.status("acme")
    world.run()
    old = world.stream[-1]
    world.rotate("acme")
    world.run(seconds=3600)
    world.send_again(status)
    world.broker_writer.publish_again(old)


def a_report_to_another_publisher_under_the_same_id(world: World) -> None:
    """Both may know the project; they want to know different things of it."""
    begin(world, "a")
    status = world.status("acme", publisher="api")
    kept = world.all_messages[-1]
    HostilePublisher(world, "second").reuse(status, "status", "acme", view="sweeps")
    world.run(keep=lambda queued: queued is kept)


def a_report_of_another_project_under_the_same_id(world: World) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    status = world.status("acme", publisher="api")
    kept = world.all_messages[-1]
    HostilePublisher(world, "other").reuse(status, "status", "beta")
    world.run(keep=lambda queued: queued is kept)


def a_move_of_other_letters_that_is_published_again(world: World) -> None:
    """One letter is moved; of the next one an attacker repeats the answer for the first."""
    begin(world, "a")
    world.upload("acme", "a", b"again", publisher="api")
    world.upload("acme", "a", b"and again", publisher="api")
    world.run()
    (first, _), (second, _) = world.dead
    moved = world.move_letters(first, action="discard")
    world.run()
    answer = world.stream[-1]
    world.move_letters(second, action="discard", request_id=moved)
    world.broker_writer.publish_again(answer)


_BELIEVED = "believed by the waiter of api's"


@pytest.mark.parametrize(
    ("story", "broken", "caught"),
    [
        (
            a_report_of_an_earlier_attempt_that_is_published_again,
            _whatever_the_bytes,
            f"status.reported {_BELIEVED} status.requested has a state from before",
        ),
        (
            a_report_of_an_earlier_attempt_that_is_published_again,
            _by_id_alone,
            f"status.reported {_BELIEVED} status.requested has a state from before",
        ),
        (
            a_report_to_another_publisher_under_the_same_id,
            _whatever_the_publisher,
            "status.reported believed by a restarted waiter of api's status.requested is about",
        ),
        (
            a_report_to_another_publisher_under_the_same_id,
            _by_id_alone,
            f"status.reported {_BELIEVED} status.requested is about something else",
        ),
        (
            a_report_of_another_project_under_the_same_id,
            _by_id_alone,
            f"status.reported {_BELIEVED} status.requested is about another project",
        ),
        (
            a_move_of_other_letters_that_is_published_again,
            _whatever_the_bytes,
            f"dead_letters.moved {_BELIEVED} dead_letters.requested, and not every letter was",
        ),
        (
            a_move_of_other_letters_that_is_published_again,
            _by_id_alone,
            f"dead_letters.moved {_BELIEVED} dead_letters.requested, and not every letter was",
        ),
    ],
    ids=lambda part: part.__name__.lstrip("_") if callable(part) else "",
)
def test_a_report_is_believed_only_as_the_answer_to_its_very_request(
    story: Callable[[World], None],
    broken: Callable[[EventMatcher, Event], bool],
    caught: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(EventMatcher, "matches", broken)
    assert any(caught in what for what in violations(story))


# What is recorded, and when.


def a_letter_is_replayed(world: World) -> None:
    """Refused, since there was no such project; then there is, and the letter is served."""
    begin(world, "a")
    upload = world.upload("nowhere", "k", b"x", publisher="api")
    world.run()
    world.enroll("nowhere")
    world.run()
    ((letter, error),) = world.dead
    assert error.code == "unknown_project"
    world.move_letters(letter)
    world.run(hold=lambda call: call.op == "publish audit.recorded", seconds=5)
    world.run()
    assert world.dead == []
    assert [event.type for event in world.ended(upload)] == ["upload.rejected", "upload.stored"]


class _HastyMover(LetterMover):
    """Moves a letter, and has it recorded then."""

    async def move(
        self,
        letter: QueuedMessage,
        request: DeadLettersRequested,
        origin: RequestOrigin,
        record: Record,
    ) -> None:
        self.do(letter, request, origin)
        await self.record(letter, request, record)


class _HastyTrail(AuditTrail):
    """Takes a record for written that is only on its way."""

    async def record(self, *args: Any, **fields: Any) -> str:
        recording = asyncio.ensure_future(super().record(*args, **fields))
        await asyncio.sleep(0)
        del recording
        return ""


@pytest.mark.parametrize(
    ("parts", "caught"),
    [
        (Parts(letter_mover=_HastyMover), "dead_letter.replayed was done, and not recorded before"),
        (Parts(trail=_HastyTrail), "dead_letter.replayed was done, and not recorded before"),
    ],
    ids=["a mover that records later", "a trail that does not wait"],
)
def test_no_letter_is_moved_before_the_audit_trail_has_it(parts: Parts, caught: str) -> None:
    assert violations(a_letter_is_replayed) == []
    assert caught in violations(a_letter_is_replayed, parts)


def a_worker_dies_between_record_and_move(world: World) -> None:
    """The request is delivered again: the letter is recorded twice, under one id."""
    begin(world, "a")
    world.upload("acme", "a", b"again", publisher="api")
    world.run()
    ((letter, _),) = world.dead
    world.move_letters(letter, action="discard")
    recording = stop_at(world, "publish audit.recorded")
    world.crash(recording.sender, arriving=lambda _: True)
    world.run()
    assert world.dead == []


def test_a_crash_between_record_and_move_loses_neither() -> None:
    with World() as world:
        a_worker_dies_between_record_and_move(world)
        world.settle()
        assert world.oracle.violations == []
        first, second = world.oracle.reports.records
        assert first.audit_id == second.audit_id
        assert first.process != second.process
