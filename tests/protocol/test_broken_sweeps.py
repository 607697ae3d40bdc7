"""Sweeps with a guard taken out: each is caught, and the real ones hold (SPEC 8.1 to 8.6)."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from keyturn.topology import PLAN_QUEUE
from keyturn_workers.core.sweep_record import ProjectRecord, State
from keyturn_workers.pipeline.sweep.messages import SweepStep, encode
from keyturn_workers.pipeline.sweep.page import PageAttempt
from keyturn_workers.pipeline.sweep.paginator import Paginator
from tests.protocol.broker import QueuedMessage
from tests.protocol.process import CACHE_S, LEASE_S, Options, Parts
from tests.protocol.stories import (
    accept_early_proofs,
    begin,
    hint,
    is_page,
    stop_at,
    stop_within,
    violations,
    without,
)
from tests.protocol.wire import Wire

if TYPE_CHECKING:
    import pytest

    from keyturn_workers.core.sweep_record import Round
    from tests.protocol.world import World
    from tools.harness.memory_bucket import Stored

ONE_KEY_A_PAGE = Options(page_keys=1)
RECORD: Final = ".keyturn/sweeps/acme.json"
ALL_PLAINTEXT = Options(unencrypted=frozenset({0, 1, 2}))


def a_streamed_write_that_outlasts_a_new_state(world: World) -> None:
    """A sweep to another master key encrypts; one that follows it leaves plaintext as it is."""
    begin(world, "a", plaintext="allowed")
    world.sweep("acme", encrypt_plaintext=True, master_key="m2")
    put = stop_within(world, "put_stream", "acme/a")
    round_id = world.oracle.round("acme")["id"]
    later = world.sweep("acme", master_key="m1")
    without(world, put, keep=lambda queued: hint(queued).get("round") == round_id)
    assert world.ended(later)
    world.run()


async def _write_once(self: Any, planned: Any) -> Any:
    """`PageAttempt._write` without a keyring read after it."""
    todo = await self._note_tags([each for each in planned if each.writes])
    done = await self._for_each((each.key, partial(self._apply, each)) for each in todo)
    return [each for each in planned if not each.writes] + done


def test_the_keyring_is_read_again_after_the_writes_of_a_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_streamed_write_that_outlasts_a_new_state
    assert violations(story, options=ALL_PLAINTEXT) == []
    monkeypatch.setattr(PageAttempt, "_write", _write_once)
    found = violations(story, options=ALL_PLAINTEXT)
    assert any(
        "acme/a is wrapped under (1," in what and "message was done" in what for what in found
    )


def a_copy_that_arrives_within_its_lease(world: World) -> None:
    """It rests on a keyring read just before a rotation, and stalls nearly as long as it may."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    world.rotate("acme")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()


def _set_back(found: list[str]) -> bool:
    return any("acme/a is wrapped under (2," in what and "by a write" in what for what in found)


def test_an_attempt_before_two_leases_have_passed_is_no_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_copy_that_arrives_within_its_lease) == []
    accept_early_proofs(monkeypatch)
    monkeypatch.setattr(ProjectRecord, "proof_after", property(lambda self: self.changed_at))
    assert _set_back(violations(a_copy_that_arrives_within_its_lease))


def a_copy_that_arrives_behind_a_later_sweep(world: World) -> None:
    """The same, and by then a sweep has found each object as desired."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    world.rotate("acme")
    without(world, copy, seconds=2)
    world.sweep("acme")
    without(world, copy, seconds=LEASE_S - 3)
    world.step(copy)
    world.run()


def test_pages_are_proven_by_their_results_not_by_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_copy_that_arrives_behind_a_later_sweep) == []
    # Each page with any result counts as done.
    accept_early_proofs(monkeypatch)
    monkeypatch.setattr("keyturn_workers.core.sweep_proof._next_attempt", lambda *_: None)
    assert _set_back(violations(a_copy_that_arrives_behind_a_later_sweep))


def a_copy_that_arrives_after_its_lease(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    rotation = world.rotate("acme")
    without(world, copy)
    assert world.ended(rotation)
    world.run()


class _Unleased(Wire):
    """Sends copies that the storage accepts at any time."""

    async def copy_onto_itself(
        self, key: str, headers: Any, *, source_etag: str, lease: Any
    ) -> Any:
        late = replace(lease, expires_s=10**6)
        method = self._server.copy_onto_itself
        effect = lambda: method(key, headers, source_etag=source_etag, lease=late)  # noqa: E731
        return await self._ask("copy_onto_itself", key, effect)


def test_the_storage_refuses_a_copy_that_arrives_after_its_lease() -> None:
    assert violations(a_copy_that_arrives_after_its_lease) == []
    assert _set_back(violations(a_copy_that_arrives_after_its_lease, Parts(wire=_Unleased)))


def a_worker_that_stalls_between_planning_and_writing(world: World) -> None:
    begin(world, "a", "b")
    world.rotate("acme")
    # `a` of the same page is planned, and waits for the read of `b`.
    look = stop_at(world, "read_start", "acme/b")
    rotation = world.rotate("acme")
    without(world, look)
    assert world.ended(rotation)
    world.run()


async def _apply_by_a_later_lease(self: Any, planned: Any) -> Any:
    if planned.writes:
        later = await self._fresh_keyring()
        snapshot = replace(planned.snapshot, read_at=later.read_at, leased=later.leased)
        await self._execute(replace(planned, snapshot=snapshot))
    return planned


def test_a_write_has_the_lease_of_the_read_that_planned_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_worker_that_stalls_between_planning_and_writing) == []
    monkeypatch.setattr(PageAttempt, "_apply", _apply_by_a_later_lease)
    assert _set_back(violations(a_worker_that_stalls_between_planning_and_writing))


def a_rotation_of_many_pages(world: World) -> None:
    begin(world, "a", "b", "c", "d")
    world.rotate("acme")
    world.run()


class _Gapped(Paginator):
    """Goes on behind the first key of each page."""

    async def extend(self, project: str, of: Round) -> Round:
        after = await super().extend(project, of)
        return replace(
            after,
            open_pages=tuple(
                replace(page, after=page.last) if page.after and page.last else page
                for page in after.open_pages
            ),
        )


def test_no_key_lies_between_two_pages() -> None:
    assert violations(a_rotation_of_many_pages, options=ONE_KEY_A_PAGE) == []
    found = violations(a_rotation_of_many_pages, Parts(paginator=_Gapped), ONE_KEY_A_PAGE)
    assert any("acme/b is wrapped under (1," in what and "at the end of" in what for what in found)


def a_master_key_that_returns(world: World) -> None:
    """A page is proven under m1. Its object follows m2, and the keyring is at m1 again.

    No step of the record sees m2: it waits while a worker puts the keyring under it and back.
    """
    begin(world, "a", "b")
    first = world.sweep("acme")

    def proven() -> Any:
        return world.oracle.round("acme").get("proven", {}).get("objects") == 1

    world.run(until=proven, keep=lambda queued: is_page(queued, 1))
    states = world.oracle.projects["acme"].states
    for master_key in ("m2", "m1"):
        world.sweep("acme", master_key=master_key)
        under = lambda key=master_key: states[-1].master_key == key  # noqa: E731
        world.run(until=under, keep=hint)
        if master_key == "m2":
            world.advance(CACHE_S + 1)
            world.upload("acme", "Z", b"behind the first page")
            world.run(keep=hint)
    world.run(until=lambda: world.ended(first))


def _is_equal_but_for_its_serial(one: State, other: Any) -> bool:
    return {**asdict(one), "serial": 0} == {**asdict(other), "serial": 0}


def test_a_state_that_was_left_and_returned_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_master_key_that_returns, options=ONE_KEY_A_PAGE) == []
    monkeypatch.setattr(State, "__eq__", _is_equal_but_for_its_serial)
    found = violations(a_master_key_that_returns, options=ONE_KEY_A_PAGE)
    assert "a sweep of acme proved a state that never was" in found, found


def a_record_that_was_rolled_back(world: World) -> None:
    """A bucket writer puts an earlier plan of a round back, and removes a key: pages shift."""
    begin(world, "0", "a", "c")
    world.rotate("acme")
    world.run(until=lambda: world.oracle.round("acme").get("open_pages"))
    first: Stored = world.server.current_objects()[RECORD]
    record = world.oracle.record("acme")
    assert record is not None
    assert len(record["round"]["open_pages"]) == 1
    folder = f".keyturn/sweeps/acme/{record['round']['id']}/"
    world.advance(CACHE_S + 1)  # or it would be wrapped by the keyring before the rotation
    world.upload("acme", "b", b"wrapped for the new generation")
    world.run(keep=lambda each: bool(hint(each)))
    world.run(keep=is_page, seconds=3 * LEASE_S)

    def published() -> bool:
        """Page 2 has a result, and the worker that put it saw that the round waits for it."""
        result = f"{folder}results/00000002-000000.json"
        return result in world.server.current_objects() and not world.calls

    assert world.run(until=published, keep=lambda each: bool(hint(each)) and not is_page(each, 2))
    world.server.plant(RECORD, first.body, first.headers)
    world.server._bucket.purge("acme/a")
    step = SweepStep(project="acme", step=record["step"])
    world.queue.append(QueuedMessage(PLAN_QUEUE, encode(step), ready_at=world.clock.seconds))
    world.run(keep=lambda each: is_page(each, 2), seconds=60)


def _whatever_the_range(record: Any, page: Any, result: Any) -> bool:
    del page
    return bool(result.state == record.state and not result.changed)


def test_a_result_proves_no_other_range_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_record_that_was_rolled_back
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.paginator.PAGES_PER_STEP", 1)
    assert violations(story, options=ONE_KEY_A_PAGE) == []
    monkeypatch.setattr("keyturn_workers.core.sweep_proof._matches", _whatever_the_range)
    as_created = lambda record, *_, **__: (replace(record, is_dated=True), False)  # noqa: E731
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.reconciler.reconcile_clock", as_created)
    found = violations(story, options=ONE_KEY_A_PAGE)
    assert any("acme/c is wrapped under (1," in what and "at the end of" in what for what in found)


def an_upload_of_plaintext_behind_the_attempt_at_its_page(world: World) -> None:
    """Its put rests on a keyring that allows plaintext, and ends once that was forbidden."""
    begin(world, "a", plaintext="allowed")
    world.upload("acme", "b", b"late" * 100, staged=True)
    put = stop_within(world, "put_stream", "acme/b")
    sweep = world.sweep("acme", encrypt_plaintext=True)
    without(world, put, seconds=120)
    assert world.ended(sweep)
    world.run()


def test_plaintext_that_was_forbidden_meanwhile_is_encrypted_before_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = an_upload_of_plaintext_behind_the_attempt_at_its_page
    assert violations(story, options=ALL_PLAINTEXT) == []
    monkeypatch.setattr("keyturn_workers.core.keyring.DesiredState.same_state", lambda *_: True)
    found = violations(story, options=ALL_PLAINTEXT)
    assert any("acme/b is plaintext once its upload was published" in what for what in found)
