"""Reports of status and records for consoles, with a guard taken out: each is caught (SPEC 16.1).

Each story runs twice: with the workers' own classes nothing is violated, and without the guard a
publisher learns what it may not know, or a console believes what is not so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import NotPermittedError
from keyturn.messages import parse_request, request_id
from keyturn.publisher.event_matcher import EventMatcher
from keyturn_workers.amqp import request_consumer
from keyturn_workers.status.reader import StatusReader
from keyturn_workers.status.summaries import EtagCache
from keyturn_workers.worker.authorization import authorize
from tests.protocol.hostile import HostilePublisher
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import Event, Request, StatusReported, StatusRequested
    from keyturn_workers.worker.authorization import Signer
    from tests.protocol.world import World

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


def test_what_concerns_all_projects_needs_the_grant_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_publisher_of_one_project_requests_all
    assert violations(story) == []
    monkeypatch.setattr(request_consumer, "authorize", _whatever_it_was_granted)
    assert "status.reported of other in *" in violations(story)


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

    def whatever_the_etag(cache: EtagCache[Any], s3_key: str, etag: str) -> Any:
        del etag
        return cache._kept.get(s3_key, (None, None))[1]

    monkeypatch.setattr(EtagCache, "get", whatever_the_etag)
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
