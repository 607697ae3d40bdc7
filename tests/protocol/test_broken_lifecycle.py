"""Enrollments, rotations and sweeps to their end, with a guard taken out (SPEC 5.4, 6.7, 8.1, 8.6).

Each story runs twice: the workers' own classes hold, and the broken ones are caught.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.core.sweep_record import Origin
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.request_handler import ControlHandler
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from tests.protocol.hostile import HostilePublisher
from tests.protocol.process import Parts
from tests.protocol.stories import (
    BelievesA404,
    begin,
    stop_at,
    violations,
    without,
)

if TYPE_CHECKING:
    from keyturn_workers.core.sweep_record import ProjectRecord
    from keyturn_workers.pipeline.sweep.messages import SweepStep
    from tests.protocol.world import World

OWN_KEK = bytes([5]) * 32


def _each_is_answered(world: World) -> None:
    """Each honest waiter hears the end of its request, be it restarted or not."""
    world.run(seconds=3600)
    for waiter in world.waiters:
        if not waiter.ended:
            sent = waiter.request
            world.oracle.violated(f"{sent.publisher} waits forever for {sent.kind}")


def _ends(world: World, request_id: str) -> list[tuple[str, str | None]]:
    ends: list[Any] = world.ended(request_id)
    return [(event.type, event.publisher) for event in ends]


# Ids that are used again.


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


def test_a_rotation_id_counts_only_with_its_publisher_and_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_id_that_another_publisher_reuses) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.control.rotation.is_same_request", lambda *_, **__: True
    )
    found = violations(a_rotation_id_that_another_publisher_reuses)
    assert any("another publisher was answered with rotation.accepted" in what for what in found)


@pytest.mark.parametrize("kind", ["rotate", "enroll"])
def test_a_sweep_under_the_id_of_another_request_changes_nothing_for_it(kind: str) -> None:
    """A record tells requests apart by kind, id and publisher."""

    def story(world: World) -> None:
        if kind == "rotate":
            begin(world, "a")
            request = world.rotate("acme", publisher="api")
            put = stop_at(world, "put", keyring_s3_key("acme"))
        else:
            request = world.enroll("acme", adopt=True)
            put = stop_at(world, "put", ".keyturn/sweeps/")
        HostilePublisher(world, "second").reuse(request, "sweep", "acme", encrypt_plaintext=True)
        without(world, put, seconds=1)
        world.step(put)
        _each_is_answered(world)
        assert world.dead == []
        assert [event for event in world.events if event.type.endswith("failed")] == []

    assert violations(story) == []


def an_enrollment_delivered_again_while_its_keyring_answers_404(world: World) -> None:
    begin(world, "a")
    enrollment = next(iter(world.requests))
    world.server.hide(".keyturn/keyrings/acme.json", code="NoSuchKey", times=1)
    world.send_again(enrollment)
    _each_is_answered(world)


def test_an_enrollment_is_not_refused_for_a_keyring_that_is_listed_and_answers_404(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = an_enrollment_delivered_again_while_its_keyring_answers_404
    # Of a keyring that has a mark, two rules prevent it; of one without, that of the enrollment.
    for parts in (None, Parts(keyrings=BelievesA404)):
        assert violations(story, parts) == []

    async def unchecked(*_: Any) -> None:
        return None

    monkeypatch.setattr(Enroller, "_check_not_listed", unchecked)
    found = violations(story, Parts(keyrings=BelievesA404), settle=False)
    assert any("enroll.rejected believed by" in what for what in found)


def test_an_enrollment_id_counts_only_with_its_publisher_and_its_key() -> None:
    def story(world: World) -> None:
        enrollment = world.enroll("acme", publisher="api")
        world.run()
        hostile = HostilePublisher(world, "second")
        hostile.reuse(enrollment, "enroll", "acme")
        hostile.reuse(enrollment, "enroll", "acme", kek=OWN_KEK)
        world.replay(enrollment)
        world.run()
        ends: list[Any] = world.ended(enrollment)
        outcomes = [(e.type, getattr(e, "code", "")) for e in ends]
        rejected = ("enroll.rejected", "already_enrolled")
        assert sorted(outcomes) == [rejected] * 2 + [("project.enrolled", "")] * 2
        assert {e.publisher for e in ends if e.type == "project.enrolled"} == {"api"}

    assert violations(story) == []


def test_after_a_later_rotation_the_key_alone_identifies_the_owner_of_an_id() -> None:
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
        outcomes = [(e.publisher, e.type, getattr(e, "code", "")) for e in answers]
        assert ("rotation.rejected", "generation_mismatch") in [each[1:] for each in outcomes]
        assert not [each for each in outcomes if each[0] == "second" and "accepted" in each[1]]
        assert outcomes.count(("api", "rotation.accepted", "")) == 2

    assert violations(story) == []


# To whom the end is published.


def a_sweep_requested_by_two_publishers(world: World) -> None:
    begin(world, "a")
    sweep = world.sweep("acme", publisher="api")
    world.run(until=lambda: world.oracle.origin(sweep, "acme"))
    world.sweep("acme", publisher="second", request_id=sweep)
    _each_is_answered(world)


def test_the_end_of_a_sweep_is_published_to_each_publisher_that_requested_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_sweep_requested_by_two_publishers) == []
    monkeypatch.setattr(
        Origin, "name", property(lambda origin: (origin.kind, origin.id, "", origin.walk_id))
    )
    found = violations(a_sweep_requested_by_two_publishers)
    assert any("second waits forever for sweep.requested" in what for what in found)


def test_each_publisher_gets_the_end_once_and_a_later_one_gets_it_alone() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep("acme", publisher="api")
        world.run(until=lambda: world.oracle.origin(sweep, "acme"))
        world.sweep("acme", publisher="second", request_id=sweep)
        world.run()
        ended = [("sweep.completed", "api"), ("sweep.completed", "second")]
        assert sorted(_ends(world, sweep)) == ended
        world.replay(sweep)  # the last publisher was `second`
        world.run()
        assert sorted(_ends(world, sweep)) == [*ended, ("sweep.completed", "second")]
        progress: list[Any] = world.events_of_type("sweep.progressed")
        assert {event.publisher for event in progress} <= {"api", "second"}

    assert violations(story) == []


def test_a_sweep_of_all_publishes_its_progress_and_its_end_to_each_publisher() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep("*", publisher="api")
        world.run()
        ends: list[Any] = world.ended(sweep)
        assert [(event.project, event.publisher) for event in ends] == [("*", "api")]
        progress: list[Any] = world.events_of_type("sweep.progressed")
        assert {(e.project, e.publisher) for e in progress if e.sweep_id == sweep} == {
            ("acme", "api")
        }

    assert violations(story) == []


def test_a_rotation_that_cannot_continue_has_failed_and_was_not_rejected() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        rotation = world.rotate("acme")
        world.run(until=lambda: world.events_of_type("rotation.accepted"))
        world.bucket_writer.remove(".keyturn/keyrings/acme.json")
        world.run()
        (end,) = world.events_of_type("rotation.failed")
        assert (end.rotation_id, end.publisher, end.code) == (
            rotation,
            "api",
            "keyring_rolled_back",
        )
        assert world.events_of_type("rotation.rejected") == []
        assert all(waiter.ended for waiter in world.waiters)

    assert violations(story, settle=False) == []


# Pages that nobody sent.


def _step(world: World) -> int:
    record = world.oracle.record("acme")
    assert record is not None
    return int(record["step"])


def a_worker_that_dies_before_it_sends_pages(world: World) -> None:
    """It has made the step. Then a request adds an origin, and another worker makes more steps."""
    begin(world, "a")
    world.rotate("acme")
    send = stop_at(world, f"send {SWEEP_QUEUE}")
    send.sender.stalled = True
    made = _step(world)
    world.sweep("acme")
    assert world.run(until=lambda: _step(world) > made + 1)
    world.crash(send.sender, arriving=lambda _: False)


class _SendsWhatTheLastStepSent(Reconciler):
    """Sends again only the pages of the last step, whichever step the message asked for."""

    async def _send_again(self, record: ProjectRecord) -> None:
        assert record.round is not None
        of_the_last_step = tuple(
            page for page in record.round.open_pages if page.sent_at == record.stepped_at
        )
        last = replace(record, round=replace(record.round, open_pages=of_the_last_step))
        await super()._send_again(last)


class _RepeatsTheLastStep(Reconciler):
    """Takes a message of an earlier step for one that is out of date."""

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        record = (await self._read(hint.project)).record
        await super().run_step(hint, again=again and hint.step + 1 == record.step)


@pytest.mark.parametrize("broken", [_SendsWhatTheLastStepSent, _RepeatsTheLastStep])
def test_a_step_message_that_is_delivered_again_sends_every_page_that_is_under_way(
    broken: type[Reconciler],
) -> None:
    story = a_worker_that_dies_before_it_sends_pages
    assert violations(story) == []
    found = violations(story, Parts(reconciler=broken))
    assert found
    assert all("stands still" in each for each in found), found


# Requests past their age.

TOO_OLD_S = 8 * 86_400


def requests_that_were_served_and_are_delivered_again_too_late(world: World) -> None:
    begin(world, "a", "b")
    enrollment = next(iter(world.requests))
    rotation = world.rotate("acme")
    world.run()
    sweep = world.sweep("acme")
    delete = world.delete("acme", "b")
    world.run()
    world.advance(TOO_OLD_S)
    for request_id in (enrollment, rotation, sweep, delete):
        world.replay(request_id)
    world.run()
    for request_id in (enrollment, rotation, sweep, delete):
        ends: list[Any] = world.ended(request_id)
        if {getattr(event, "code", "") for event in ends} != {""} or len(ends) != 2:
            world.oracle.violated(f"{world.requests[request_id]['type']} was done and is refused")


def test_a_served_request_is_reported_as_served_however_late_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(requests_that_were_served_and_are_delivered_again_too_late) == []

    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(ControlHandler, "find_completed", nothing)
    found = violations(requests_that_were_served_and_are_delivered_again_too_late, settle=False)
    kinds = {what.split()[0] for what in found if "was done and is refused" in what}
    assert kinds == {
        "enroll.requested",
        "rotation.requested",
        "sweep.requested",
        "delete.requested",
    }


def test_a_request_that_comes_too_late_is_refused_and_changes_nothing() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        enrollment = next(iter(world.requests))
        old = format_time(world.clock.now - timedelta(seconds=TOO_OLD_S))
        sent = [
            world.rotate("acme", requested_at=old),
            world.sweep("acme", requested_at=old),
            world.enroll("beta", requested_at=old),
            # Another publisher's key under a known id is not what was done.
            HostilePublisher(world, "second").reuse(
                enrollment, "enroll", "acme", kek=OWN_KEK, requested_at=old
            ),
        ]
        world.run()
        codes = [error.code for _, error in world.dead]
        assert codes == ["request_expired"] * len(sent)
        assert list(world.oracle.projects) == ["acme"]
        assert len(world.oracle.projects["acme"].states) == 1

    assert violations(story) == []
