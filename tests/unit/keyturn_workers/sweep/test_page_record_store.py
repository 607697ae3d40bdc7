"""What page attempts leave in the bucket: results, failures, tag notes (SPEC 8.2, 8.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.sweep import SweepStore, record_paths
from keyturn_workers.sweep.plan import Failure
from tests.unit.keyturn_workers.master_keys.fakes import FakeProvider
from tests.unit.keyturn_workers.sweep.records import (
    OTHER_ID,
    PAGE,
    PLAN,
    RESULT,
    RESULT_PATH,
    SWEEP_ID,
    Scene,
)


async def test_the_first_result_of_an_attempt_is_kept() -> None:
    store = Scene().store
    assert await store.add_result(PLAN, PAGE, RESULT, "m1")
    assert not await store.add_result(PLAN, PAGE, replace(RESULT, changed=1), "m1")
    assert await store.results(PLAN) == {0: RESULT}


async def test_only_results_of_current_attempts_are_read() -> None:
    store = Scene().store
    assert await store.add_result(PLAN, PAGE, RESULT, "m1")
    for change in ({"take": 1}, {"sent_at": None}):
        assert await store.results(replace(PLAN, live=(replace(PAGE, **change),))) == {}
    assert await store.results(replace(PLAN, round=1)) == {}


async def test_a_forged_result_is_deleted_and_replaced() -> None:
    scene = Scene()
    scene.plant(RESULT_PATH)
    assert await scene.store.results(PLAN) == {}
    assert RESULT_PATH not in scene.storage.stored_keys()
    scene.plant(RESULT_PATH)
    assert await scene.store.add_result(PLAN, PAGE, RESULT, "m1")
    assert await scene.store.results(PLAN) == {0: RESULT}


async def test_a_result_under_another_master_key_proves_no_state() -> None:
    store = Scene().store
    assert await store.add_result(PLAN, PAGE, RESULT, "m2")
    assert await store.results(PLAN) == {0: replace(RESULT, state=None)}


async def test_the_results_of_all_attempts_at_a_page_are_deleted() -> None:
    scene = Scene()
    for attempt in range(3):
        assert await scene.store.add_result(PLAN, replace(PAGE, take=attempt), RESULT, "m1")
    await scene.store.delete_page_results(PLAN, [replace(PAGE, take=2)])
    assert scene.storage.stored_keys() == []


async def test_failures_are_listed_in_the_order_of_pages() -> None:
    store = Scene().store
    for page in (1, 0):
        await store.add_failures(PLAN, page, (Failure(f"k{page}", "corrupt_object"),), "m1")
    assert [failure.key async for failure in store.failures(PLAN)] == ["k0", "k1"]
    assert [failure async for failure in store.failures(replace(PLAN, round=1))] == []


async def test_tag_notes_are_those_of_one_page_or_of_all_rounds() -> None:
    scene = Scene()
    tags = {"k": {"team": "legal"}}
    earlier = await scene.store.add_tag_note(PLAN, PAGE, tags, "m1")
    later = replace(PLAN, round=1)
    note = await scene.store.add_tag_note(later, PAGE, tags, "m1")
    scene.plant(record_paths.new_tags_path(SWEEP_ID, "acme", 1, 0, 0))
    assert [each async for each in scene.store.tag_notes(later, PAGE)] == [(note, tags)]
    assert [path async for path, _ in scene.store.tag_notes(later)] == [earlier, note]


async def test_all_results_of_a_sweep_are_deleted_and_nothing_else() -> None:
    scene = Scene()
    other = replace(PLAN, ask=replace(PLAN.ask, sweep_id=OTHER_ID))
    assert await scene.store.create(PLAN, "m1")
    for plan in (PLAN, replace(PLAN, round=1), other):
        assert await scene.store.add_result(plan, PAGE, RESULT, "m1")
    await scene.store.delete_results(SWEEP_ID, "acme")
    assert await scene.store.results(PLAN) == {}
    assert await scene.store.results(replace(PLAN, round=1)) == {}
    assert await scene.store.results(other) == {0: RESULT}
    assert await scene.store.find_plan(SWEEP_ID, "acme") == PLAN


async def test_the_result_of_one_attempt_is_deleted() -> None:
    scene = Scene()
    later = replace(PAGE, take=1)
    for page in (PAGE, later):
        assert await scene.store.add_result(PLAN, page, RESULT, "m1")
    await scene.store.delete_result(PLAN, PAGE)
    assert await scene.store.results(PLAN) == {}
    assert await scene.store.results(replace(PLAN, live=(later,))) == {0: RESULT}


async def test_a_tag_note_is_deleted_by_its_path() -> None:
    scene = Scene()
    paths = [await scene.store.add_tag_note(PLAN, PAGE, {}, "m1") for _ in range(2)]
    assert len(set(paths)) == 2
    await scene.store.delete_tag_note(paths[0])
    assert [path async for path, _ in scene.store.tag_notes(PLAN)] == paths[1:]


async def test_a_result_that_cannot_be_read_now_is_not_taken_for_a_forged_one() -> None:
    """Deleting it would have the page done again for each minute that the provider is away."""
    scene = Scene()
    assert await scene.store.add_result(PLAN, PAGE, RESULT, "m1")
    provider = FakeProvider(failure=KmsUnavailableError("down"))
    store = SweepStore(scene.storage, OperatorKeys({"m1": provider}))
    with pytest.raises(KmsUnavailableError):
        await store.results(PLAN)
    assert await scene.store.results(PLAN) == {0: RESULT}
