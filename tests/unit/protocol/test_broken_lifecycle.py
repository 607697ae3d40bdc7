"""Enrolments, rotations and sweeps to their end, with a guard taken out (SPEC 5.4, 6.7, 8.1, 8.6).

Each story is told twice: the workers' own classes hold, and the broken ones are caught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.protocol.hostile import HostilePublisher
from tests.unit.protocol.stories import begin, hint, violations

if TYPE_CHECKING:
    import pytest

    from tests.unit.protocol.world import World

OWN_KEK = bytes([5]) * 32


def _each_is_answered(world: World) -> None:
    """Each honest waiter hears the end of its request, be it restarted or not."""
    world.run()
    for waiter in world.waiters:
        if not waiter.ended:
            asked = waiter.asked
            world.oracle.violated(f"{asked.publisher} waits for ever for {asked.kind}")


def _ends(world: World, request_id: str) -> list[tuple[str, str | None]]:
    ends: list[Any] = world.ended(request_id)
    return [(event.type, event.publisher) for event in ends]


# Ids that come again.


def a_rotation_id_that_another_publisher_reuses(world: World) -> None:
    begin(world, "a")
    rotation = world.rotate("acme", publisher="api")
    world.run()
    HostilePublisher(world, "second").reuse(rotation, "rotate", "acme", kek=OWN_KEK)
    world.run()
    for event in world.events:
        if event.publisher == "second" and event.type != "rotation.rejected":
            world.oracle.violated(f"another publisher was answered with {event.type}")
    assert [error.code for _, error in world.dead] in ([], ["generation_mismatch"])


def test_a_rotation_id_is_known_with_its_publisher_and_its_key_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_id_that_another_publisher_reuses) == []
    monkeypatch.setattr("workers.control.rotation.is_same_request", lambda *_, **__: True)
    found = violations(a_rotation_id_that_another_publisher_reuses)
    assert any("another publisher was answered with rotation.accepted" in what for what in found)


def a_rotation_id_reused_before_its_record_exists(world: World) -> None:
    """A sweep under the rotation's id would keep the rotation's own sweep from beginning."""
    begin(world, "a")
    rotation = world.rotate("acme", publisher="api")
    generations = lambda: len(world.oracle.projects["acme"].states) == 2  # noqa: E731
    world.run(until=generations)
    turning = [call for call in world.calls if call.can_go]
    HostilePublisher(world, "second").reuse(rotation, "sweep", "acme", dry_run=True)
    world.run(hold=turning.__contains__, keep=lambda letter: bool(hint(letter)))
    _each_is_answered(world)


def test_no_sweep_takes_the_id_of_a_rotation_whose_record_is_not_written_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_id_reused_before_its_record_exists) == []
    monkeypatch.setattr("workers.sweep.start.brought_by", lambda *_: None)
    found = violations(a_rotation_id_reused_before_its_record_exists)
    assert any("was told as rejected, and had turned the keyring" in what for what in found)


def test_an_enrolment_id_is_known_with_its_publisher_and_its_key_alone() -> None:
    def story(world: World) -> None:
        enrolment = world.enroll("acme", publisher="api")
        world.run()
        hostile = HostilePublisher(world, "second")
        hostile.reuse(enrolment, "enroll", "acme")
        hostile.reuse(enrolment, "enroll", "acme", kek=OWN_KEK)
        world.replay(enrolment)
        world.run()
        ends: list[Any] = world.ended(enrolment)
        told = [(e.type, getattr(e, "code", "")) for e in ends]
        rejected = ("enroll.rejected", "already_enrolled")
        assert sorted(told) == [rejected] * 2 + [("project.enrolled", "")] * 2
        assert {e.publisher for e in ends if e.type == "project.enrolled"} == {"api"}

    assert violations(story) == []


def test_after_a_later_rotation_the_key_alone_decides_whose_an_id_is() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        first = world.rotate("acme", publisher="api")
        world.run()
        world.rotate("acme", publisher="second")
        world.run()
        world.replay(first)
        HostilePublisher(world, "second").reuse(first, "rotate", "acme", kek=OWN_KEK)
        world.run()
        answers: list[Any] = [e for e in world.events if getattr(e, "rotation_id", "") == first]
        told = [(e.publisher, e.type, getattr(e, "code", "")) for e in answers]
        assert ("rotation.rejected", "generation_mismatch") in [each[1:] for each in told]
        assert not [each for each in told if each[0] == "second" and "accepted" in each[1]]
        assert told.count(("api", "rotation.accepted", "")) == 2

    assert violations(story) == []


# To whom the end is published.


def a_sweep_that_two_publishers_ask_for(world: World) -> None:
    begin(world, "a")
    sweep = world.sweep("acme", publisher="api")
    world.run(until=lambda: world.oracle.plan(sweep, "acme"))
    world.sweep("acme", publisher="second", request_id=sweep)
    _each_is_answered(world)


def test_the_end_of_a_sweep_is_published_to_each_that_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_sweep_that_two_publishers_ask_for) == []
    monkeypatch.setattr("workers.sweep.start.joined", lambda origins, _: origins)
    found = violations(a_sweep_that_two_publishers_ask_for)
    assert any("second waits for ever for sweep.requested" in what for what in found)


def test_each_hears_the_end_once_and_one_that_comes_later_hears_it_alone() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep("acme", publisher="api")
        world.run(until=lambda: world.oracle.plan(sweep, "acme"))
        world.sweep("acme", publisher="second", request_id=sweep)
        world.run()
        ended = [("sweep.completed", "api"), ("sweep.completed", "second")]
        assert sorted(_ends(world, sweep)) == ended
        world.replay(sweep)  # the last that asked was `second`
        world.run()
        assert sorted(_ends(world, sweep)) == [*ended, ("sweep.completed", "second")]
        progress: list[Any] = world.told_of("sweep.progressed")
        assert {event.publisher for event in progress} <= {"api", "second"}

    assert violations(story) == []


def test_a_sweep_of_all_publishes_its_progress_and_its_end_to_each_publisher() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep("*", publisher="api")
        world.run()
        ends: list[Any] = world.ended(sweep)
        assert [(event.project, event.publisher) for event in ends] == [("*", "api")]
        progress: list[Any] = world.told_of("sweep.progressed")
        assert {(e.project, e.publisher) for e in progress if e.sweep_id == sweep} == {
            ("acme", "api")
        }

    assert violations(story) == []


def test_a_rotation_that_cannot_go_on_has_failed_and_was_not_rejected() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        rotation = world.rotate("acme")
        world.run(until=lambda: world.told_of("rotation.accepted"))
        world.bucket_writer.remove(".keyturn/keyrings/acme.json")
        world.run()
        (end,) = world.told_of("rotation.failed")
        assert (end.rotation_id, end.publisher, end.code) == (rotation, "api", "unknown_project")
        assert world.told_of("rotation.rejected") == []
        assert all(waiter.ended for waiter in world.waiters)

    assert violations(story, settle=False) == []
