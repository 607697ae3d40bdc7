"""Which event answers a request, with a part of the rule taken out (SPEC 6.7).

Each story runs twice: what the publisher's client believes is what happened, and a client
that asks less of an event is caught believing what did not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.messages import request_id
from keyturn.publisher.event_matcher import EventMatcher
from tests.protocol.hostile import HostilePublisher
from tests.protocol.stories import begin, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import Event
    from tests.protocol.world import World

_matches = EventMatcher.matches


def _by_id_alone(matcher: EventMatcher, event: Event) -> bool:
    """As before 0.5."""
    return request_id(event) == matcher.request_id


def _whatever_the_publisher(matcher: EventMatcher, event: Event) -> bool:
    return _matches(matcher, event.model_copy(update={"publisher": matcher.publisher}))


def _whatever_the_bytes(matcher: EventMatcher, event: Event) -> bool:
    return _matches(matcher, event.model_copy(update={"request": matcher.digest or "0" * 64}))


def _stored_and_not_published(world: World, s3_key: str) -> list[Any]:
    """Run until the object is there; what its upload waits for then, to be held."""
    assert world.run(until=lambda: s3_key in world.server.current_objects())
    return [call for call in world.calls if call.can_proceed]


def a_sweep_of_ones_own_under_anothers_id(world: World) -> None:
    """Each asks for a sweep of its project; the ids are equal, and the other one ends first."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    sweep = world.sweep("acme", publisher="api", repair=True)
    asked = world.queue[-1]
    HostilePublisher(world, "other").reuse(sweep, "sweep", "beta")
    world.run(keep=lambda queued: queued is asked, seconds=3600)
    world.settle()


def an_upload_of_ones_own_under_anothers_id(world: World) -> None:
    """Stored in the one project, refused in the other."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    upload = world.upload("acme", "b", b"x", publisher="api")
    held = _stored_and_not_published(world, "acme/b")
    hostile = HostilePublisher(world, "other")
    hostile.reuse(upload, "upload", "beta", key="../k", plaintext=b"yz")
    world.run(hold=held.__contains__)
    world.settle()


def an_upload_of_the_same_project_under_anothers_id(world: World) -> None:
    """Its key is taken, so that it is refused, in the very project of the one that is stored."""
    begin(world, "a")
    upload = world.upload("acme", "b", b"x", publisher="api")
    held = _stored_and_not_published(world, "acme/b")
    HostilePublisher(world, "second").reuse(upload, "upload", "acme", key="a", plaintext=b"yz")
    world.run(hold=held.__contains__)
    world.settle()


def an_old_refusal_that_is_published_again(world: World) -> None:
    """Refused, enrolled, tried again; then a broker writer repeats what was refused."""
    begin(world, "a")
    upload = world.upload("nowhere", "k", b"x", publisher="api")
    world.run()
    refused = world.stream[-1]
    world.enroll("nowhere")
    world.run()
    world.send_again(upload)
    _stored_and_not_published(world, "nowhere/k")
    world.broker_writer.publish_again(refused)
    world.settle()


@pytest.mark.parametrize(
    ("story", "broken"),
    [
        (a_sweep_of_ones_own_under_anothers_id, _by_id_alone),
        (an_upload_of_ones_own_under_anothers_id, _by_id_alone),
        (an_upload_of_the_same_project_under_anothers_id, _by_id_alone),
        (an_upload_of_the_same_project_under_anothers_id, _whatever_the_publisher),
        (an_old_refusal_that_is_published_again, _by_id_alone),
        (an_old_refusal_that_is_published_again, _whatever_the_bytes),
    ],
    ids=lambda part: part.__name__.lstrip("_"),
)
def test_an_event_is_believed_only_if_all_of_it_matches_the_request(
    story: Callable[[World], None],
    broken: Callable[[EventMatcher, Event], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(EventMatcher, "matches", broken)
    assert any("believed by" in what for what in violations(story))
