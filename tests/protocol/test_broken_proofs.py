"""Proofs with a guard taken out: each is caught, and the real ones hold (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.errors import NotFoundError
from keyturn.identifiers import object_s3_key
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.pipeline.sweep import all_projects
from keyturn_workers.pipeline.sweep.page import PageAttempt
from keyturn_workers.storage.clock import DateTrust, StorageClock
from tests.protocol.process import LEASE_S, Options, Parts
from tests.protocol.stories import (
    OWN_LEASE,
    BelievesA404,
    begin,
    copy_by,
    hint,
    is_page,
    rewrap_without_result,
    stop_at,
    violations,
)
from tests.protocol.world import World

if TYPE_CHECKING:
    from datetime import datetime

    from keyturn_workers.core.sweep_record import Result
    from tests.protocol.faults import Missing
    from tests.protocol.wire import Call


def an_object_that_answers_404(world: World, code: Missing = "NoSuchKey") -> None:
    """It is listed, and no read finds it during the sweep: an old key opens it."""
    begin(world, "a", "b")
    world.server.hide("acme/a", code=code)
    rotation = world.rotate("acme")
    world.run()
    assert world.ended(rotation)
    world.server.mend()


def behind_a_proxy(world: World) -> None:
    an_object_that_answers_404(world, code="")


async def _gone(self: Any, key: str, inspect: Any = PageAttempt._inspect) -> Any:
    """`PageAttempt._inspect` that takes an object which is not found for removed."""
    try:
        return await inspect(self, key)
    except NotFoundError:
        return None


def _left_behind(found: list[str]) -> bool:
    return any("acme/a is wrapped under (1," in what and "at the end of" in what for what in found)


def test_an_object_that_answers_404_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_object_that_answers_404) == []
    monkeypatch.setattr(PageAttempt, "_inspect", _gone)
    assert _left_behind(violations(an_object_that_answers_404))


def test_the_404_of_a_proxy_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(behind_a_proxy) == []
    monkeypatch.setattr(PageAttempt, "_inspect", _gone)
    # A 404 without the storage's own code is no absence, even if absence were believed.
    assert violations(behind_a_proxy) == []
    monkeypatch.setattr(
        "tests.protocol.wire.error_for", lambda operation, *_: MissingError(operation)
    )
    assert _left_behind(violations(behind_a_proxy))


def an_object_that_is_removed_between_listing_and_read(world: World) -> None:
    """Past Keyturn: no sweep of it may stay unclean for that."""
    begin(world, "a", "b")
    rotation = world.rotate("acme")
    looked_at = lambda: any(  # noqa: E731
        call.op == "read_start" and call.key == "acme/a" for call in world.calls
    )
    assert world.run(until=looked_at)
    world.server._bucket.purge("acme/a")
    world.run()
    (end,) = (event for event in world.ended(rotation))
    if (end.clean, end.objects, end.failed) != (True, 1, 0):  # type: ignore[union-attr]
        world.oracle.violated(f"an object that was removed is no failure: {end}")


def test_an_object_that_a_later_listing_no_longer_shows_is_gone() -> None:
    assert violations(an_object_that_is_removed_between_listing_and_read) == []


def a_keyring_that_answers_404(world: World) -> None:
    """The sweep of all lists it and cannot read it: its project stays under the old master key."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    world.server.hide(".keyturn/keyrings/acme")
    sweep = world.sweep("*", master_key="m2")
    world.run()
    (end,) = (event for event in world.ended(sweep))
    world.server.mend()
    left = world.oracle.projects["acme"].states[-1].master_key == "m1"
    if left and getattr(end, "clean", False):
        world.oracle.violated("a sweep of all is clean, and a project is under the old master key")


async def _passed_over(*_: object) -> None:
    """Takes a keyring which is not found for removed, in the walk or at the end."""


async def _never(*_: object) -> bool:
    return False


def test_a_keyring_that_answers_404_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(keyrings=BelievesA404)
    assert violations(a_keyring_that_answers_404) == []
    # Of a keyring that has a mark, each read is a guard, and the end; of one without, these are.
    assert violations(a_keyring_that_answers_404, parts) == []
    monkeypatch.setattr(all_projects.AllProjectsSweep, "_keyring_not_found", _passed_over)
    # The last listing before the end is a separate guard.
    assert violations(a_keyring_that_answers_404, parts) == []
    monkeypatch.setattr(all_projects.AllProjectsSweep, "_find_missed", _passed_over)
    assert violations(a_keyring_that_answers_404, parts) == []
    monkeypatch.setattr(all_projects.AllProjectsSweep, "_is_listed", _never)
    found = violations(a_keyring_that_answers_404, parts)
    assert "a sweep of all is clean, and a project is under the old master key" in found


def an_object_of_ours_under_a_foreign_name(world: World) -> None:
    """A v1 object that another program moved to `a//b`, wraps and all: no sweep can rewrap it."""
    begin(world, "a")
    stored = world.server.current_objects()["acme/a"]
    own = {n: v for n, v in stored.headers.metadata.items() if n.startswith("enc-")}
    world.server.plant(object_s3_key("acme", "a//b"), stored.body, Headers(own))
    world.oracle.foreign.add("acme/a//b")
    rotation = world.rotate("acme")
    world.run()
    (end,) = (event for event in world.ended(rotation))
    if end.clean:  # type: ignore[union-attr]
        world.oracle.violated("clean despite wraps that an old key opens")


async def _ignore_foreign(*_: object) -> None:
    """`PageAttempt._foreign_error` of a sweep that leaves foreign names alone."""


def test_a_foreign_name_with_wraps_is_no_clean_end(monkeypatch: pytest.MonkeyPatch) -> None:
    story = an_object_of_ours_under_a_foreign_name
    assert violations(story, settle=False) == []
    monkeypatch.setattr(PageAttempt, "_foreign_error", _ignore_foreign)
    found = violations(story, settle=False)
    assert found == ["clean despite wraps that an old key opens"]


# The storage's clock (SPEC 8.4).


def an_attempt_dated_ahead(world: World, clock_s: float, wait_s: float) -> None:
    """A sweep reads right after a rotation, by a front end whose clock runs ahead.

    A copy that rests on the state before arrives after the look, within its lease. The step
    that judges the look is made `wait_s` later.
    """
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    rotation = world.rotate("acme")
    held = lambda call: call is copy  # noqa: E731
    steps = lambda each: hint(each).get("type") == "sweep.step"  # noqa: E731
    rewrap_without_result(world, copy)

    def looks(call: Call) -> bool:
        of_page = call.delivery is not None and is_page(call.delivery.queued)
        return of_page and call.op == "read" and call.key.startswith(".keyturn/keyrings/")

    ahead = world.server.front_end(clock_s, looks)
    looked = lambda: any("/results/" in key for key in world.server.current_objects())  # noqa: E731
    world.run(until=looked, hold=held, keep=steps, seconds=2)
    world.run(hold=held, keep=steps, seconds=0.1)
    world.server.mend(ahead)
    world.crash(copy.sender)  # else it would see at once what it set back
    while copy in world.calls:
        world.step(copy)
    world.advance(wait_s)
    assert world.run(until=lambda: world.ended(rotation))
    world.run()


def an_attempt_a_day_ahead(world: World) -> None:
    an_attempt_dated_ahead(world, 86_400, 0.1)


def an_attempt_two_leases_ahead(world: World) -> None:
    an_attempt_dated_ahead(world, 2 * LEASE_S + 2, 2 * LEASE_S + 4)


def _proven_early(found: list[str]) -> bool:
    return any("acme/a is wrapped under (2," in what and "at the end of" in what for what in found)


def _trusted(*_: object) -> DateTrust:
    return DateTrust(agrees=True, proves=True)


def test_a_wrong_date_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_attempt_two_leases_ahead) == []
    monkeypatch.setattr("keyturn_workers.storage.clock.StorageClock.observe", _trusted)
    assert _proven_early(violations(an_attempt_two_leases_ahead))


def test_an_observation_dated_after_the_step_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(an_attempt_a_day_ahead) == []
    monkeypatch.setattr("keyturn_workers.storage.clock.StorageClock.observe", _trusted)
    # Where no date is doubted, the step's own read is still a separate guard.
    assert violations(an_attempt_a_day_ahead) == []
    monkeypatch.setattr("keyturn_workers.core.sweep_proof._is_late_enough", _however_late)
    assert _proven_early(violations(an_attempt_a_day_ahead))


def _however_late(result: Result, proof_after: datetime, now: datetime) -> bool:
    del now
    return result.proves and result.observed_at > proof_after


def a_rotation_dated_ahead(world: World) -> None:
    """A process that knows no other date of the storage begins a sweep by one a day ahead."""
    begin(world, "a")
    for process in list(world.processes):
        world.crash(process)
    ahead = world.server.front_end(86_400)
    began = world.clock.seconds
    rotation = world.rotate("acme")
    world.run(until=lambda: world.oracle.origin(rotation, "acme"), keep=hint)
    world.server.mend(ahead)
    world.run(until=lambda: world.ended(rotation), seconds=3600)
    if not world.ended(rotation):
        world.oracle.violated("a rotation stalls for a day")
    assert world.clock.seconds - began < 3600


def test_a_rotation_dated_a_day_ahead_does_not_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_rotation_dated_ahead, settle=False) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.sweep.reconciler.reconcile_clock",
        lambda record, *_, **__: (record, False),
    )
    found = violations(a_rotation_dated_ahead, settle=False)
    assert found == ["a rotation stalls for a day"]


# One lease (SPEC 8.4).

TWO_LEASES = Options(leases={0: 10 * LEASE_S})


def a_copy_by_a_worker_with_a_longer_lease(world: World) -> None:
    """It stalls, and lands when the others' two leases are long over, within its own."""
    slow = world.processes[0]
    copy = copy_by(world, slow)
    slow.stalled = True
    third = world.rotate("acme")
    world.run(seconds=5 * LEASE_S)
    slow.stalled = False
    while copy in world.calls:
        world.step(copy)
    world.run()
    assert world.ended(third)


async def _as_it_is(*_: object) -> bool:
    """`Reconciler.extend_lease` of a worker that keeps its lease to itself."""
    return False


def test_a_longer_lease_is_known_before_the_first_write(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_copy_by_a_worker_with_a_longer_lease
    assert violations(story, options=TWO_LEASES) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.sweep.reconciler.Reconciler.extend_lease", _as_it_is
    )
    # No write has a longer lease than the keyring names, which is a guard of its own.
    assert violations(story, options=TWO_LEASES) == []
    monkeypatch.setattr(KeyringSnapshot, "lease", OWN_LEASE)
    found = violations(story, options=TWO_LEASES)
    assert any("acme/a is wrapped under (2," in what and "by a write" in what for what in found)


# What the proof rests on (SPEC 8.4, 15.1).


@pytest.mark.parametrize("refused", [True, False])
def test_the_end_says_whether_the_storage_refuses_late_writes(*, refused: bool) -> None:
    options = Options(capabilities=Capabilities(late_writes_refused=refused))
    with World(options=options) as world:
        begin(world, "a")
        rotation = world.rotate("acme")
        world.run()
        of_all = world.sweep("*")
        world.run()
        ends: list[Any] = [world.ended(each)[-1] for each in (rotation, of_all)]
        assert [end.late_writes_refused for end in ends] == [refused, refused]
        assert world.holds()


REFUSES_LATE: Final = Options(capabilities=Capabilities(late_writes_refused=True))
_CERTIFIED: Final = "an end says that late writes are refused, and a later one was not"


def a_copy_held_for_a_front_end_that_lags(world: World) -> None:
    """Its clock is four leases behind: it takes a copy that the others refuse, after the end."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    rotation = world.rotate("acme")
    copy.sender.stalled = True
    reads = count(1)

    def lags(call: Call) -> bool:
        of_keyring = call.op == "read" and call.key.startswith(".keyturn/keyrings/")
        return call is copy or (of_keyring and next(reads) % 3 == 0)

    world.server.front_end(-4 * LEASE_S, lags)
    assert world.run(until=lambda: world.ended(rotation), hold=lambda call: call is copy)
    world.crash(copy.sender)
    while copy in world.calls:
        world.step(copy)
    (end,) = world.ended(rotation)
    assert end.clean  # type: ignore[union-attr]
    if end.late_writes_refused:  # type: ignore[union-attr]
        world.oracle.violated(_CERTIFIED)


def test_an_end_after_dates_that_contradict_each_other_certifies_no_refusal_of_late_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_copy_held_for_a_front_end_that_lags
    (set_back,) = violations(story, options=REFUSES_LATE)
    assert set_back.startswith("acme/a is wrapped under (2,")
    monkeypatch.setattr(StorageClock, "is_contradicted", False)
    assert violations(story, options=REFUSES_LATE) == [set_back, _CERTIFIED]
