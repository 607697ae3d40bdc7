"""Of many parts only those are read that run or are not clean (SPEC 8.5, 16.1)."""

from __future__ import annotations

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.status import sweep_parts
from keyturn_workers.status.sweep_parts import SweepParts
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import AllPlan, PartResult
from tests.unit.keyturn_workers.cli.status_bucket import all_plan, done, plan, sweep_id
from tests.unit.keyturn_workers.status.bucket import AT_ONCE, KEYS, Bucket

_ID = sweep_id(1)


class _Swept:
    """A sweep of all with some parts, and what reads them."""

    def __init__(self, *live: str) -> None:
        self.bucket = Bucket()
        storage, store = self.bucket.storage, self.bucket.store
        self.parts = SweepParts(storage, KEYS, store, AT_ONCE)
        self.plan: AllPlan = all_plan(1, live=live)

    async def end(self, *projects: str, clean: bool = True) -> None:
        for project in projects:
            result = PartResult(Counts(), clean)
            await self.bucket.store.add_part_result(_ID, project, result, "m1")

    async def projects(self, limit: int = 100) -> list[str]:
        found, position = [], ""
        while True:
            parts = await self.parts.after(self.plan, position, limit)
            found += [part.project for part in parts.parts]
            if parts.next is None:
                return found
            position = parts.next


async def test_results_of_clean_parts_are_read_once() -> None:
    swept = _Swept()
    await swept.end(*(f"p{n:02}" for n in range(40)))
    await swept.end("late", clean=False)
    reads = swept.bucket.storage.calls["read"]
    assert await swept.projects() == ["late"]
    assert swept.bucket.storage.calls["read"] == reads + 41 + 1
    assert await swept.projects() == ["late"]
    assert swept.bucket.storage.calls["read"] == reads + 41 + 2


async def test_many_parts_that_are_not_clean_come_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_parts, "BATCH", 4)
    monkeypatch.setattr(sweep_parts, "PAGE_KEYS", 6)
    swept = _Swept("b", "a")
    names = [f"p{n:02}" for n in range(13)]
    await swept.end(*names, clean=False)
    for limit in (1, 3, 100):
        assert await swept.projects(limit) == ["a", "b", *names]


async def test_a_part_that_runs_is_no_ended_one_too() -> None:
    """A part begins again where its end could not be recorded."""
    swept = _Swept("acme")
    await swept.bucket.add(plan(1, request_fields={"of_all": True}))
    await swept.end("acme", clean=False)
    assert await swept.projects() == ["acme"]


async def test_of_the_parts_that_run_only_those_of_the_page_are_read() -> None:
    names = [f"p{n:02}" for n in range(30)]
    swept = _Swept(*names)
    parts = await swept.parts.after(swept.plan, "live/p09", 5)
    assert [part.project for part in parts.parts] == names[10:15]
    assert swept.bucket.storage.calls["read"] == 5
    live = await swept.parts.live(swept.plan)
    assert [part.project for part in live] == names
    reads = swept.bucket.storage.calls["read"]
    assert (await swept.parts.after(swept.plan, "", 5, live)).next == "live/p04"
    assert swept.bucket.storage.calls["read"] == reads


async def test_a_forged_result_is_not_clean_and_a_foreign_name_is_passed() -> None:
    swept = _Swept()
    folder = f".keyturn/sweeps/{_ID}/_all/done/"
    swept.bucket.plant(f"{folder}acme.json", {})
    swept.bucket.plant(f"{folder}No Project.json", {})
    assert await swept.projects() == ["acme"]


async def test_an_outage_of_the_storage_is_raised() -> None:
    swept = _Swept("acme")
    await swept.bucket.add(done(1))
    swept.bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await swept.projects()
