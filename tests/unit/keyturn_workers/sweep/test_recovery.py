"""Sweeps that lost their messages are resumed; old records are removed (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError
from keyturn.identifiers import sweep_prefix
from keyturn_workers.master_keys.limits import LimitedMasterKey
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State, SweepRequest
from keyturn_workers.sweep.recovery import SeenPlans, recover
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.master_keys.fakes import FakeProvider
from tools.harness.local_keys import operator_keys

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
OTHER_ID = "2f6c9a0e-2222-4222-8222-222222222222"
STALLED, KEEP = timedelta(minutes=15), timedelta(days=8)


class Handler:
    """Notes which sweeps it was to resume."""

    def __init__(self) -> None:
        self.resumed: list[tuple[str, str]] = []

    async def resume(self, sweep_id: str, project: str) -> None:
        self.resumed.append((sweep_id, project))


async def setting(sweep_id: str = SWEEP_ID) -> tuple[MemoryStorage, SweepStore, Plan]:
    storage = MemoryStorage()
    store = SweepStore(storage, operator_keys({"m1": Secret(bytes(32))}))
    now = datetime.now(UTC)
    state = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
    plan = Plan(SweepRequest("sweep", sweep_id, "acme", ""), state, now, now)
    await store.mark_running(plan.ask)
    assert await store.create(plan, "m1")
    return storage, store, plan


async def recovery_round(
    store: SweepStore, later: timedelta, seen: SeenPlans | None = None
) -> Handler:
    handler = Handler()
    await recover(
        store,
        cast("Any", handler),
        stalled_after=STALLED,
        keep_for=KEEP,
        now=datetime.now(UTC) + later,
        seen=seen,
    )
    return handler


async def test_a_stalled_sweep_is_resumed() -> None:
    _, store, _ = await setting()
    assert (await recovery_round(store, timedelta(minutes=16))).resumed == [(SWEEP_ID, "acme")]


async def test_a_sweep_that_makes_progress_is_left_alone() -> None:
    _, store, _ = await setting()
    assert (await recovery_round(store, timedelta(minutes=14))).resumed == []


async def test_a_sweep_whose_end_was_published_is_left_alone_and_removed_later() -> None:
    storage, store, plan = await setting()
    stored = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done", told=True), stored.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await recovery_round(store, timedelta(days=7))).resumed == []
    assert storage.stored_keys() == [f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json"]
    await recovery_round(store, timedelta(days=9))
    assert storage.stored_keys() == []


async def test_a_running_sweep_is_never_removed() -> None:
    storage, store, _ = await setting()
    handler = await recovery_round(store, timedelta(days=900))
    assert handler.resumed == [(SWEEP_ID, "acme")]
    assert f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json" in storage.stored_keys()


async def test_a_marker_without_a_plan_is_removed() -> None:
    """Its worker died before it created the plan. The request is delivered and marked again."""
    storage, store, _ = await setting()
    await store.mark_running(SweepRequest("sweep", OTHER_ID, "acme", ""))
    assert [named async for *named, _ in store.running()] == [
        [SWEEP_ID, "acme"],
        [OTHER_ID, "acme"],
    ]
    await recovery_round(store, timedelta(minutes=16))
    assert [named async for *named, _ in store.running()] == [[SWEEP_ID, "acme"]]
    assert len(storage.stored_keys()) == 2


async def end(store: SweepStore, plan: Plan) -> None:
    stored = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done", told=True), stored.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")


async def add_result(store: SweepStore, plan: Plan) -> None:
    open_page = OpenPage(page=0, after="", last="")
    result = Result("", "", plan.state, datetime.now(UTC), Counts(), changed=0)
    assert await store.add_result(plan, open_page, result, "m1")


async def test_a_sweep_that_lost_its_marker_is_found_by_its_plan() -> None:
    """A marker is a hint that anyone who can write the bucket can remove."""
    _, store, _ = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await recovery_round(store, timedelta(minutes=14))).resumed == []
    assert (await recovery_round(store, timedelta(minutes=16))).resumed == [(SWEEP_ID, "acme")]


async def test_a_running_sweep_that_lost_its_marker_is_not_removed() -> None:
    storage, store, _ = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await recovery_round(store, timedelta(days=9))).resumed == [(SWEEP_ID, "acme")]
    assert storage.stored_keys() == [f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json"]


async def test_an_unpublished_end_is_found_without_its_marker() -> None:
    _, store, plan = await setting()
    stored = await store.read(SWEEP_ID, "acme")
    assert await store.change(replace(plan, status="done"), stored.etag, "m1")
    await store.unmark_running(SWEEP_ID, "acme")
    assert (await recovery_round(store, timedelta(minutes=16))).resumed == [(SWEEP_ID, "acme")]


async def test_a_forged_marker_removes_nothing_and_resumes_nothing() -> None:
    """The record decides; the marker only keeps the folder of an ended sweep until it is gone."""
    storage, store, plan = await setting()
    await end(store, plan)
    await store.mark_running(plan.ask)
    handler = await recovery_round(store, timedelta(days=9))
    # For a sweep whose end was published, `resume` removes the marker.
    assert handler.resumed == [(SWEEP_ID, "acme")]
    assert f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json" in storage.stored_keys()
    assert (await store.read(SWEEP_ID, "acme")).plan == replace(plan, status="done", told=True)


async def test_results_that_came_after_the_end_are_removed_by_the_next_round() -> None:
    """Of a worker that was killed between the put and its read of the plan."""
    storage, store, plan = await setting()
    await end(store, plan)
    await add_result(store, plan)
    plan_key = f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json"
    await recovery_round(store, timedelta(minutes=14))  # it may be reading the plan just now
    assert len(storage.stored_keys()) == 2
    await recovery_round(store, timedelta(minutes=16))
    assert storage.stored_keys() == [plan_key]


async def test_results_of_a_running_sweep_are_kept() -> None:
    storage, store, plan = await setting()
    await add_result(store, plan)
    before = storage.stored_keys()
    await recovery_round(store, timedelta(days=9))
    assert storage.stored_keys() == before
    await store.unmark_running(SWEEP_ID, "acme")
    await recovery_round(store, timedelta(days=9))
    assert len(storage.stored_keys()) == len(before) - 1


async def test_results_without_a_plan_are_removed_and_tag_notes_are_kept() -> None:
    """A rotation whose plan was removed is restarted, and puts the tags back."""
    storage, store, plan = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    await add_result(store, plan)
    open_page = OpenPage(page=0, after="", last="")
    note = await store.add_tag_note(plan, open_page, {"k": {"team": "legal"}}, "m1")
    await storage.delete(f"{sweep_prefix(SWEEP_ID, 'acme')}sweep.json")
    await recovery_round(store, timedelta(minutes=16))
    assert storage.stored_keys() == [note]
    await recovery_round(store, timedelta(days=9))
    assert storage.stored_keys() == []


async def test_a_plan_under_a_master_key_that_this_worker_lacks_is_left_alone() -> None:
    storage, store, plan = await setting()
    await store.unmark_running(SWEEP_ID, "acme")
    await add_result(store, plan)
    before = storage.stored_keys()
    assert (
        await recovery_round(SweepStore(storage, operator_keys({})), timedelta(days=7))
    ).resumed == []
    assert storage.stored_keys() == before


async def test_a_plan_that_ended_is_read_once_by_a_process() -> None:
    """There are thousands of plans, and many rounds."""
    storage, store, plan = await setting()
    await end(store, plan)
    seen = SeenPlans()
    storage.calls.clear()
    for _ in range(3):
        await recovery_round(store, timedelta(minutes=16), seen)
    assert storage.calls["read"] == 1
    assert seen.ended.keys() == {(SWEEP_ID, "acme")}
    await recovery_round(store, timedelta(days=9), seen)
    await recovery_round(store, timedelta(days=9), seen)
    assert seen.ended == {}


async def test_no_record_is_removed_for_its_age_while_its_provider_is_away() -> None:
    """A key may be disabled for longer than records are kept."""
    provider = FakeProvider(master_key=Secret(bytes(32)))
    storage, _, _ = await setting()
    limited = LimitedMasterKey(provider, concurrency=4, requests_per_s=1000, timeout_s=5)
    store = SweepStore(storage, OperatorKeys({"m1": limited}))
    await store.unmark_running(SWEEP_ID, "acme")
    before = storage.stored_keys()
    provider.failure = KmsUnavailableError("down")
    assert (await recovery_round(store, timedelta(days=9))).resumed == []
    assert storage.stored_keys() == before
