"""The records of sweeps in a bucket that an attacker can write (SPEC 5.1, 8.5)."""

from __future__ import annotations

from dataclasses import replace

from keyturn.identifiers import SWEEPS_PREFIX, sweep_prefix
from keyturn_workers.sweep import record_paths
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import (
    ALL,
    AllPlan,
    PartResult,
    SweepRequest,
)
from tests.unit.keyturn_workers.sweep.records import (
    NOW,
    OTHER_ID,
    PAGE,
    PLAN,
    RESULT,
    SWEEP_ID,
    Scene,
)


async def test_of_two_changes_of_one_plan_the_second_is_refused() -> None:
    store = Scene().store
    assert await store.create(PLAN, "m1")
    assert not await store.create(PLAN, "m1")
    stored = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(PLAN, step=1), stored.etag, "m1")
    assert not await store.change(replace(PLAN, step=2), stored.etag, "m1")
    assert (await store.read(SWEEP_ID, "acme")).plan.step == 1


async def test_the_plan_of_either_kind_is_found() -> None:
    store = Scene().store
    of_all = AllPlan(SweepRequest("sweep", OTHER_ID, ALL, ""), NOW)
    assert await store.create(PLAN, "m1")
    assert await store.create(of_all, "m1")
    assert await store.find_plan(SWEEP_ID, "acme") == PLAN
    assert await store.find_plan(OTHER_ID, ALL) == of_all
    assert await store.find_plan(SWEEP_ID, ALL) is None
    assert [named async for *named, _ in store.plans()] == [[SWEEP_ID, "acme"], [OTHER_ID, ALL]]


async def test_a_forged_part_result_is_none_and_can_be_replaced() -> None:
    scene = Scene()
    scene.plant(record_paths.part_result_path(SWEEP_ID, "acme"))
    assert [project async for project in scene.store.ended_parts(SWEEP_ID)] == ["acme"]
    result = PartResult(Counts(objects=1, current=1), clean=True)
    await scene.store.add_part_result(SWEEP_ID, "acme", result, "m1")
    await scene.store.add_part_result(SWEEP_ID, "acme", replace(result, clean=False), "m1")
    assert await scene.store.read_part_result(SWEEP_ID, "acme") == result


async def test_ended_parts_are_listed_from_a_project_on() -> None:
    store = Scene().store
    for project in ("a", "a-b", "c"):
        await store.add_part_result(SWEEP_ID, project, PartResult(Counts(), clean=True), "m1")
    # As the bucket orders their records, by `{project}.json`.
    assert [project async for project in store.ended_parts(SWEEP_ID)] == ["a-b", "a", "c"]
    assert [project async for project in store.ended_parts(SWEEP_ID, since="c")] == ["c"]


async def test_forged_markers_name_no_sweep() -> None:
    scene = Scene()
    await scene.store.mark_running(PLAN.ask)
    for name in ("x", f"{OTHER_ID}/../../keyrings/acme.json", f"{OTHER_ID}/", "../acme/k"):
        scene.plant(f"{SWEEPS_PREFIX}_running/{name}", b"")
    assert [named async for *named, _ in scene.store.running()] == [[SWEEP_ID, "acme"]]


async def test_the_folders_of_a_listing_show_plans_and_results() -> None:
    scene = Scene()
    assert await scene.store.create(PLAN, "m1")
    assert await scene.store.add_result(PLAN, PAGE, RESULT, "m1")
    scene.plant(f"{sweep_prefix(OTHER_ID, ALL)}done/acme.json")
    scene.plant(f"{SWEEPS_PREFIX}nothing/of/ours")
    one, other = [folder async for folder in scene.store.folders()]
    assert (one.sweep_id, one.project, one.has_results) == (SWEEP_ID, "acme", True)
    assert one.changed_at is not None
    assert one.etag
    assert (other.sweep_id, other.project, other.has_results) == (OTHER_ID, ALL, False)
    assert (other.changed_at, other.etag) == (None, "")


async def test_records_are_resealed_except_plans_of_running_sweeps() -> None:
    scene = Scene()
    await scene.store.mark_running(PLAN.ask)
    assert await scene.store.create(PLAN, "m1")
    ended = replace(PLAN, ask=replace(PLAN.ask, sweep_id=OTHER_ID), status="done", told=True)
    assert await scene.store.create(ended, "m1")
    forged = record_paths.failures_path(OTHER_ID, "acme", 0, 0)
    scene.plant(forged)
    await scene.store.reseal_records("m2")
    assert (await scene.store.read(SWEEP_ID, "acme")).master_key == "m1"
    assert (await scene.store.read(OTHER_ID, "acme")).master_key == "m2"
    assert forged in scene.storage.stored_keys()


async def test_a_removed_sweep_leaves_nothing_behind() -> None:
    scene = Scene()
    assert await scene.store.create(PLAN, "m1")
    assert await scene.store.add_result(PLAN, PAGE, RESULT, "m1")
    await scene.store.remove(SWEEP_ID, "acme")
    assert scene.storage.stored_keys() == []
