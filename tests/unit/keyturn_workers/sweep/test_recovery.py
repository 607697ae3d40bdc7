"""Sweeps that lost their messages go on; records of long ago go (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from keyturn.crypto import Secret
from keyturn.identifiers import sweep_folder
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State, SweepRequest
from keyturn_workers.sweep.recovery import Seen, rescue
from keyturn_workers.sweep.store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
OTHER_ID = "2f6c9a0e-2222-4222-8222-222222222222"
STILL, KEEP = timedelta(minutes=15), timedelta(days=8)


class Role:
    """Notes whom it was to hurry."""

    def __init__(self) -> None:
        self.hurried: list[tuple[str, str]] = []

    async def resume(self, sweep_id: str, project: str) -> None:
        self.hurried.append((sweep_id, project))


async def setting(sweep_id: str = SWEEP_ID) -> tuple[MemoryStorage, SweepStore, Plan]:
    storage = MemoryStorage()
    store = SweepStore(storage, {"m1": Secret(bytes(32))})
    now = datetime.now(UTC)
    state = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
    plan = Plan(SweepRequest("sweep", sweep_id, "acme", ""), state, now, now)
    await store.mark_running(plan.ask)
    assert await store.create(plan, "m1")
    return storage, store, plan


async def look(store: SweepStore, later: timedelta, seen: Seen | None = None) -> Role:
    role = Role()
    await rescue(
        store,
        cast("Any", role),
        still_for=STILL,
        keep_for=KEEP,
        now=datetime.now(UTC) + later,
        seen=seen,
    )
    return role


async def test_a_sweep_whose_record_stands_still_is_hurried() -> None:
    _, store, _ = await setting()
    assert (await look(store, timedelta(minutes=16))).hurried == [(SWEEP_ID, "acme")]


async def test_a_sweep_that_goes_on_is_left_alone() -> None:
    _, store, _ = await setting()
    assert (await look(store, timedelta(minutes=14))).hurried == []


async def test_a_sweep_that_ended_and_was_told_is_left_alone_and_removed_in_the_end() -> None:
    storage, store, plan = await setting()
    standing = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done", told=True), standing.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await look(store, timedelta(days=7))).hurried == []
    assert storage.stored_keys() == [f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json"]
    await look(store, timedelta(days=9))
    assert storage.stored_keys() == []


async def test_a_sweep_that_runs_is_never_removed() -> None:
    storage, store, _ = await setting()
    role = await look(store, timedelta(days=900))
    assert role.hurried == [(SWEEP_ID, "acme")]
    assert f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json" in storage.stored_keys()


async def test_a_mark_without_a_plan_goes() -> None:
    """Whoever put it died before the plan stood; the request comes again and marks it again."""
    storage, store, _ = await setting()
    await store.mark_running(SweepRequest("sweep", OTHER_ID, "acme", ""))
    assert [named async for *named, _ in store.running()] == [
        [SWEEP_ID, "acme"],
        [OTHER_ID, "acme"],
    ]
    await look(store, timedelta(minutes=16))
    assert [named async for *named, _ in store.running()] == [[SWEEP_ID, "acme"]]
    assert len(storage.stored_keys()) == 2


async def test_marks_that_somebody_else_put_there_name_no_sweep() -> None:
    storage, store, _ = await setting()
    for name in ("x", f"{OTHER_ID}/../../keyrings/acme.json", f"{OTHER_ID}/", "../acme/k"):
        await storage.put(f".keyturn/sweeps/_running/{name}", b"", Headers({}))
    assert [named async for *named, _ in store.running()] == [[SWEEP_ID, "acme"]]


async def end(store: SweepStore, plan: Plan) -> None:
    standing = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done", told=True), standing.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")


async def add_result(store: SweepStore, plan: Plan) -> None:
    live = OpenPage(page=0, after="", last="")
    result = Result("", "", plan.state, datetime.now(UTC), Counts(), changed=0)
    assert await store.add_result(plan, live, result, "m1")


async def test_a_sweep_that_lost_its_mark_is_found_by_its_plan() -> None:
    """A mark is a hint that anyone who writes the bucket can remove."""
    _, store, _ = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await look(store, timedelta(minutes=14))).hurried == []
    assert (await look(store, timedelta(minutes=16))).hurried == [(SWEEP_ID, "acme")]


async def test_a_sweep_that_lost_its_mark_is_not_removed_while_it_runs() -> None:
    storage, store, _ = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await look(store, timedelta(days=9))).hurried == [(SWEEP_ID, "acme")]
    assert storage.stored_keys() == [f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json"]


async def test_an_end_that_was_not_published_is_found_without_its_mark() -> None:
    _, store, plan = await setting()
    standing = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done"), standing.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await look(store, timedelta(minutes=16))).hurried == [(SWEEP_ID, "acme")]


async def test_a_forged_mark_removes_nothing_and_carries_nothing_on() -> None:
    """The record decides; it only keeps the folder of an ended sweep until the mark is gone."""
    storage, store, plan = await setting()
    await end(store, plan)
    await store.mark_running(plan.ask)
    role = await look(store, timedelta(days=9))
    # What `resume` does for a sweep that ended and was published: it takes the mark away.
    assert role.hurried == [(SWEEP_ID, "acme")]
    assert f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json" in storage.stored_keys()
    assert (await store.read(SWEEP_ID, "acme")).plan == replace(plan, status="done", told=True)


async def test_results_that_came_after_the_end_are_removed_by_the_next_round() -> None:
    """Of a worker that was killed between the put and its look at the plan."""
    storage, store, plan = await setting()
    await end(store, plan)
    await add_result(store, plan)
    plan_key = f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json"
    await look(store, timedelta(minutes=14))  # it may be looking at the plan just now
    assert len(storage.stored_keys()) == 2
    await look(store, timedelta(minutes=16))
    assert storage.stored_keys() == [plan_key]


async def test_results_of_a_sweep_that_runs_stay() -> None:
    storage, store, plan = await setting()
    await add_result(store, plan)
    before = storage.stored_keys()
    await look(store, timedelta(days=9))
    assert storage.stored_keys() == before
    await store.unmark_running(SWEEP_ID, "acme")
    await look(store, timedelta(days=9))
    assert len(storage.stored_keys()) == len(before) - 1


async def test_results_without_a_plan_are_removed_and_noted_tags_stay() -> None:
    """A rotation whose plan was removed is begun anew, and puts the tags back."""
    storage, store, plan = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    await add_result(store, plan)
    live = OpenPage(page=0, after="", last="")
    note = await store.note_tags(plan, live, {"k": {"team": "legal"}}, "m1")
    await storage.delete(f"{sweep_folder(SWEEP_ID, 'acme')}sweep.json")
    await look(store, timedelta(minutes=16))
    assert storage.stored_keys() == [note]
    await look(store, timedelta(days=9))
    assert storage.stored_keys() == []


async def test_a_plan_under_a_master_key_that_this_worker_lacks_is_left_alone() -> None:
    storage, store, plan = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    await add_result(store, plan)
    before = storage.stored_keys()
    assert (await look(SweepStore(storage, {}), timedelta(days=7))).hurried == []
    assert storage.stored_keys() == before


async def test_a_plan_that_ended_is_read_once_by_a_process() -> None:
    """There are thousands of them, and rounds are many."""
    storage, store, plan = await setting()
    await end(store, plan)
    seen = Seen()
    storage.calls.clear()
    for _ in range(3):
        await look(store, timedelta(minutes=16), seen)
    assert storage.calls["read"] == 1
    assert seen.ended.keys() == {(SWEEP_ID, "acme")}
    await look(store, timedelta(days=9), seen)
    await look(store, timedelta(days=9), seen)
    assert seen.ended == {}
