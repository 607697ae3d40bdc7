"""Enrollments, rotations and sweeps to their end, with a guard taken out (SPEC 5.4, 6.7, 8.1, 8.6).

Each story runs twice: the workers' own classes hold, and the broken ones are caught.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.identifiers import format_time, keyring_s3_key
from keyturn_workers.control import ControlHandler
from keyturn_workers.control.enrollment import Enroller
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.all_projects_sweep import AllProjectsSweep
from keyturn_workers.sweep.lost_rotations import OpenRotations
from keyturn_workers.sweep.project_sweep import ProjectSweep
from keyturn_workers.sweep.recovery import recover
from keyturn_workers.sweep.takeover import take_over_earlier
from tests.protocol.hostile import HostilePublisher
from tests.protocol.process import MASTER_KEYS, Options, Parts
from tests.protocol.stories import (
    BelievesA404,
    accept_early_proofs,
    begin,
    hint,
    is_page,
    stop_at,
    violations,
    without,
)
from tests.protocol.wire import MID
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.sweep.plan import AllPlan, Plan
    from keyturn_workers.sweep.sweep_store import StoredPlan
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
    monkeypatch.setattr("keyturn_workers.control.rotation.is_same_request", lambda *_, **__: True)
    found = violations(a_rotation_id_that_another_publisher_reuses)
    assert any("another publisher was answered with rotation.accepted" in what for what in found)


def a_rotation_id_reused_before_its_record_exists(world: World) -> None:
    """A sweep under the rotation's id would keep the rotation's own sweep from beginning."""
    begin(world, "a")
    rotation = world.rotate("acme", publisher="api")
    generations = lambda: len(world.oracle.projects["acme"].states) == 2  # noqa: E731
    world.run(until=generations)
    turning = [call for call in world.calls if call.can_proceed]
    HostilePublisher(world, "second").reuse(rotation, "sweep", "acme")
    world.run(hold=turning.__contains__, keep=lambda queued: bool(hint(queued)), seconds=5)
    _each_is_answered(world)
    if world.events_of_type("rotation.failed"):
        world.oracle.violated("another sweep has the rotation's id")


def test_no_sweep_may_use_the_id_of_a_rotation_whose_record_is_not_written_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_id_reused_before_its_record_exists) == []
    monkeypatch.setattr("keyturn_workers.sweep.starter.find_generation_number", lambda *_: None)
    found = violations(a_rotation_id_reused_before_its_record_exists)
    assert "another sweep has the rotation's id" in found


def test_a_rotation_whose_id_a_sweep_used_meanwhile_is_not_rejected() -> None:
    """No sweep of its own can begin: it was accepted, and has failed."""

    def story(world: World) -> None:
        begin(world, "a")
        rotation = world.rotate("acme", publisher="api")
        turn = stop_at(world, "put", ".keyturn/keyrings/acme.json")
        HostilePublisher(world, "second").reuse(rotation, "sweep", "acme")
        without(world, turn, seconds=1)
        assert world.oracle.plan(rotation, "acme")
        world.step(turn)
        _each_is_answered(world)
        of = [event for event in world.events if getattr(event, "rotation_id", "") == rotation]
        assert [event.type for event in of] == ["rotation.accepted", "rotation.failed"]

    assert violations(story) == []


def test_no_sweep_may_use_the_id_of_an_enrollment_that_adopts() -> None:
    def story(world: World) -> None:
        enrollment = world.enroll("acme", adopt=True)
        listed = stop_at(world, "read", f".keyturn/sweeps/{enrollment}/")
        HostilePublisher(world, "second").reuse(enrollment, "sweep", "acme")
        without(world, listed, seconds=1)
        world.step(listed)
        _each_is_answered(world)
        assert [error.code for _, error in world.dead] == ["malformed_request"]
        assert [event.type for event in world.ended(enrollment)] == ["project.enrolled"]

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
    world.run(until=lambda: world.oracle.plan(sweep, "acme"))
    world.sweep("acme", publisher="second", request_id=sweep)
    _each_is_answered(world)


def test_the_end_of_a_sweep_is_published_to_each_publisher_that_requested_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_sweep_requested_by_two_publishers) == []
    monkeypatch.setattr("keyturn_workers.sweep.starter.merge_origins", lambda origins, _: origins)
    found = violations(a_sweep_requested_by_two_publishers)
    assert any("second waits forever for sweep.requested" in what for what in found)


def test_each_publisher_gets_the_end_once_and_a_later_one_gets_it_alone() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep("acme", publisher="api")
        world.run(until=lambda: world.oracle.plan(sweep, "acme"))
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


# A later sweep takes over the earlier ones.

ONE_KEY_A_PAGE = Options(page_keys=1)


def _successor(world: World, sweep_id: str) -> Any:
    plan = world.oracle.plan(sweep_id, "acme")
    return None if plan is None else plan["successor"]


def a_rotation_that_takes_over_one_with_proven_pages(world: World) -> None:
    begin(world, "a", "b")
    first = world.rotate("acme")

    def proven() -> Any:
        plan = world.oracle.plan(first, "acme")
        return plan is not None and plan["proven"]["objects"] == 1

    assert world.run(until=proven, keep=lambda queued: is_page(queued, 1))
    second = world.rotate("acme")
    of_first = lambda queued: hint(queued).get("sweep_id") == first  # noqa: E731
    assert world.run(until=lambda: _successor(world, first) == second, keep=of_first)
    _each_is_answered(world)


class _KeepsProofs(ProjectSweep):
    """Continues from the progress of the sweep that it takes over."""

    async def _step(self, stored: StoredPlan[Plan]) -> bool:
        plan = stored.plan
        if plan.step == 0:
            async for sweep_id, project, _ in self._store.running():
                earlier = (await self._store.read(sweep_id, project)).plan
                if earlier.proven.objects:
                    live = tuple(replace(each, sent_at=None) for each in earlier.live)
                    ranges, number = earlier.ranges, earlier.next_page
                    plan = replace(plan, step=1, ranges=ranges, live=live, next_page=number)
                    plan = replace(plan, proven=earlier.proven, dated_pages=earlier.dated_pages)
            await take_over_earlier(self._store, self._dispatcher, plan, stored.master_key)
        return await super()._step(replace(stored, plan=plan))


def test_a_sweep_that_takes_over_another_proves_every_page_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_rotation_that_takes_over_one_with_proven_pages
    assert violations(story, options=ONE_KEY_A_PAGE) == []
    accept_early_proofs(monkeypatch)
    found = violations(story, Parts(project_sweep=_KeepsProofs), ONE_KEY_A_PAGE)
    assert any("acme/a is wrapped under (2," in what and "at the end of" in what for what in found)


def test_the_end_of_a_sweep_that_was_taken_over_is_that_of_the_later_one() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        first = world.rotate("acme", publisher="api")
        world.run(until=lambda: world.oracle.plan(first, "acme"))
        second = world.rotate("acme", publisher="second")
        world.run()
        (one,), (other,) = (cast("list[Any]", world.ended(each)) for each in (first, second))
        assert (one.type, one.publisher) == ("rotation.completed", "api")
        assert (other.type, other.publisher) == ("rotation.completed", "second")
        same = {"rotation_id", "publisher", "request", "at"}
        assert one.model_dump(exclude=same) == other.model_dump(exclude=same)
        assert one.clean

    assert violations(story) == []


def two_sweeps_that_start_at_once(world: World) -> None:
    """Each has read its own record, and inspects the other one's."""
    begin(world, "a")
    first = world.sweep("acme")
    second = world.sweep("acme")
    world.run(keep=lambda queued: bool(hint(queued)))
    look = stop_at(
        world,
        "read",
        f".keyturn/sweeps/{second}/",
        keep=lambda queued: hint(queued).get("sweep_id") == second,
    )
    without(world, look, until=lambda: _successor(world, first) == second)
    world.step(look)
    _each_is_answered(world)


def test_no_two_sweeps_take_over_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(two_sweeps_that_start_at_once) == []
    monkeypatch.setattr("keyturn_workers.sweep.takeover.is_later", lambda *_, **__: True)
    found = violations(two_sweeps_that_start_at_once, settle=False)
    assert any("waits forever for sweep.requested" in what for what in found)


def a_sweep_whose_successor_vanishes(world: World) -> None:
    begin(world, "a", "b")
    first = world.rotate("acme")
    world.run(until=lambda: world.oracle.plan(first, "acme"))
    second = world.rotate("acme")
    assert world.run(until=lambda: _successor(world, first) == second)
    world.bucket_writer.remove(f".keyturn/sweeps/{second}/acme/")
    world.run(seconds=600)
    if not world.ended(first):
        world.oracle.violated("a sweep waits for a successor whose record is gone")
    world.replay(second)
    _each_is_answered(world)


class _WaitsForGood(ProjectSweep):
    """Treats a missing record as one that is still to be written."""

    async def _successor(self, plan: Plan) -> Any:
        found = await super()._successor(plan)
        return found or await self._read(plan.ask.sweep_id, plan.ask.project)


def test_a_sweep_continues_by_itself_if_its_successor_is_gone() -> None:
    assert violations(a_sweep_whose_successor_vanishes) == []
    broken = Parts(project_sweep=_WaitsForGood)
    found = violations(a_sweep_whose_successor_vanishes, broken, settle=False)
    assert "a sweep waits for a successor whose record is gone" in found


def test_the_failure_of_the_later_sweep_is_that_of_the_earlier_one_too() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        first = world.rotate("acme", publisher="api")
        world.run(until=lambda: world.oracle.plan(first, "acme"))
        second = world.rotate("acme", publisher="second")
        assert world.run(until=lambda: _successor(world, first) == second)
        world.server.plant(keyring_s3_key("acme"), b"{}", Headers({}))
        world.run()
        failed: list[Any] = world.events_of_type("rotation.failed")
        outcomes = {(event.rotation_id, event.publisher, event.code) for event in failed}
        assert outcomes == {
            (first, "api", "corrupt_object"),
            (second, "second", "corrupt_object"),
        }

    assert violations(story, settle=False) == []


def test_the_later_of_two_sweeps_of_all_ends_the_parts_of_the_earlier_one() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        first = world.sweep("*")
        world.run(until=lambda: world.oracle.plan(first, "acme"))
        second = world.sweep("*")
        assert world.run(until=lambda: _successor(world, first) == second)
        world.run()
        ends = [cast("list[Any]", world.ended(each)) for each in (first, second)]
        assert [(len(each), each[0].clean, each[0].objects) for each in ends] == [(1, True, 1)] * 2

    assert violations(story) == []


@pytest.mark.parametrize("lost", [False, True], ids=["its message comes again", "it is lost"])
def test_tags_that_a_dead_worker_noted_are_put_back_in_a_sweep_that_was_taken_over(
    *, lost: bool
) -> None:
    def story(world: World) -> None:
        begin(world, "a")
        tags = {"kept": "yes"}
        world.server._bucket.change_tags("acme/a", tags)
        first = world.rotate("acme")
        copy = stop_at(world, "copy_onto_itself", "acme/a", state=MID)
        world.rotate("acme")
        world.run(until=lambda: _successor(world, first), hold=lambda call: call is copy)
        world.step(copy, respond=False)
        world.crash(copy.sender)
        if lost:
            world.queue[:] = [queued for queued in world.queue if not is_page(queued)]
        _each_is_answered(world)
        assert world.server._bucket.get("acme/a").tags == tags

    assert violations(story) == []


def test_tags_noted_after_the_end_of_a_sweep_that_was_taken_over_are_put_back() -> None:
    """Its page was under way all the time, wrote by a third rotation, and its worker died."""

    def story(world: World) -> None:
        begin(world, "a")
        tags = {"kept": "yes"}
        world.server._bucket.change_tags("acme/a", tags)
        first = world.rotate("acme")
        note = stop_at(world, "put", f".keyturn/sweeps/{first}/acme/tags/")
        second = world.rotate("acme")
        assert without(world, note, until=lambda: world.ended(first) and world.ended(second))
        third = world.rotate("acme")
        of_third = lambda queued: hint(queued).get("sweep_id") == third  # noqa: E731
        rotated = lambda: len(world.events_of_type("rotation.accepted")) == 3  # noqa: E731
        assert without(world, note, until=rotated, keep=of_third)
        copy = stop_at(world, "copy_onto_itself", "acme/a", state=MID, keep=of_third)
        world.step(copy, respond=False)
        world.crash(copy.sender)
        _each_is_answered(world)
        assert world.server._bucket.get("acme/a").tags == tags

    assert violations(story) == []


def test_a_sweep_that_failed_with_its_successor_continues_by_itself_if_requested_again() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        first = world.rotate("acme")
        world.run(until=lambda: world.oracle.plan(first, "acme"))
        second = world.rotate("acme")
        assert world.run(until=lambda: _successor(world, first) == second)
        keyring = world.server.current_objects()[keyring_s3_key("acme")]
        world.server.plant(keyring_s3_key("acme"), b"{}", Headers({}))
        world.run()
        assert len(world.events_of_type("rotation.failed")) == 2
        world.server.plant(keyring_s3_key("acme"), keyring.body, keyring.headers)
        world.replay(first)
        world.run()
        assert [event.type for event in world.ended(first)][-1] == "rotation.completed"
        assert [event.type for event in world.ended(second)] == ["rotation.failed"]

    assert violations(story, settle=False) == []


# A record that is gone.


def _recover(world: World, rotations: OpenRotations | None) -> None:
    """One recovery round of a worker, 16 minutes after the last one."""
    world.advance(16 * 60)
    process = world.processes[0]
    round_ = recover(
        process._store,
        process.sweep_handler,
        stalled_after=timedelta(minutes=15),
        keep_for=timedelta(days=8),
        now=world.clock.now,
        rotations=rotations,
    )
    world.loop.create_task(round_)
    world.loop.run_until_idle()
    world.run()


def _open_rotations(world: World) -> OpenRotations:
    process = world.processes[0]
    return OpenRotations(
        process._storage, process._store, process._starter, operator_keys(MASTER_KEYS)
    )


def a_rotation_whose_record_is_removed(world: World) -> None:
    begin(world, "a", "b")
    rotation = world.rotate("acme", publisher="second")
    world.run(until=lambda: world.events_of_type("rotation.accepted"))
    world.bucket_writer.remove(f".keyturn/sweeps/{rotation}/")
    world.bucket_writer.remove(".keyturn/sweeps/_running/")
    world.run()
    rotations = _open_rotations(world)
    _recover(world, rotations)
    assert world.oracle.plan(rotation, "acme") is None
    _recover(world, rotations)
    _each_is_answered(world)
    assert [event.type for event in world.events if "failed" in event.type] == []


def test_a_rotation_whose_record_is_removed_is_restarted_under_its_own_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_whose_record_is_removed) == []

    async def never(*_: Any, **__: Any) -> int:
        return 0

    monkeypatch.setattr(OpenRotations, "restart_lost", never)
    found = violations(a_rotation_whose_record_is_removed, settle=False)
    assert any("second waits forever for rotation.requested" in what for what in found)


def test_the_end_of_a_restarted_rotation_names_its_publisher_and_request() -> None:
    def story(world: World) -> None:
        a_rotation_whose_record_is_removed(world)
        (end,) = world.events_of_type("rotation.completed")
        sent = next(a for a in world.sent_requests.values() if a.kind == "rotation.requested")
        assert (end.rotation_id, end.publisher, end.request) == (sent.id, "second", sent.digest)
        assert end.clean

    assert violations(story) == []


def a_rotation_whose_record_is_not_written_yet(world: World) -> None:
    """Its worker stalls between the keyring and the record; two rounds find none meanwhile."""
    begin(world, "a")
    rotation = world.rotate("acme")
    put = stop_at(world, "put", f".keyturn/sweeps/{rotation}/")
    stalled: Any = put.sender
    rotations = _open_rotations(world)
    for _ in range(3):
        world.advance(16 * 60)
        task = recover(
            world.processes[stalled.number - 1]._store,
            world.processes[stalled.number - 1].sweep_handler,
            stalled_after=timedelta(minutes=15),
            keep_for=timedelta(days=8),
            now=world.clock.now,
            rotations=rotations,
        )
        world.loop.create_task(task)
        world.loop.run_until_idle()
        without(world, put, seconds=60)
    world.step(put)
    _each_is_answered(world)
    assert len(world.oracle.projects["acme"].rotation_ids) == 2


def test_a_record_that_is_written_late_changes_nothing_that_was_restarted() -> None:
    assert violations(a_rotation_whose_record_is_not_written_yet) == []


def _recover_thrice(world: World) -> None:
    """The rounds that a lost rotation needs, and what follows from them."""
    rotations = _open_rotations(world)
    for _ in range(3):
        _recover(world, rotations)
    _each_is_answered(world)


def a_rotation_whose_record_is_removed_before_its_end_is_published(world: World) -> None:
    """Its clean end is proven, and the keyring holds no earlier key any more."""
    begin(world, "a")
    rotation = world.rotate("acme", publisher="second")
    world.run(until=lambda: world.events_of_type("rotation.accepted"))
    settling = stop_at(world, "put", ".keyturn/keyrings/acme.json")
    world.step(settling)
    world.bucket_writer.remove(f".keyturn/sweeps/{rotation}/")
    world.bucket_writer.remove(".keyturn/sweeps/_running/")
    world.run()
    if world.ended(rotation):
        world.oracle.violated("its end was published before its record was removed")
    _recover_thrice(world)


def a_rotation_without_a_record_whose_earlier_keys_another_sweep_clears(world: World) -> None:
    """A sweep of all encrypts too, so that the rotation does not take its part over."""
    begin(world, "a")
    world.sweep("*", encrypt_plaintext=True)
    world.run(until=lambda: world.events_of_type("sweep.progressed"), seconds=10)
    rotation = world.rotate("acme", publisher="second")
    world.run(until=lambda: world.events_of_type("rotation.accepted"))
    world.bucket_writer.remove(f".keyturn/sweeps/{rotation}/")
    world.run(seconds=300)
    if not world.events_of_type("sweep.completed"):
        world.oracle.violated("the sweep of all has not ended")
    _recover_thrice(world)


_CLEARED = pytest.mark.parametrize(
    "story",
    [
        a_rotation_whose_record_is_removed_before_its_end_is_published,
        a_rotation_without_a_record_whose_earlier_keys_another_sweep_clears,
    ],
)


@_CLEARED
def test_a_rotation_without_a_record_is_restarted_though_its_earlier_keys_are_cleared(
    story: Callable[[World], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.sweep.lost_rotations._is_recent", lambda *_: False)
    found = violations(story, settle=False)
    assert any("second waits forever for rotation.requested" in what for what in found)


def a_sweep_of_all_that_loses_a_record(world: World, of: str) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    sweep = world.sweep("*")
    plan = f".keyturn/sweeps/{sweep}/acme/sweep.json"
    ended = f".keyturn/sweeps/{sweep}/_all/done/acme.json"
    if of == "part":
        pages = lambda: any(is_page(queued) for queued in world.queue)  # noqa: E731
        assert world.run(until=pages)
        world.bucket_writer.remove(plan)
    else:
        assert world.run(until=lambda: ended in world.server.current_objects())
        world.bucket_writer.remove(ended)
    _each_is_answered(world)
    assert [(end.clean, end.objects) for end in world.events_of_type("sweep.completed")] == [
        (True, 1)
    ]


async def _all_live(_: AllProjectsSweep, plan: AllPlan, *__: Any) -> AllPlan:
    """`_without_lost` of a sweep that waits for its parts whatever becomes of them."""
    return plan


@pytest.mark.parametrize("of", ["part", "end"])
def test_a_sweep_of_all_continues_if_the_record_of_a_part_is_removed(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story(world: World) -> None:
        a_sweep_of_all_that_loses_a_record(world, of)

    assert violations(story) == []

    monkeypatch.setattr(AllProjectsSweep, "_without_lost", _all_live)
    with pytest.raises(AssertionError, match="it never ends"):
        violations(story, settle=False)


def a_rotation_taken_over_by_a_sweep_of_all_that_vanishes(world: World) -> None:
    """The sweep of all took the rotation over, and the record of that part is removed."""
    begin(world, "a", "b")
    rotation = world.rotate("acme")
    world.run(until=lambda: world.oracle.plan(rotation, "acme"))
    sweep = world.sweep("*")
    assert world.run(until=lambda: _successor(world, rotation) == sweep)
    world.bucket_writer.remove(f".keyturn/sweeps/{sweep}/acme/")
    _each_is_answered(world)


def test_a_rotation_continues_if_the_part_of_a_sweep_of_all_that_took_it_over_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_rotation_taken_over_by_a_sweep_of_all_that_vanishes
    assert violations(story) == []
    monkeypatch.setattr(AllProjectsSweep, "_without_lost", _all_live)
    with pytest.raises(AssertionError, match="it never ends"):
        violations(story, settle=False)


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
