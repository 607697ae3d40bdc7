"""Failures come in pages, those of the sweep that ended it, and no outdated ones (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.status.failures_view import last_successor
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import Failure, PartResult
from tests.unit.keyturn_workers.cli.status_bucket import all_plan, done, plan, sweep_id
from tests.unit.keyturn_workers.status.bucket import Bucket

if TYPE_CHECKING:
    from keyturn_workers.sweep.plan import Plan

_ID = sweep_id(1)
_FAILED = done(1, clean=False)
_OF_ALL: dict[str, Any] = {"request_fields": {"of_all": True}}


async def _fail(bucket: Bucket, of: Plan, page: int, count: int) -> None:
    failures = tuple(Failure(f"p{page}/{n}", "no_usable_wrap") for n in range(count))
    await bucket.store.add_failures(of, page, failures, "m1")


async def _rows(bucket: Bucket, project: str = "acme", *, limit: int = 100) -> list[Any]:
    rows: list[Any] = []
    after: dict[str, Any] = {}
    while True:
        page = await bucket.report("failures", project, sweep_id=_ID, limit=limit, **after)
        assert page.code is None, page
        assert page.failures is not None
        assert len(page.failures) <= limit
        rows += [(row.project, row.key, row.code) for row in page.failures]
        if page.next is None:
            return rows
        after = {"after": page.next}


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
async def test_each_failure_comes_once_whatever_the_size_of_the_pages(limit: int) -> None:
    bucket = Bucket()
    await bucket.add(_FAILED)
    await _fail(bucket, _FAILED, 0, 2)
    await _fail(bucket, _FAILED, 7, 3)
    assert await _rows(bucket, limit=limit) == [
        ("acme", key, "no_usable_wrap") for key in ("p0/0", "p0/1", "p7/0", "p7/1", "p7/2")
    ]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_of_a_sweep_of_all_come_those_of_its_parts(limit: int) -> None:
    bucket = Bucket()
    await bucket.add(all_plan(1, live=("live",)), plan(1, "live", **_OF_ALL))
    await _fail(bucket, plan(1, "live"), 0, 2)
    for project, clean in (("bad", False), ("clean", True), ("worse", False), ("lost", False)):
        await bucket.store.add_part_result(_ID, project, PartResult(Counts(), clean), "m1")
    for project in ("bad", "worse"):
        await bucket.add(done(1, project, clean=False, **_OF_ALL))
        await _fail(bucket, done(1, project), 0, 2)
    bucket.plant(f".keyturn/sweeps/{_ID}/lost/sweep.json", {})
    assert await _rows(bucket, "*", limit=limit) == [
        ("live", "p0/0", "no_usable_wrap"),
        ("live", "p0/1", "no_usable_wrap"),
        ("bad", "p0/0", "no_usable_wrap"),
        ("bad", "p0/1", "no_usable_wrap"),
        ("lost", None, "corrupt_object"),
        ("worse", "p0/0", "no_usable_wrap"),
        ("worse", "p0/1", "no_usable_wrap"),
    ]


async def test_a_part_that_has_ended_clean_meanwhile_hides_no_other() -> None:
    bucket = Bucket()
    await bucket.add(all_plan(1, live=("a", "b")), plan(1, "a", **_OF_ALL), plan(1, "b", **_OF_ALL))
    for project in ("a", "b"):
        await _fail(bucket, plan(1, project), 0, 3)
    page = await bucket.report("failures", sweep_id=_ID, limit=2)
    stored = await bucket.store.read_all(_ID)
    await bucket.store.change(replace(stored.plan, live=("b",)), stored.etag, "m1")
    bucket.reader = bucket.new_reader()
    page = await bucket.report("failures", sweep_id=_ID, limit=9, after=page.next)
    assert [(row.project, row.key) for row in page.failures or ()] == [
        ("b", "p0/0"), ("b", "p0/1"), ("b", "p0/2"),
    ]  # fmt: skip


async def test_a_superseded_sweep_has_the_failures_of_its_successor() -> None:
    bucket, later = Bucket(), done(2, clean=False)
    await bucket.add(replace(_FAILED, successor=sweep_id(2)), later)
    await _fail(bucket, later, 0, 1)
    assert await _rows(bucket) == [("acme", "p0/0", "no_usable_wrap")]
    lost = replace(_FAILED, successor=sweep_id(3))
    bucket = Bucket()
    await bucket.add(lost)
    assert await _rows(bucket) == []
    circle = replace(_FAILED, successor=_ID)
    bucket = Bucket()
    await bucket.add(circle)
    assert (await last_successor(bucket.store, circle)).successor == _ID


async def test_a_forged_record_is_a_row_with_its_code_and_a_foreign_name_none() -> None:
    bucket = Bucket()
    await bucket.add(_FAILED)
    await _fail(bucket, _FAILED, 1, 1)
    folder = f".keyturn/sweeps/{_ID}/acme/failures"
    bucket.plant(f"{folder}/000000-00000000.json", {})
    bucket.plant(f"{folder}/000000-0|0.json", {})
    assert await _rows(bucket, limit=1) == [
        ("acme", None, "corrupt_object"),
        ("acme", "p1/0", "no_usable_wrap"),
    ]


async def test_a_sweep_without_failures_or_records_has_no_rows() -> None:
    bucket = Bucket()
    assert await _rows(bucket) == []
    await bucket.add(done(1))
    assert await _rows(bucket) == []


async def test_a_plan_that_does_not_open_and_a_wrong_position_are_codes() -> None:
    bucket = Bucket()
    bucket.plant(f".keyturn/sweeps/{_ID}/acme/sweep.json", {})
    assert (await bucket.report("failures", "acme", sweep_id=_ID)).code == "corrupt_object"
    for after in ("x", "a|b|c|d", "|||"):
        page = await bucket.report("failures", "acme", sweep_id=_ID, after=after)
        assert page.code == "malformed_request"
