"""Deletes with a guard taken out: each is caught, and the real ones hold (SPEC 8.7)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.keyring import forbid_plaintext, next_serial
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.amqp.requests import RequestSettlement
from keyturn_workers.pipeline.control.deletion import Deleter
from keyturn_workers.storage.clock import DateTrust
from tests.protocol.process import LEASE_S, MASTER_KEYS, Options, Parts
from tests.protocol.stories import (
    begin,
    copy_by,
    hint,
    stop_at,
    stop_within,
    violations,
    without,
)
from tests.protocol.wire import MID, SENT, Wire
from tools.harness.local_keys import build_keyring, parse_keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.protocol.broker import QueuedMessage
    from tests.protocol.wire import Call
    from tests.protocol.world import World

LONGER_LEASE: Final = Options(leases={0: 10 * LEASE_S})


def a_delete_while_a_copy_is_under_way(world: World) -> None:
    """The server has read what it copies, and writes it over the tombstone."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_within(world, "copy_onto_itself")
    world.delete("acme", "a")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()


class _PublishesAtOnce(Deleter):
    def _check_age(self, tombstone: Any, snapshot: Any) -> None:
        del tombstone, snapshot


def test_a_delete_is_published_after_two_leases() -> None:
    assert violations(a_delete_while_a_copy_is_under_way) == []
    found = violations(a_delete_while_a_copy_is_under_way, Parts(deleter=_PublishesAtOnce))
    assert "acme/a came back after its delete was published" in found


# Several keys in one request.


def _is_delete(queued: QueuedMessage) -> bool:
    return bool(json.loads(queued.body)["type"] == "delete.requested")


def a_delete_of_two_whose_second_tombstone_comes_late(world: World) -> None:
    """The worker dies between them. When the second is put, a copy of its object is under way."""
    begin(world, "a", "b")
    delete = world.delete("acme", "a", "b")
    put = stop_at(world, "put", "acme/b")
    without(world, put, seconds=1)
    world.crash(put.sender, arriving=lambda _: False)
    world.advance(2 * LEASE_S + 2)
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself", "acme/b", state=MID, keep=_is_delete)
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()
    assert [event.type for event in world.ended(delete)] == ["object.deleted"] * 2


class _ChecksOneTombstone(Deleter):
    """Takes the age of the first tombstone for that of all."""

    def _check_age(self, tombstone: Any, snapshot: Any) -> None:
        if not getattr(self, "_is_old", False):
            super()._check_age(tombstone, snapshot)
        self._is_old = True


def test_each_key_of_a_delete_waits_two_leases_for_its_own_tombstone() -> None:
    story = a_delete_of_two_whose_second_tombstone_comes_late
    assert violations(story) == []
    found = violations(story, Parts(deleter=_ChecksOneTombstone))
    assert "acme/b came back after its delete was published" in found


def a_delete_of_two_one_of_which_cannot_be_read(world: World) -> None:
    """The storage responds as a proxy does, each time; later it does not any more."""
    begin(world, "a", "b")
    fault = world.server.hide("acme/b", code="")
    delete = world.delete("acme", "a", "b")
    world.run()
    world.server.mend(fault)
    ends: list[Any] = world.ended(delete)
    assert {event.key for event in ends} == {"a", "b"}
    # Its outcome is final, and its message no dead letter.
    assert not world.dead


class _ReportsAll(Deleter):
    """Reports all keys as deleted once one of them is."""

    async def delete_many(self, request: Any, attempts: int) -> Any:
        outcomes = await super().delete_many(request, attempts)
        return dict.fromkeys(outcomes) if None in outcomes.values() else outcomes


def test_one_deleted_key_says_nothing_of_the_others() -> None:
    story = a_delete_of_two_one_of_which_cannot_be_read
    assert violations(story) == []
    found = violations(story, Parts(deleter=_ReportsAll))
    assert "acme/b was reported as deleted, and has no tombstone" in found


def a_delete_of_two_is_delivered_again(world: World) -> None:
    """Its worker dies after it has published one outcome, and before the other."""
    begin(world, "a", "b")
    world.delete("acme", "a", "b")
    publish = stop_at(world, "publish object.deleted")
    world.step(publish)
    world.crash(publish.sender, arriving=lambda _: False)
    world.run()


class _AcknowledgesTheFirst(RequestSettlement):
    """Publishes the first of several events, and leaves the others to chance."""

    async def _complete(self, job: Any, result: Any) -> Any:
        return await super()._complete(job, replace(result, more=result.more[:1]))


def test_a_delete_is_acknowledged_after_each_key_was_answered() -> None:
    story = a_delete_of_two_is_delivered_again
    assert violations(story) == []
    found = violations(story, Parts(settlement=_AcknowledgesTheFirst))
    assert any("waits forever" in each for each in found)


def a_delete_by_a_wrong_front_end(world: World, clock_s: float, op: str, times: int) -> None:
    """The server has read what it copies. A wrong front end dates the tombstone, or reads of it."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_within(world, "copy_onto_itself")
    wrong = lambda call: (call.op, call.key) == (op, "acme/a")  # noqa: E731
    world.server.front_end(clock_s, wrong, times=times)
    delete = world.delete("acme", "a")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()
    assert world.ended(delete)


def a_tombstone_seen_a_day_ahead(world: World) -> None:
    """Reads before the tombstone was put, and after it."""
    a_delete_by_a_wrong_front_end(world, 86_400, "read_start", times=2)


def a_tombstone_dated_early(world: World) -> None:
    a_delete_by_a_wrong_front_end(world, -(2 * LEASE_S + 2), "put", times=1)


class _BelievesAnyDate(Deleter):
    """Takes the date of any response for the storage's."""

    def _check_age(self, tombstone: Any, snapshot: Any) -> None:
        trusted = DateTrust(agrees=True, proves=True)
        super()._check_age(replace(tombstone, trust=trusted), snapshot)


def test_a_wrong_date_makes_no_tombstone_final() -> None:
    assert violations(a_tombstone_seen_a_day_ahead) == []
    found = violations(a_tombstone_seen_a_day_ahead, Parts(deleter=_BelievesAnyDate))
    assert "acme/a came back after its delete was published" in found


def test_a_tombstone_that_was_dated_early_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_tombstone_dated_early) == []
    monkeypatch.setattr("keyturn_workers.pipeline.control.deletion._MAX_PUTS", 1)
    found = violations(a_tombstone_dated_early)
    assert "acme/a came back after its delete was published" in found


def a_delete_by_a_worker_that_starts_hours_ahead(world: World) -> None:
    """The front end that dates its tombstone is the first that it reaches, so that it agrees."""
    begin(world, "a")
    world.delete("acme", "a")
    world.restart(world.processes[0], clock_s=10_000)
    world.run(seconds=60)


class _WaitsForAnyDate(Deleter):
    """Waits until the tombstone is old enough, whenever that is."""

    def _is_dated_ahead(self, tombstone: Any) -> bool:
        del tombstone
        return False


def test_no_delete_waits_for_a_date_that_lies_ahead() -> None:
    assert violations(a_delete_by_a_worker_that_starts_hours_ahead) == []
    found = violations(
        a_delete_by_a_worker_that_starts_hours_ahead, Parts(deleter=_WaitsForAnyDate)
    )
    assert "the waiter of api's delete.requested waits forever" in found


def a_delete_while_a_worker_with_a_longer_lease_copies(world: World) -> None:
    """The copy ends within its own lease, when two of the deleting worker's are long over."""
    slow = world.processes[0]
    copy = copy_by(world, slow)
    world.step(copy)
    assert copy.state == MID
    slow.stalled = True
    delete = world.delete("acme", "a")
    without(world, copy, seconds=slow.lease_s - 1)
    slow.stalled = False
    world.step(copy)
    world.run()
    assert world.ended(delete)


class _WaitsByItsOwnLease(Deleter):
    """Disregards the lease that the keyring names."""

    def _check_age(self, tombstone: Any, snapshot: Any) -> None:
        unnamed = replace(snapshot.keyring, lease_s=0)
        super()._check_age(tombstone, replace(snapshot, keyring=unnamed))


def test_a_delete_waits_for_the_longest_lease_that_the_keyring_names() -> None:
    story, options = a_delete_while_a_worker_with_a_longer_lease_copies, LONGER_LEASE
    assert violations(story, options=options) == []
    found = violations(story, Parts(deleter=_WaitsByItsOwnLease), options)
    assert "acme/a came back after its delete was published" in found


def a_delete_before_a_copy_arrives(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    world.delete("acme", "a")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()


class _Unconditional(Wire):
    """Copies whatever object is there by now."""

    async def copy_onto_itself(
        self, key: str, headers: Any, *, source_etag: str, lease: Any
    ) -> Any:
        del source_etag
        copy = self._server.copy_conditionally
        return await self._ask(
            "copy_onto_itself",
            key,
            lambda: copy(key, headers, source_etag=None, destination=None, lease=lease),
        )


def test_a_copy_names_the_body_that_it_was_made_for() -> None:
    assert violations(a_delete_before_a_copy_arrives) == []
    found = violations(a_delete_before_a_copy_arrives, Parts(wire=_Unconditional))
    assert "the body of acme/a does not commit to its DEK" in found


def a_delete_while_parts_are_copied(world: World) -> None:
    """Parts have no lease: they were copied long before their completion."""
    begin(world, "a")
    world.rotate("acme")
    part = stop_at(world, "copy_part")
    world.step(part, respond=False)
    delete = world.delete("acme", "a")
    without(world, part, seconds=60)
    assert world.ended(delete)
    world.run()


async def _nothing(*_args: Any) -> None:
    """Instead of checking the object."""


def test_copied_parts_do_not_bring_back_what_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(copy_limit_bytes=10)
    assert violations(a_delete_while_parts_are_copied, options=options) == []
    monkeypatch.setattr("keyturn_workers.pipeline.objects.apply.check_unchanged", _nothing)
    found = violations(a_delete_while_parts_are_copied, options=options)
    assert "acme/a came back after its delete was published" in found


def _stop_at_the_put(world: World) -> Call:
    """At the last moment at which a put of the object can be held up."""

    def is_it(call: Call) -> bool:
        return call.key == "acme/a" and (call.op, call.state) in (
            ("put", SENT),
            ("put_stream", MID),
        )

    assert world.run(until=lambda: any(map(is_it, world.calls)), hold=is_it)
    return next(filter(is_it, world.calls))


def no_bytes_that_a_sweep_encrypts(world: World) -> None:
    """An empty body and a tombstone have one ETag: no condition distinguishes them."""
    begin(world, plaintext="allowed")
    world.upload("acme", "a", b"")
    world.run()
    world.sweep("acme", encrypt_plaintext=True)
    put = _stop_at_the_put(world)
    delete = world.delete("acme", "a")
    without(world, put, keep=lambda queued: bool(hint(queued)))
    assert world.ended(delete)
    world.run()


def no_bytes_that_an_upload_seals_in_their_place(world: World) -> None:
    """Plaintext is forbidden while it is put, so that it is put once more, sealed."""
    begin(world, plaintext="allowed")
    world.upload("acme", "a", b"", staged=True)
    put = _stop_at_the_put(world)
    if put.state == SENT:
        world.step(put, respond=False)
    held = [put]
    turned = _forbid_plaintext(world)
    world.server.plant(turned[0], turned[1], Headers({}))
    world.step(put)
    held.append(_stop_at_the_put(world))
    delete = world.delete("acme", "a")
    without(world, *held)
    assert world.ended(delete)
    world.run()


def _forbid_plaintext(world: World) -> tuple[str, bytes]:
    """The keyring as a sweep leaves it once all plaintext is encrypted."""
    s3_key = keyring_s3_key("acme")
    ring = parse_keyring(world.server.current_objects()[s3_key].body, "acme", MASTER_KEYS)
    return s3_key, build_keyring(next_serial(forbid_plaintext(ring)), MASTER_KEYS)


class _Streams(Wire):
    """Puts objects as streams, which may end long after their lease."""

    async def put(self, key: str, body: bytes, headers: Any, **more: Any) -> Any:
        if not key.startswith("acme/") or headers.metadata.get("enc-algo") == "deleted":
            put = self._server.put
            return await self._ask("put", key, lambda: put(key, body, headers, **more))

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        return await self.put_stream(key, pieces(), len(body), headers, **more)


@pytest.mark.parametrize(
    "story", [no_bytes_that_a_sweep_encrypts, no_bytes_that_an_upload_seals_in_their_place]
)
def test_no_bytes_are_put_as_a_stream_over_what_may_be_a_tombstone(
    story: Callable[[World], None],
) -> None:
    options = Options(unencrypted=frozenset({0, 1, 2}))
    assert violations(story, options=options) == []
    found = violations(story, Parts(wire=_Streams), options)
    assert "acme/a came back after its delete was published" in found
