"""One sweep with its progress, and of a sweep of all the parts that matter (SPEC 8.5, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import PartResult
from tests.unit.keyturn_workers.cli.status_bucket import all_plan, done, plan, sweep_id
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.status.bucket import Bucket

if TYPE_CHECKING:
    from keyturn.messages import SweepStatus

_ID = sweep_id(1)


async def _rows(bucket: Bucket, project: str = "*", **more: Any) -> list[SweepStatus]:
    page = await bucket.report("sweep", project, sweep_id=_ID, **more)
    rows = list(page.sweeps or ())
    while page.next is not None:
        page = await bucket.report("sweep", project, sweep_id=_ID, after=page.next, **more)
        rows += page.sweeps or ()
    assert page.code is None
    return rows


async def _of_all(bucket: Bucket, **more: Any) -> None:
    """A sweep of all: one part runs, one ended clean, one not clean, one without a plan."""
    part: dict[str, Any] = {"request_fields": {"of_all": True}}
    await bucket.add(
        all_plan(1, live=("live",), sums=Counts(objects=8), projects=3, **more),
        plan(1, "live", proven=Counts(objects=4), **part),
        done(1, "clean", **part),
        done(1, "failing", clean=False, **part),
    )
    for project, clean in (("clean", True), ("failing", False), ("lost", False)):
        await bucket.store.add_part_result(_ID, project, PartResult(Counts(), clean), "m1")


async def test_a_running_sweep_knows_how_many_objects_there_are() -> None:
    bucket = Bucket()
    await bucket.add(plan(1))
    bucket.put(keyring(), "a", "b", "c")
    (row,) = await _rows(bucket, "acme")
    assert (row.status, row.expected_objects) == ("running", 3)


async def test_the_objects_of_an_ended_sweep_are_not_counted() -> None:
    bucket = Bucket()
    await bucket.add(done(1))
    (row,) = await _rows(bucket, "acme")
    assert (row.clean, row.expected_objects) == (True, None)
    assert bucket.storage.calls["list_page"] == 0


async def test_a_sweep_without_records_has_no_row() -> None:
    assert await _rows(Bucket(), "acme") == []
    assert await _rows(Bucket()) == []


async def test_a_plan_that_does_not_open_is_a_row_with_its_code() -> None:
    bucket = Bucket()
    bucket.plant(f".keyturn/sweeps/{_ID}/acme/sweep.json", {})
    (row,) = await _rows(bucket, "acme")
    assert (row.sweep_id, row.code) == (_ID, "corrupt_object")


async def test_a_sweep_of_all_comes_with_the_parts_that_run_or_are_not_clean() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    rows = await _rows(bucket)
    assert [(row.project, row.status, row.clean) for row in rows] == [
        ("*", "running", None),
        ("live", "running", None),
        ("failing", "done", False),
        ("lost", "failed", None),
    ]
    assert [row.part_of_all for row in rows] == [False, True, True, True]
    assert rows[0].counts is not None
    assert (rows[0].counts.objects, rows[0].parts_ended) == (12, 3)


async def test_no_page_of_parts_repeats_or_loses_one_however_small_it_is() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    projects = [row.project for row in await _rows(bucket)]
    for limit in (1, 2, 3):
        assert [row.project for row in await _rows(bucket, limit=limit)] == projects


async def test_a_part_that_does_not_open_is_a_row_of_its_sweep() -> None:
    bucket = Bucket()
    await bucket.add(all_plan(1, live=("forged",)))
    bucket.plant(f".keyturn/sweeps/{_ID}/forged/sweep.json", {})
    row = (await _rows(bucket))[1]
    assert (row.project, row.code, row.part_of_all) == ("forged", "corrupt_object", True)


async def test_a_sweep_of_all_is_not_taken_for_one_of_a_project_with_its_id() -> None:
    bucket = Bucket()
    await bucket.add(all_plan(1), replace(done(1, "other"), told=False))
    assert [row.project for row in await _rows(bucket)] == ["*"]
    assert [row.project for row in await _rows(bucket, "other")] == ["other"]
