"""Of many parts only those are read that run or are not clean (SPEC 8.5, 16.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.counts import Counts
from keyturn.errors import StorageUnavailableError
from keyturn_workers.status import sweep_parts
from keyturn_workers.status.rows import Sweep
from keyturn_workers.status.sweep_parts import SweepParts
from keyturn_workers.sweep.record import PartEnd
from tests.unit.keyturn_workers.cli.status_bucket import (
    WALK_ID,
    all_record,
    done,
    origin,
    part,
    record,
    sweep_id,
)
from tests.unit.keyturn_workers.status.bucket import AT_ONCE, Bucket


class _Swept:
    """A sweep of all with some parts, and what reads them."""

    def __init__(self, *open_parts: str) -> None:
        self.bucket = Bucket()
        self.parts = SweepParts(self.bucket.storage, self.bucket.store, AT_ONCE)
        self.sweep = Sweep(all_record(origin(1), open_parts=open_parts), origin(1))
        self.clean = 0

    async def end(self, *projects: str, clean: bool = True) -> None:
        for project in projects:
            end = PartEnd(Counts(), clean)
            await self.bucket.store.add_part_end(WALK_ID, project, end, "m1")

    async def projects(self, limit: int = 100) -> list[str]:
        found, position, self.clean = [], "", 0
        while True:
            parts = await self.parts.after(self.sweep, position, limit)
            found += [each.row.project for each in parts.parts]
            self.clean += parts.clean
            if parts.next is None:
                return found
            position = parts.next


async def test_ends_are_read_once() -> None:
    swept = _Swept()
    await swept.end(*(f"p{n:02}" for n in range(40)))
    await swept.end("late", clean=False)
    reads = swept.bucket.storage.calls["read"]
    assert await swept.projects() == ["late"]
    assert swept.bucket.storage.calls["read"] == reads + 41
    assert swept.clean == 40
    assert await swept.projects() == ["late"]
    assert swept.bucket.storage.calls["read"] == reads + 41


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
    await swept.bucket.add(record(part(1)))
    await swept.end("acme", clean=False)
    assert await swept.projects() == ["acme"]


async def test_of_the_parts_that_run_only_those_of_the_page_are_read() -> None:
    names = [f"p{n:02}" for n in range(30)]
    swept = _Swept(*names)
    parts = await swept.parts.after(swept.sweep, "open/p09", 5)
    assert [each.row.project for each in parts.parts] == names[10:15]
    assert swept.bucket.storage.calls["read"] == 5
    running = await swept.parts.open(swept.sweep)
    assert [each.row.project for each in running] == names
    reads = swept.bucket.storage.calls["read"]
    parts = await swept.parts.after(swept.sweep, "", 5, running)
    assert parts.next == "open/p04"
    assert swept.bucket.storage.calls["read"] == reads


async def test_a_forged_end_is_not_clean_and_a_foreign_name_is_passed() -> None:
    swept = _Swept()
    folder = f".keyturn/sweeps/*/{WALK_ID}/"
    swept.bucket.plant(f"{folder}acme.json", {})
    swept.bucket.plant(f"{folder}No Project.json", {})
    assert await swept.projects() == ["acme"]


async def test_the_parts_of_a_sweep_of_all_that_ended_are_still_there() -> None:
    swept = _Swept("late")
    await swept.end("acme", "late", clean=False)
    ended = done(1)
    assert ended.end is not None
    ended = replace(ended, end=replace(ended.end, round_id=WALK_ID))
    swept.sweep = Sweep(all_record(ended), ended)
    assert await swept.projects() == ["acme", "late"]
    await swept.bucket.add(swept.sweep.record)
    found = await swept.parts.find_ended(sweep_id(1), "acme")
    assert found is not None
    assert (found.row.project, found.row.clean) == ("acme", False)
    assert await swept.parts.find_ended(sweep_id(1), "acm") is None
    assert await swept.parts.find_ended(sweep_id(2), "acme") is None


async def test_an_outage_of_the_storage_is_raised() -> None:
    swept = _Swept("acme")
    await swept.bucket.add(record(done(1)))
    swept.bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await swept.projects()
