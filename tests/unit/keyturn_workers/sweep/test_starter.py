"""A sweep is started once, however often it is requested: record first, step second (SPEC 8.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    StorageUnavailableError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import ALL, AllPlan, Plan
from keyturn_workers.sweep.plan import State
from tests.unit.keyturn_workers.factories import rotated
from tests.unit.keyturn_workers.sweep.sweeping import (
    LEASE_S,
    ORIGIN,
    OTHER_ID,
    REQUEST,
    SWEEP_ID,
    Sweeping,
)

OTHER = RequestOrigin("web", "1" * 64)


async def _marked(on: Sweeping) -> list[tuple[str, str]]:
    return [(sweep_id, project) async for sweep_id, project, _ in on.store.running()]


async def test_a_new_sweep_has_a_record_a_marker_and_a_first_step() -> None:
    on = Sweeping()
    plan = await on.start()
    assert plan == await on.plan()
    assert isinstance(plan, Plan)
    snapshot = await on.keyrings.read_fresh("acme")
    assert (plan.ask, plan.state, plan.step) == (REQUEST, State.of(snapshot), 0)
    assert (plan.origins, plan.lease_s, plan.turn_dated) == ((ORIGIN,), LEASE_S, False)
    assert await _marked(on) == [(SWEEP_ID, "acme")]
    assert on.messages.steps() == [0]


async def test_the_longer_lease_of_the_keyring_counts() -> None:
    on = Sweeping()
    on.write_keyring(replace(on.ring, lease_s=60))
    plan = await on.start()
    assert isinstance(plan, Plan)
    assert (plan.lease_s, plan.stepped_lease_s) == (60, LEASE_S)


async def test_the_marker_comes_before_the_record() -> None:
    """A worker that dies between the two leaves a marker, which recovery removes."""
    on = Sweeping()
    on.storage.fail_next("put", StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await on.start()
    assert await on.store.find_plan(SWEEP_ID, "acme") is None
    assert on.messages.steps() == []


async def test_a_repeated_request_sends_the_step_that_the_sweep_waits_for() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    on.messages.waiting.clear()
    assert await on.start(replace(REQUEST, requested_at="2026-11-25T00:00:00Z")) == before.plan
    assert await on.stored() == before
    assert on.messages.steps() == [before.plan.step]


async def test_the_end_is_published_to_a_request_that_joins() -> None:
    on = Sweeping()
    await on.start()
    await on.starter.start(REQUEST, (OTHER,))
    assert (await on.plan()).origins == (ORIGIN, OTHER)
    await on.finish()
    assert on.messages.types().count("sweep.completed") == 2


async def test_an_ended_sweep_is_not_started_again() -> None:
    """Its caller publishes the end to this request alone."""
    on = Sweeping()
    await on.start()
    await on.finish()
    before = await on.stored()
    on.messages.waiting.clear()
    plan = await on.starter.start(REQUEST, (OTHER,))
    assert plan == before.plan
    assert await on.stored() == before
    assert on.messages.waiting == []


async def test_a_request_that_joins_while_the_record_changes_is_not_lost() -> None:
    on = Sweeping()
    await on.start()
    hint = on.messages.take()[1]

    async def step() -> None:
        await on.handler.run_step(hint, again=False)  # type: ignore[arg-type]

    on.storage.before_next("put", step)
    await on.starter.start(REQUEST, (OTHER,))
    plan = await on.plan()
    assert (plan.step, plan.origins) == (1, (ORIGIN, OTHER))


async def test_a_failed_sweep_is_continued_by_its_next_request() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    hint = next(hint for _, hint in on.messages.waiting if hint.type == "sweep.step")
    await on.handler.record_failure(hint, StorageUnavailableError("down"))
    on.messages.waiting.clear()
    await on.start()
    assert on.messages.steps() == [1]
    assert (await on.deliver_until(lambda plan: plan.status == "done")).clean


@pytest.mark.parametrize(
    "change",
    [{"kind": "rotation"}, {"repair": True}, {"dry_run": True}, {"master_key": "m2"}],
    ids=repr,
)
async def test_an_id_names_one_sweep(change: dict[str, object]) -> None:
    on = Sweeping()
    await on.start()
    other = replace(REQUEST, **change)  # type: ignore[arg-type]
    with pytest.raises(MalformedRequestError):
        await on.start(other)
    with pytest.raises(MalformedRequestError):
        await on.starter.find_existing(other)
    assert (await on.plan()).ask == REQUEST


async def test_an_existing_sweep_is_found_and_nothing_is_started() -> None:
    on = Sweeping()
    assert await on.starter.find_existing(REQUEST) is None
    assert on.messages.waiting == []
    plan = await on.start()
    assert await on.starter.find_existing(replace(REQUEST, requested_at="")) == plan


async def test_the_id_of_a_rotation_or_an_enrollment_names_no_sweep() -> None:
    """That rotation's own sweep could not start any more."""
    on = Sweeping()
    for entry in (on.ring.current, on.ring.enrollment):
        request = replace(REQUEST, sweep_id=entry.rotation_id)
        with pytest.raises(MalformedRequestError, match="rotation"):
            await on.start(request)
    request = replace(REQUEST, sweep_id=on.ring.enrollment.rotation_id)
    assert await on.starter.start(request, (ORIGIN,), adopting=True)
    rotation = replace(REQUEST, kind="rotation", sweep_id=on.ring.current.rotation_id)
    assert await on.start(rotation)


@pytest.mark.parametrize("error", [CorruptObjectError, UnknownProjectError])
async def test_without_a_genuine_keyring_nothing_is_started(error: type[Exception]) -> None:
    on = Sweeping()
    await on.storage.delete(keyring_s3_key("acme"))
    if error is CorruptObjectError:
        on.storage.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    with pytest.raises(error):
        await on.start()
    assert await _marked(on) == []


# A master key that the request names.


async def test_the_keyring_is_resealed_under_a_named_master_key_first() -> None:
    on = Sweeping()
    plan = await on.start(replace(REQUEST, master_key="m2"))
    assert isinstance(plan, Plan)
    assert plan.state.master_key == "m2"
    assert (await on.keyrings.read_fresh("acme")).keyring.master_key == "m2"
    assert (await on.stored()).master_key == "m2"


async def test_a_rotation_while_the_keyring_is_resealed_is_kept() -> None:
    on = Sweeping()

    async def rotate() -> None:
        on.write_keyring(rotated(on.ring))

    on.storage.before_next("put", rotate)
    await on.start(replace(REQUEST, master_key="m2"))
    after = (await on.keyrings.read_fresh("acme")).keyring
    assert (after.current.generation, after.master_key) == (3, "m2")


async def test_a_dry_run_reseals_no_keyring() -> None:
    on = Sweeping()
    plan = await on.start(replace(REQUEST, master_key="m2", dry_run=True))
    assert isinstance(plan, Plan)
    assert plan.state.master_key == "m2"
    assert (await on.keyrings.read_fresh("acme")).keyring.master_key == "m1"


# All projects.


async def test_a_sweep_of_all_projects_needs_no_keyring_of_its_own() -> None:
    on = Sweeping()
    plan = await on.start(replace(REQUEST, project=ALL))
    assert isinstance(plan, AllPlan)
    assert await _marked(on) == [(SWEEP_ID, ALL)]
    assert (await on.store.read_all(SWEEP_ID)).master_key == "m1"  # the active one
    assert on.messages.steps() == [0]


async def test_the_record_of_a_sweep_of_all_is_under_the_master_key_that_it_names() -> None:
    on = Sweeping()
    await on.start(replace(REQUEST, project=ALL, master_key="m2"))
    assert (await on.store.read_all(SWEEP_ID)).master_key == "m2"
    unknown = replace(REQUEST, project=ALL, master_key="m9", sweep_id=OTHER_ID)
    with pytest.raises(UnknownMasterKeyError):
        await on.start(unknown)
    assert await _marked(on) == [(SWEEP_ID, ALL)]


# Rotations that lost their record.


async def test_a_rotation_is_restarted_as_the_keyring_says() -> None:
    on = Sweeping()
    current = on.ring.current
    on.write_keyring(replace(on.ring, origin=OTHER))
    assert await on.starter.restart_rotation(current.rotation_id, "acme")
    plan = await on.plan(current.rotation_id)
    assert (plan.ask.kind, plan.ask.requested_at) == ("rotation", current.requested_at)
    assert plan.origins == (OTHER,)


async def test_an_earlier_rotation_is_not_restarted() -> None:
    on = Sweeping()
    assert not await on.starter.restart_rotation(on.ring.enrollment.rotation_id, "acme")
    assert on.messages.waiting == []
