"""Requests and the rounds that answer them, with a guard taken out (SPEC 8.5, 8.6).

A round answers the requests that were there when it began and have its options. Each story runs
twice: the workers' own classes hold, and the broken ones are caught.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest

from keyturn.errors import CorruptObjectError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import Origin, ProjectRecord, State
from keyturn_workers.core.sweep_transitions import (
    begin_walk,
    end_failed,
    find_repeated,
    open_origins,
)
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.messages import SweepStep
from keyturn_workers.pipeline.sweep.periodic import PeriodicScan, _rotations_of
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from tests.protocol.process import LEASE_S, Options, Parts
from tests.protocol.stories import (
    accept_early_proofs,
    begin,
    hint,
    is_page,
    stop_at,
    violations,
    without,
)
from tests.protocol.wire import MID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import AllRecord, Round, Walk
    from keyturn_workers.keys.sweep_records import StoredRecord
    from tests.protocol.world import World
    from tools.harness.memory_bucket import Stored

ONE_KEY_A_PAGE: Final = Options(page_keys=1)
RECORD: Final = ".keyturn/sweeps/acme.json"
ALL_RECORD: Final = ".keyturn/sweeps/*.json"
FOLDERS: Final = ".keyturn/sweeps/acme/"


def each_is_answered(world: World) -> None:
    """Each honest waiter hears the end of its request."""
    world.run(seconds=3600)
    for waiter in world.waiters:
        if not waiter.ended:
            sent = waiter.request
            world.oracle.violated(f"{sent.publisher} waits forever for {sent.kind}")


def _proven(world: World, objects: int = 1) -> bool:
    proven: dict[str, int] = world.oracle.round("acme").get("proven", {})
    return proven.get("objects") == objects


def _ends(world: World, *request_ids: str) -> list[Any]:
    return [event for each in request_ids for event in world.ended(each)]


def _old_wraps(found: list[str]) -> bool:
    return any("acme/" in what and "at the end of" in what for what in found)


# A request during a round of the same state.


def a_sweep_that_is_requested_behind_a_proven_page(world: World) -> None:
    """An object behind that page was put back meanwhile: the request came after that."""
    begin(world, "a", "b")
    world.rotate("acme")
    world.run()
    first = world.sweep("acme")
    assert world.run(until=lambda: _proven(world), keep=lambda queued: is_page(queued, 1))
    world.bucket_writer.show("acme/a", 0)
    second = world.sweep("acme")
    world.run()
    assert len(_ends(world, first, second)) == 2
    label = world.server.current_objects()["acme/a"].headers.metadata["enc-kek-user"]
    if not label.startswith("2:"):
        world.oracle.violated("a request was answered by a proof older than itself")


def _serve_all(record: ProjectRecord, of: Round, _: Keyring) -> Sequence[Origin]:
    return [each for each in open_origins(record) if each.options == of.options]


def test_no_request_is_answered_by_a_proof_older_than_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_sweep_that_is_requested_behind_a_proven_page
    assert violations(story, options=ONE_KEY_A_PAGE) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.reconciler.served_origins", _serve_all)
    found = violations(story, options=ONE_KEY_A_PAGE, settle=False)
    assert "a request was answered by a proof older than itself" in found, found


def a_rotation_after_a_proven_page(world: World) -> None:
    begin(world, "a", "b")
    world.rotate("acme")
    assert world.run(until=lambda: _proven(world), keep=lambda queued: is_page(queued, 1))
    world.rotate("acme")
    each_is_answered(world)


class _KeepsProofs(Reconciler):
    """Goes on with the round when the state changes."""

    async def _begin_round(self, record: ProjectRecord) -> ProjectRecord:
        before = record.round
        record = await super()._begin_round(record)
        if before is None or record.round is None:
            return record
        return replace(record, round=replace(before, origins=record.round.origins))


def test_a_changed_state_begins_the_round_again(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_rotation_after_a_proven_page
    assert violations(story, options=ONE_KEY_A_PAGE) == []
    accept_early_proofs(monkeypatch)
    found = violations(story, Parts(reconciler=_KeepsProofs), ONE_KEY_A_PAGE, settle=False)
    assert _old_wraps(found), found


def test_rotations_of_one_round_have_ends_of_their_own_that_say_the_same() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        first = world.rotate("acme", publisher="api")
        world.run(until=lambda: world.oracle.origin(first, "acme"))
        second = world.rotate("acme", publisher="second")
        world.run()
        (one,), (other,) = world.ended(first), world.ended(second)
        assert (one.type, one.publisher) == ("rotation.completed", "api")
        assert (other.type, other.publisher) == ("rotation.completed", "second")
        own = {"rotation_id", "publisher", "request", "at", "rewrapped"}
        assert one.model_dump(exclude=own) == other.model_dump(exclude=own)
        assert getattr(one, "clean", False)

    assert violations(story) == []


def a_rotation_whose_origin_comes_after_the_round_that_proves_it(world: World) -> None:
    """The round of a sweep sees the new generation first."""
    begin(world, "a")
    sweep = world.sweep("acme")
    world.run(until=lambda: world.oracle.round("acme"))
    rotation = world.rotate("acme")
    put = stop_at(world, "put", RECORD, keep=hint)
    world.run(hold=lambda call: call is put, until=lambda: _proven(world))
    world.step(put)
    world.run()
    assert [event.type for event in _ends(world, sweep, rotation)] == [
        "sweep.completed",
        "rotation.completed",
    ]


def test_a_rotation_is_answered_by_any_round_that_proves_it() -> None:
    assert violations(a_rotation_whose_origin_comes_after_the_round_that_proves_it) == []


# Options.


def a_rotation_beside_the_repair_of_another_publisher(world: World) -> None:
    """A user wrap is damaged: only who asks for a repair has it replaced."""
    begin(world, "a")
    rotation = world.rotate("acme", publisher="api")
    world.run(until=lambda: world.oracle.origin(rotation, "acme"), keep=hint)
    repair = world.sweep("acme", publisher="second", repair=True)
    world.run()
    options = [world.oracle.origin(each, "acme") for each in (rotation, repair)]
    assert [each["options"]["repair"] for each in options if each] == [False, True]
    rounds = {each["end"]["round_id"] for each in options if each}
    if len(rounds) == 1:
        world.oracle.violated("a repair touched the rotation of another publisher")


def test_a_round_serves_requests_of_one_set_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_rotation_beside_the_repair_of_another_publisher
    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.core.sweep_transitions.choose_origins", open_origins)
    found = violations(story, settle=False)
    assert "a repair touched the rotation of another publisher" in found


def two_master_keys_at_once(world: World) -> None:
    begin(world, "a", "b")
    first = world.sweep("acme", master_key="m2")
    world.run(until=lambda: world.oracle.origin(first, "acme"), keep=hint)
    second = world.sweep("acme", master_key="m1")
    each_is_answered(world)
    ends = _ends(world, first, second)
    outcomes = [(end.type, getattr(end, "code", "")) for end in ends]
    assert outcomes == [("sweep.failed", "generation_mismatch"), ("sweep.completed", "")]


def test_a_sweep_whose_master_key_another_one_replaced_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(two_master_keys_at_once) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.sweep.reconciler.end_overtaken", lambda record, *_: record
    )
    with pytest.raises(AssertionError):
        violations(two_master_keys_at_once, settle=False)


def a_copy_of_a_request_that_was_overtaken(world: World) -> None:
    """Its worker stalls between its look at the record and the keyring."""
    begin(world, "a")
    first = world.sweep("acme", master_key="m2")
    look = stop_at(world, "read", RECORD)
    world.step(look, respond=False)
    world.disconnect(look.sender, noticed=False)
    assert without(world, look, until=lambda: world.ended(first))
    second = world.sweep("acme", master_key="m1")
    assert without(world, look, until=lambda: world.ended(second))
    world.step(look)
    world.run()
    if world.oracle.projects["acme"].states[-1].master_key != "m1":
        world.oracle.violated("a late copy of a request has put the project under its key")


class _LooksAtTheRecordFirst(SweepStarter):
    async def _prepare(self, project: str, origin: Origin, *, limited: bool) -> None:
        record = await self._find_record(project)
        if record is None or find_repeated(record, origin) is None:
            await super()._prepare(project, replace(origin, id="0" * 8), limited=limited)


def test_a_late_copy_of_a_request_changes_no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_copy_of_a_request_that_was_overtaken
    broken = Parts(starter=_LooksAtTheRecordFirst)
    assert violations(story) == []
    # That a later request has named a master key is a guard of its own.
    assert violations(story, broken) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.starter.check_order", lambda *_: None)
    assert violations(story) == []
    found = violations(story, broken, settle=False)
    assert "a late copy of a request has put the project under its key" in found, found


def a_copy_of_a_request_whose_end_was_dropped(world: World) -> None:
    """A publisher has only so many ends in a record; its first signed request is sent again."""
    begin(world, "a")
    sweep = world.sweep("acme", master_key="m2")
    world.run()
    world.sweep("acme", master_key="m1")
    world.run()
    world.sweep("acme")
    world.run()
    assert world.oracle.origin(sweep, "acme") is None
    world.replay(sweep)
    world.run()
    if world.oracle.projects["acme"].states[-1].master_key != "m1":
        world.oracle.violated("a late copy of a request has put the project under its key")


def test_a_copy_that_the_record_does_not_know_changes_no_keyring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_copy_of_a_request_whose_end_was_dropped
    monkeypatch.setattr("keyturn_workers.core.sweep_transitions._MAX_ENDS", 1)
    assert violations(story, settle=False) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.starter.check_order", lambda *_: None)
    found = violations(story, settle=False)
    assert "a late copy of a request has put the project under its key" in found, found


# Records that a bucket writer removes or sets back.


@pytest.mark.parametrize("with_results", [False, True])
@pytest.mark.parametrize("place", range(0, 12, 2))
def test_a_record_that_is_set_back_proves_nothing(place: int, *, with_results: bool) -> None:
    """To any of its states, with the results that it had then, and those of later rounds."""

    def story(world: World) -> None:
        begin(world, "a", "b")
        world.rotate("acme")
        world.run()
        world.sweep("acme", master_key="m2")
        world.run(until=lambda: _proven(world), keep=lambda queued: is_page(queued, 1))
        for _ in range(2):
            world.bucket_writer.set_back("acme", place, with_results=with_results)
            for step in range(8):
                world.broker_writer.step("acme", step)
            world.run(seconds=60)
        last = world.sweep("acme", master_key="m2")
        world.run()
        assert _ends(world, last)[-1].clean

    assert violations(story, options=ONE_KEY_A_PAGE) == []


def a_record_set_back_to_a_state_that_returned(world: World) -> None:
    """It has proven a page under m1. Objects followed m2 since, and the keyring is at m1 again."""
    begin(world, "a", "b")
    world.sweep("acme")
    assert world.run(until=lambda: _proven(world), keep=lambda queued: is_page(queued, 1))
    before: Stored = world.server.current_objects()[RECORD]
    step = world.oracle.record("acme")
    assert step is not None
    world.run()
    world.sweep("acme", master_key="m2")
    world.run()
    last = world.sweep("acme", master_key="m1")
    assert world.run(until=lambda: world.oracle.origin(last, "acme"), keep=hint)
    world.server.plant(RECORD, before.body, before.headers)
    world.drop_messages(lambda _: True)
    world.broker_writer.step("acme", step["step"])
    world.run(seconds=3600)


def _equals_but_for_its_serial(one: State, other: Any) -> bool:
    return {**asdict(one), "serial": 0} == {**asdict(other), "serial": 0}


def test_a_state_that_was_left_and_returned_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_record_set_back_to_a_state_that_returned
    assert violations(story, options=ONE_KEY_A_PAGE, settle=False) == []
    monkeypatch.setattr(State, "__eq__", _equals_but_for_its_serial)
    found = violations(story, options=ONE_KEY_A_PAGE, settle=False)
    # The round that is taken up again has ended before, and left evidence.
    assert "evidence of acme in the chain was replaced" in found, found


def _look(world: World) -> None:
    """A periodic look of a worker, 16 minutes after the last one."""
    world.advance(16 * 60)
    world.scan_sweeps(world.processes[0])
    world.run()


def _look_thrice(world: World) -> None:
    """The looks that a lost rotation needs, and what follows from them."""
    for _ in range(3):
        _look(world)
    each_is_answered(world)


def two_rotations_whose_record_is_removed(world: World) -> None:
    begin(world, "a", "b")
    first = world.rotate("acme", publisher="api")
    second = world.rotate("acme", publisher="second")
    accepted = lambda: len(world.events_of_type("rotation.accepted")) == 2  # noqa: E731
    world.run(until=accepted, keep=hint)
    world.bucket_writer.remove(RECORD)
    world.run()
    _look(world)
    assert world.oracle.record("acme") is None
    _look(world)
    each_is_answered(world)
    assert [event.type for event in world.events if "failed" in event.type] == []
    for rotation, publisher in ((first, "api"), (second, "second")):
        (end,) = _ends(world, rotation)
        sent = next(each for each in world.sent_requests.values() if each.id == rotation)
        assert (end.publisher, end.request, end.clean) == (publisher, sent.digest, True)


class _LeavesThemAlone(PeriodicScan):
    async def _add_missing(self, look: Any) -> int:
        del look
        return 0


def test_rotations_whose_record_is_removed_are_added_again_from_the_keyring() -> None:
    assert violations(two_rotations_whose_record_is_removed) == []
    with pytest.raises((AssertionError, ValueError)):
        violations(
            two_rotations_whose_record_is_removed, Parts(periodic=_LeavesThemAlone), settle=False
        )


def a_rotation_whose_record_is_not_written_yet(world: World) -> None:
    """Its worker stalls between the keyring and the record; looks of others find it missing."""
    begin(world, "a")
    rotation = world.rotate("acme")
    put = stop_at(world, "put", RECORD)
    for _ in range(3):
        world.advance(16 * 60)
        process = next(each for each in world.processes if each is not put.sender)
        world.loop.create_task(process.scan_sweeps())
        world.loop.run_until_idle()
        without(world, put, seconds=60)
    world.step(put)
    each_is_answered(world)
    assert world.ended(rotation)
    assert len(world.oracle.projects["acme"].rotation_ids) == 2


def test_an_origin_that_is_written_late_changes_nothing_that_was_added_again() -> None:
    assert violations(a_rotation_whose_record_is_not_written_yet) == []


def a_rotation_whose_record_is_removed_before_its_end_is_published(world: World) -> None:
    """Its clean end is proven, and the keyring holds no earlier key any more."""
    begin(world, "a")
    rotation = world.rotate("acme", publisher="second")
    world.run(until=lambda: world.events_of_type("rotation.accepted"))
    settling = stop_at(world, "put", keyring_s3_key("acme"))
    world.step(settling)
    world.bucket_writer.remove(RECORD)
    world.run()
    if world.ended(rotation):
        world.oracle.violated("its end was published before its record was removed")
    _look_thrice(world)


def test_a_rotation_is_added_again_though_its_earlier_keys_are_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_rotation_whose_record_is_removed_before_its_end_is_published
    assert violations(story) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.sweep.periodic._rotations_of",
        lambda keyring: [] if not keyring.has_old_keks else _rotations_of(keyring),
    )
    found = violations(story, settle=False)
    assert any("second waits forever for rotation.requested" in what for what in found)


# Messages that are lost, and steps that give up.


def a_rotation_whose_messages_are_gone(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run(until=lambda: world.events_of_type("rotation.accepted"), keep=hint)
    world.run(keep=hint)
    world.drop_messages(hint)


class _ResumesNothing(PeriodicScan):
    async def _scan_records(self, look: Any) -> int:
        del look
        return 0


def test_a_record_with_an_open_origin_is_resumed() -> None:
    assert violations(a_rotation_whose_messages_are_gone) == []
    found = violations(a_rotation_whose_messages_are_gone, Parts(periodic=_ResumesNothing))
    assert "the waiter of api's rotation.requested waits forever" in found


def test_if_a_step_gives_up_every_open_request_has_failed_and_may_be_repeated() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        first = world.rotate("acme", publisher="api")
        world.run(until=lambda: world.oracle.origin(first, "acme"), keep=hint)
        second = world.rotate("acme", publisher="second")
        world.run(until=lambda: world.oracle.origin(second, "acme"), keep=hint)
        keyring = world.server.current_objects()[keyring_s3_key("acme")]
        world.server.plant(keyring_s3_key("acme"), b"{}", Headers({}))
        world.run()
        failed: list[Any] = world.events_of_type("rotation.failed")
        assert {(event.rotation_id, event.publisher, event.code) for event in failed} == {
            (first, "api", "corrupt_object"),
            (second, "second", "corrupt_object"),
        }
        world.server.plant(keyring_s3_key("acme"), keyring.body, keyring.headers)
        world.replay(first)
        world.run()
        assert [event.type for event in world.ended(first)][-1] == "rotation.completed"
        assert [event.type for event in world.ended(second)] == ["rotation.failed"]

    assert violations(story, settle=False) == []


def a_sweep_repeated_after_its_step_gave_up(world: World) -> None:
    """It had proven pages; an object behind them was put back before the request came again."""
    begin(world, "a", "b")
    world.rotate("acme")
    world.run()
    sweep = world.sweep("acme")
    assert world.run(until=lambda: _proven(world), keep=lambda queued: is_page(queued, 1))
    world.run(keep=hint)
    world.drop_messages(lambda _: True)
    record = world.oracle.record("acme")
    assert record is not None
    failing = SweepStep(project="acme", step=record["step"])
    error = CorruptObjectError("a step of its own failed")
    world.loop.create_task(world.processes[0].sweep_handler.record_failure(failing, error))
    world.loop.run_until_idle()
    assert world.run(until=lambda: world.events_of_type("sweep.failed"))
    world.bucket_writer.show("acme/a", 0)
    world.replay(sweep)
    world.run()
    assert [event.type for event in world.ended(sweep)][-1] == "sweep.completed"
    label = world.server.current_objects()["acme/a"].headers.metadata["enc-kek-user"]
    if not label.startswith("2:"):
        world.oracle.violated("a repeated request was answered by a proof older than itself")


def _keep_round(record: ProjectRecord, *args: Any) -> ProjectRecord:
    return replace(end_failed(record, *args), round=record.round)


def test_a_repeated_request_is_proven_again(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_sweep_repeated_after_its_step_gave_up
    assert violations(story, options=ONE_KEY_A_PAGE, settle=False) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.steps.end_failed", _keep_round)
    found = violations(story, options=ONE_KEY_A_PAGE, settle=False)
    assert "a repeated request was answered by a proof older than itself" in found


# Ends.


def test_a_repeated_id_is_answered_after_three_more_rotations() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        first = world.rotate("acme")
        world.run()
        for _ in range(3):
            world.rotate("acme")
            world.run()
        world.replay(first)
        world.run()
        ends = _ends(world, first)
        assert [end.type for end in ends] == ["rotation.completed"] * 2
        assert len({(end.evidence, end.rewrapped, end.clean) for end in ends}) == 1

    assert violations(story) == []


def test_a_clean_end_that_changes_the_keyring_is_no_change_of_state() -> None:
    """The next request need not wait for two leases once more."""

    def story(world: World) -> None:
        begin(world, "a")
        world.rotate("acme")
        world.run()
        world.advance(2 * LEASE_S)
        sweep = world.sweep("acme")
        assert world.run(until=lambda: world.ended(sweep), seconds=LEASE_S)

    assert violations(story) == []


def test_an_object_that_fails_for_ever_keeps_no_request_waiting() -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        world.server.hide("acme/a")
        requests = [
            world.rotate("acme", publisher="api"),
            world.sweep("acme", publisher="second"),
            world.sweep("acme", encrypt_plaintext=True),
        ]
        world.run()
        ends = _ends(world, *requests)
        assert [(end.clean, end.failed) for end in ends] == [(False, 1)] * 3
        world.server.mend()
        last = world.sweep("acme")
        world.run()
        assert _ends(world, last)[0].clean

    assert violations(story) == []


# Tags that a dead worker had noted.


@pytest.mark.parametrize("lost", [False, True], ids=["its message comes again", "it is lost"])
def test_tags_noted_in_a_round_that_began_again_are_put_back(*, lost: bool) -> None:
    def story(world: World) -> None:
        begin(world, "a")
        tags = {"kept": "yes"}
        world.server._bucket.change_tags("acme/a", tags)
        world.rotate("acme")
        copy = stop_at(world, "copy_onto_itself", "acme/a", state=MID)
        before = world.oracle.round("acme")["id"]
        world.rotate("acme")
        begun = lambda: world.oracle.round("acme").get("id", before) != before  # noqa: E731
        world.run(until=begun, hold=lambda call: call is copy)
        world.step(copy, respond=False)
        world.crash(copy.sender)
        if lost:
            world.drop_messages(is_page)
        each_is_answered(world)
        assert world.server._bucket.get("acme/a").tags == tags

    assert violations(story) == []


# Sweeps of all projects.


def test_the_second_of_two_sweeps_of_all_has_an_end_of_its_own() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        first = world.sweep("*")
        world.run(until=lambda: world.oracle.origin(first, "acme"), keep=hint)
        second = world.sweep("*", master_key="m2")
        world.run()
        ends = _ends(world, first, second)
        assert [(end.clean, end.objects) for end in ends] == [(True, 1)] * 2
        assert world.oracle.projects["acme"].states[-1].master_key == "m2"

    assert violations(story) == []


def a_sweep_of_all_whose_worker_dies_behind_its_parts(world: World) -> None:
    """It had added one, which other workers ended; what it did next was not stored."""
    begin(world, "a")
    sweep = world.sweep("*", master_key="m2")
    assert world.run(until=lambda: world.oracle.origin(sweep, "acme"))
    stored = stop_at(world, "put", ALL_RECORD)
    ended = lambda: [each for each in world.events_of_type("sweep.progressed") if each.clean]  # noqa: E731
    assert world.run(until=ended, hold=lambda call: call is stored)
    world.crash(stored.sender, arriving=lambda call: call is not stored)
    each_is_answered(world)
    assert [(end.clean, end.rewrapped) for end in _ends(world, sweep)] == [(True, 1)]


class _WalksAtOnce(AllProjectsSweep):
    """One whose first step adds parts of a walk that is not stored."""

    async def _step(self, stored: StoredRecord[AllRecord]) -> bool:
        record = stored.record
        if record.round is None:
            record = begin_walk(record, str(uuid4()))
        return await super()._step(replace(stored, record=record))


def test_a_walk_that_is_continued_has_the_parts_that_were_added() -> None:
    assert violations(a_sweep_of_all_whose_worker_dies_behind_its_parts) == []
    with pytest.raises(AssertionError, match=r"\(True, 0\)"):
        violations(
            a_sweep_of_all_whose_worker_dies_behind_its_parts, Parts(all_projects=_WalksAtOnce)
        )


def a_sweep_of_all_that_loses_a_record(world: World, of: str) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    sweep = world.sweep("*")
    assert world.run(until=lambda: world.oracle.round("*"))
    ended = f".keyturn/sweeps/*/{world.oracle.round('*')['id']}/acme.json"
    if of == "part":
        assert world.run(until=lambda: any(is_page(queued) for queued in world.queue))
        world.bucket_writer.remove(RECORD)
    else:
        assert world.run(until=lambda: ended in world.server.current_objects())
        world.bucket_writer.remove(ended)
    each_is_answered(world)
    assert [(end.clean, end.objects) for end in _ends(world, sweep)] == [(True, 1)]


async def _all_open(_: AllProjectsSweep, walk: Walk) -> Walk:
    """`_without_lost` of a walk that waits for its parts whatever becomes of them."""
    return walk


@pytest.mark.parametrize("of", ["part", "end"])
def test_a_sweep_of_all_continues_if_the_record_of_a_part_is_removed(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story(world: World) -> None:
        a_sweep_of_all_that_loses_a_record(world, of)

    assert violations(story) == []
    monkeypatch.setattr(AllProjectsSweep, "_without_lost", _all_open)
    with pytest.raises(AssertionError, match="it never ends"):
        violations(story, settle=False)
