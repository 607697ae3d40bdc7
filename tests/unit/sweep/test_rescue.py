"""Sweeps that lost their messages go on; records of long ago go (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from contracts.names import sweep_folder
from contracts.sealing import Secret
from workers.storage import Headers
from workers.storage.memory import MemoryStorage
from workers.sweep.plan import Ask, Plan, State
from workers.sweep.rescue import rescue
from workers.sweep.store import SweepStore

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
OTHER_ID = "2f6c9a0e-2222-4222-8222-222222222222"
STILL, KEEP = timedelta(minutes=15), timedelta(days=8)


class Role:
    """Notes whom it was to hurry."""

    def __init__(self) -> None:
        self.hurried: list[tuple[str, str]] = []

    async def hurry(self, sweep_id: str, project: str) -> None:
        self.hurried.append((sweep_id, project))


async def setting(sweep_id: str = SWEEP_ID) -> tuple[MemoryStorage, SweepStore, Plan]:
    storage = MemoryStorage()
    store = SweepStore(storage, {"m1": Secret(bytes(32))})
    now = datetime.now(UTC)
    state = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
    plan = Plan(Ask("sweep", sweep_id, "acme", ""), state, now, now)
    await store.mark_running(plan.ask)
    assert await store.create(plan, "m1")
    return storage, store, plan


async def look(store: SweepStore, later: timedelta) -> Role:
    role = Role()
    await rescue(
        store,
        cast("Any", role),
        still_for=STILL,
        keep_for=KEEP,
        now=datetime.now(UTC) + later,
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
    await store.mark_running(Ask("sweep", OTHER_ID, "acme", ""))
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
