"""Sweeps with a guard taken out: each is caught, and the real ones hold (SPEC 8.1 to 8.6)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from keyturn.topology import PLAN_QUEUE
from keyturn_workers.sweep import page_worker
from keyturn_workers.sweep.messages import SweepStep, encode
from keyturn_workers.sweep.plan import Plan, State
from keyturn_workers.sweep.planner import Planner
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

    from keyturn_workers.testing.memory_bucket import Stored
    from tests.protocol.world import World

ONE_KEY_A_PAGE = Options(page_keys=1)
ALL_PLAINTEXT = Options(unencrypted=frozenset({0, 1, 2}))


def a_streamed_write_that_outlasts_a_rotation(world: World) -> None:
    begin(world, "a", plaintext="allowed")
    sweep = world.sweep("acme", encrypt_plaintext=True)
    put = stop_within(world, "put_stream", "acme/a")
    rotation = world.rotate("acme")
    # Otherwise the sweep sees the rotation, and another worker does its page.
    without(world, put, keep=lambda queued: hint(queued).get("sweep_id") == sweep)
    assert world.ended(rotation)
    world.run()


async def _write_once(self: Any, planned: Any) -> Any:
    """`_PageAttempt._write` without a keyring read after it."""
    todo = await self._tags.note_before_writes([each for each in planned if each.writes])
    done = [await self._context.guarded(each.key, self._apply(each)) for each in todo]
    return [each for each in planned if not each.writes] + [each for each in done if each]


def test_the_keyring_is_read_again_after_the_writes_of_a_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_streamed_write_that_outlasts_a_rotation
    assert violations(story, options=ALL_PLAINTEXT) == []
    monkeypatch.setattr(page_worker._PageAttempt, "_write", _write_once)
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
    monkeypatch.setattr(Plan, "proof_after", lambda self, _lease_s: self.turned_at)
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
    monkeypatch.setattr("keyturn_workers.sweep.project_sweep.has_all_dates", lambda _: True)
    monkeypatch.setattr("keyturn_workers.sweep.progress._next_attempt", lambda *_: None)
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
        later = await self._context.fresh_keyring()
        snapshot = replace(planned.snapshot, read_at=later.read_at, leased=later.leased)
        await self._execute(replace(planned, snapshot=snapshot))
    return planned


def test_a_write_has_the_lease_of_the_read_that_planned_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_worker_that_stalls_between_planning_and_writing) == []
    monkeypatch.setattr(page_worker._PageAttempt, "_apply", _apply_by_a_later_lease)
    assert _set_back(violations(a_worker_that_stalls_between_planning_and_writing))


def a_rotation_of_many_pages(world: World) -> None:
    begin(world, "a", "b", "c", "d")
    world.rotate("acme")
    world.run()


class _Gapped(Planner):
    """Goes on behind the first key of each page."""

    async def extend(self, plan: Plan) -> Plan:
        after = await super().extend(plan)
        return replace(
            after,
            live=tuple(
                replace(page, after=page.last) if page.after and page.last else page
                for page in after.live
            ),
        )


def test_no_key_lies_between_two_pages() -> None:
    assert violations(a_rotation_of_many_pages, options=ONE_KEY_A_PAGE) == []
    found = violations(a_rotation_of_many_pages, Parts(planner=_Gapped), ONE_KEY_A_PAGE)
    assert any("acme/b is wrapped under (1," in what and "at the end of" in what for what in found)


def a_master_key_that_returns(world: World) -> None:
    """A proves a page under m2; B returns to m1; C to m2; A continues where it was."""
    begin(world, "a", "b")
    first = world.sweep("acme", master_key="m2")

    def proven() -> Any:
        plan = world.oracle.plan(first, "acme")
        return plan is not None and plan["proven"]["objects"] == 1

    def of_first(queued: QueuedMessage) -> bool:
        return hint(queued).get("sweep_id") == first

    world.run(until=proven, keep=lambda queued: is_page(queued, 1))
    world.sweep("acme", master_key="m1")
    world.run(until=lambda: _under(world, "acme/a") == "m1", keep=of_first)
    third = world.sweep("acme", master_key="m2")
    states = world.oracle.projects["acme"].states
    world.run(until=lambda: states[-1].master_key == "m2", keep=lambda each: bool(hint(each)))
    assert not world.ended(third)
    ended = lambda: (first, "acme") in world.oracle.ended_sweeps  # noqa: E731
    world.run(until=ended, keep=lambda each: bool(hint(each)) and not of_first(each))


def _under(world: World, s3_key: str) -> str:
    return world.server.current_objects()[s3_key].headers.metadata["enc-kek-admin"]


def _is_equal_but_for_its_etag(one: State, other: Any) -> bool:
    return {**asdict(one), "etag": ""} == {**asdict(other), "etag": ""}


def test_a_state_that_was_left_and_returned_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_master_key_that_returns, options=ONE_KEY_A_PAGE) == []
    monkeypatch.setattr(State, "__eq__", _is_equal_but_for_its_etag)
    found = violations(a_master_key_that_returns, options=ONE_KEY_A_PAGE)
    assert any("acme/a" in what and "'m1') at the end of" in what for what in found)


def a_plan_that_was_rolled_back(world: World) -> None:
    """A bucket writer puts a sweep's first plan back, and removes a key: pages shift by one."""
    begin(world, "a", "c")
    rotation = world.rotate("acme")
    world.run(until=lambda: world.oracle.plan(rotation, "acme"), keep=lambda each: bool(hint(each)))
    folder = f".keyturn/sweeps/{rotation}/acme/"
    first: Stored = world.server.current_objects()[f"{folder}sweep.json"]
    world.advance(CACHE_S + 1)  # or it would be wrapped by the keyring before the rotation
    world.upload("acme", "b", b"wrapped for the new generation")
    world.run(keep=lambda each: bool(hint(each)))
    world.run(keep=is_page, seconds=3 * LEASE_S)

    def published() -> bool:
        """Page 1 has a result, and the worker that put it saw that the sweep waits for it."""
        result = f"{folder}results/000000-00000001-000000.json"
        return result in world.server.current_objects() and not world.calls

    assert world.run(until=published, keep=lambda each: bool(hint(each)) and not is_page(each, 1))
    world.server.plant(f"{folder}sweep.json", first.body, first.headers)
    world.server._bucket.purge("acme/a")
    step = SweepStep(sweep_id=rotation, project="acme", step=0)
    world.queue.append(QueuedMessage(PLAN_QUEUE, encode(step), ready_at=world.clock.seconds))
    world.run(keep=lambda each: is_page(each, 1), seconds=60)


def _whatever_the_range(plan: Any, open_page: Any, result: Any) -> bool:
    del open_page
    return bool(result.state == plan.state and not result.changed)


def test_a_result_proves_no_other_range_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_plan_that_was_rolled_back, options=ONE_KEY_A_PAGE) == []
    monkeypatch.setattr("keyturn_workers.sweep.progress._matches_plan", _whatever_the_range)
    # The first step dates the state again, which is a separate guard.
    assert violations(a_plan_that_was_rolled_back, options=ONE_KEY_A_PAGE) == []
    as_created = lambda plan, *_, **__: replace(plan, turn_dated=True)  # noqa: E731
    monkeypatch.setattr("keyturn_workers.sweep.project_sweep.reconcile_clock", as_created)
    found = violations(a_plan_that_was_rolled_back, options=ONE_KEY_A_PAGE)
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
    monkeypatch.setattr("keyturn_workers.keyring.DesiredState.same_state", lambda *_: True)
    found = violations(story, options=ALL_PLAINTEXT)
    assert any("acme/b is plaintext once its upload was published" in what for what in found)
