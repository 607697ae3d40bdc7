"""A fresh process behind a wrong front end: its first `Date` dates and proves nothing (SPEC 8.4).

The first `Date` that a process sees becomes its reference at once, and may be wrong. The broken
variant trusts it at once as if it had been known for two leases.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyturn_workers.pipeline.amqp.requests import ExpiryCheck
from keyturn_workers.storage.clock import DateTrust, StorageClock
from tests.protocol.process import LEASE_S, Parts
from tests.protocol.stories import (
    begin,
    hint,
    rewrap_without_result,
    stop_at,
    stop_within,
    violations,
    without,
)

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

    from tests.protocol.process import Process
    from tests.protocol.wire import Call
    from tests.protocol.world import World

# Further off than a proof waits.
_OFF_S: Final = 2 * LEASE_S + 4
_EVALUATE: Final = StorageClock._evaluate


def _proves_at_once(
    self: StorageClock, date: datetime | None, sent_s: float, received_s: float
) -> DateTrust:
    """`StorageClock._evaluate` of a process that trusts the first `Date` that it sees."""
    trust = _EVALUATE(self, date, sent_s, received_s)
    return DateTrust(agrees=trust.agrees, proves=trust.agrees)


def _copy_under_way(world: World) -> tuple[Process, Call]:
    """A copy under way that wraps `acme/a` for generation 2, and its sender."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    return copy.sender, copy


def _land(world: World, copy: Call) -> None:
    """The copy arrives; its sender is gone, else it would see at once what it set back."""
    world.crash(copy.sender)
    while copy in world.calls:
        world.step(copy)


def _only(world: World, process: Process) -> None:
    """All other processes stall."""
    for each in world.processes:
        each.stalled = each is not process


def a_rotation_dated_by_a_slow_first_date(world: World) -> None:
    """A fresh process rotates the keyring and begins its sweep; others inspect and prove."""
    sender, copy = _copy_under_way(world)
    slow, known = (each for each in world.processes if each is not sender)
    slow = world.restart(slow, clock_s=-_OFF_S)
    _only(world, slow)
    # Beside a record with later moments, the slow process would make no step.
    world.bucket_writer.remove(".keyturn/sweeps/acme.json")
    rotation = world.rotate("acme")

    step = (world.oracle.record("acme") or {"step": 0})["step"]
    first_step = {"type": "sweep.step", "project": "acme", "step": step}
    world.run(keep=lambda each: hint(each) not in ({}, first_step), seconds=1)
    record = world.oracle.record("acme")
    assert record is not None
    assert record["step"] == step + 1
    _only(world, known)
    world.run(until=lambda: world.ended(rotation), seconds=LEASE_S)
    _land(world, copy)
    for each in world.processes:
        each.stalled = False
    world.run(until=lambda: world.ended(rotation))


def a_page_seen_at_a_fast_first_date(world: World) -> None:
    """A fresh process inspects a page right after a rotation; others date it and judge."""
    sender, copy = _copy_under_way(world)
    rotation = world.rotate("acme")
    rewrap_without_result(world, copy)
    fast = next(each for each in world.processes if each is not sender)
    fast = world.restart(fast, clock_s=_OFF_S)

    def seen() -> bool:
        return any("/results/" in key for key in world.server.current_objects())

    _only(world, fast)
    steps = lambda each: hint(each).get("type") == "sweep.step"  # noqa: E731
    assert world.run(until=seen, keep=steps, hold=lambda call: call is copy, seconds=2)
    _land(world, copy)
    for each in world.processes:
        each.stalled = False
    world.server.mend()
    world.advance(_OFF_S)
    assert world.run(until=lambda: world.ended(rotation))


def _generation(world: World, s3_key: str) -> str:
    labels: str = world.server.current_objects()[s3_key].headers.metadata["enc-kek-user"]
    return labels.partition(":")[0]


def a_tombstone_seen_at_a_fast_first_date(world: World) -> None:
    """Another process put it a moment ago; the server has read the object and still copies it."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_within(world, "copy_onto_itself")
    fast, other = (each for each in world.processes if each is not copy.sender)
    _only(world, other)
    delete = world.delete("acme", "a")
    world.run(seconds=0.5)
    fast = world.restart(fast, clock_s=_OFF_S)
    _only(world, fast)
    world.replay(delete)
    without(world, copy, seconds=LEASE_S - 2)
    _land(world, copy)
    for each in world.processes:
        each.stalled = False
    world.run()
    assert world.ended(delete)


def test_a_first_date_makes_no_tombstone_final(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_tombstone_seen_at_a_fast_first_date) == []
    monkeypatch.setattr(StorageClock, "_evaluate", _proves_at_once)
    found = violations(a_tombstone_seen_at_a_fast_first_date)
    assert "acme/a came back after its delete was published" in found


def test_a_first_date_dates_no_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_rotation_dated_by_a_slow_first_date) == []
    monkeypatch.setattr(StorageClock, "_evaluate", _proves_at_once)
    found = violations(a_rotation_dated_by_a_slow_first_date)
    assert any("acme/a is wrapped under (2," in what and "by a write" in what for what in found)


def test_a_first_date_proves_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_page_seen_at_a_fast_first_date) == []
    monkeypatch.setattr(StorageClock, "_evaluate", _proves_at_once)
    found = violations(a_page_seen_at_a_fast_first_date)
    assert any("acme/a is wrapped under (2," in what and "at the end of" in what for what in found)


def _a_fresh_request_is_served(world: World, process: Process) -> None:
    """By this process first; by the others once all front ends agree."""
    _only(world, process)
    upload = world.upload("acme", "a", b"x")
    world.run(seconds=1)
    world.server.mend()
    world.processes[1].stalled = world.processes[2].stalled = False
    assert world.run(until=lambda: world.ended(upload))
    if world.events_of_type("upload.rejected"):
        world.oracle.violated("a request of this minute was refused as expired")


def a_request_served_at_a_first_date_of_next_week(world: World) -> None:
    """A fresh process takes the request for older than any may be."""
    begin(world)
    ahead = world.restart(world.processes[0], clock_s=timedelta(days=8).total_seconds())
    _a_fresh_request_is_served(world, ahead)


def test_a_first_date_refuses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_request_served_at_a_first_date_of_next_week) == []
    monkeypatch.setattr(StorageClock, "_evaluate", _proves_at_once)
    found = violations(a_request_served_at_a_first_date_of_next_week)
    assert found == ["a request of this minute was refused as expired"]


def a_request_served_while_two_clocks_are_slow(world: World) -> None:
    """The worker's own by ten minutes, and that of the first front end that it reaches by a day."""
    begin(world)
    slow = world.restart(world.processes[0], clock_s=-timedelta(days=1).total_seconds())
    slow.clock_s = -600
    _a_fresh_request_is_served(world, slow)


class _BelievesEither(ExpiryCheck):
    """Refuses what is expired by both clocks, although they differ."""

    def _clocks_agree(self) -> bool:
        return True


def test_two_clocks_that_differ_refuse_no_request() -> None:
    assert violations(a_request_served_while_two_clocks_are_slow) == []
    found = violations(
        a_request_served_while_two_clocks_are_slow, Parts(expiry_check=_BelievesEither)
    )
    assert found == ["a request of this minute was refused as expired"]
