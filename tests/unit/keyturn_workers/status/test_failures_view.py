"""Failures come in pages: those of the round that answers the sweep (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn_workers.sweep.record import Failure, PartEnd
from tests.unit.keyturn_workers.cli.status_bucket import (
    ROUND_ID,
    WALK_ID,
    all_record,
    done,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)
from tests.unit.keyturn_workers.status.bucket import Bucket

_ID = sweep_id(1)
_FAILED = record(done(1, clean=False))
_ROUND = round_id(1)


async def _fail(
    bucket: Bucket, page: int, count: int, *, project: str = "acme", of: str = _ROUND
) -> None:
    failures = tuple(Failure(f"p{page}/{n}", "no_usable_wrap") for n in range(count))
    await bucket.store.add_failures(project, of, page, failures, "m1")


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
    await _fail(bucket, 0, 2)
    await _fail(bucket, 7, 3)
    assert await _rows(bucket, limit=limit) == [
        ("acme", key, "no_usable_wrap") for key in ("p0/0", "p0/1", "p7/0", "p7/1", "p7/2")
    ]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_of_a_sweep_of_all_come_those_of_its_parts(limit: int) -> None:
    bucket = Bucket()
    await bucket.add(
        all_record(origin(1), open_parts=("forged", "live")), record(part(1), project="live")
    )
    bucket.plant(".keyturn/sweeps/forged.json", {})
    await _fail(bucket, 0, 2, project="live", of=ROUND_ID)
    for project, clean in (("bad", False), ("clean", True), ("worse", False), ("lost", False)):
        end = PartEnd(Counts(), clean, round_id=None if project == "lost" else _ROUND)
        await bucket.store.add_part_end(WALK_ID, project, end, "m1")
        await _fail(bucket, 0, 2, project=project)
    assert await _rows(bucket, "*", limit=limit) == [
        ("forged", None, "corrupt_object"),
        ("live", "p0/0", "no_usable_wrap"),
        ("live", "p0/1", "no_usable_wrap"),
        ("bad", "p0/0", "no_usable_wrap"),
        ("bad", "p0/1", "no_usable_wrap"),
        ("worse", "p0/0", "no_usable_wrap"),
        ("worse", "p0/1", "no_usable_wrap"),
    ]
    assert await _rows(bucket, "bad", limit=limit) == [
        ("bad", "p0/0", "no_usable_wrap"),
        ("bad", "p0/1", "no_usable_wrap"),
    ]


async def test_a_part_that_has_ended_clean_meanwhile_hides_no_other() -> None:
    bucket = Bucket()
    of_all = all_record(origin(1), open_parts=("a", "b"))
    await bucket.add(of_all, record(part(1), project="a"), record(part(1), project="b"))
    for project in ("a", "b"):
        await _fail(bucket, 0, 3, project=project, of=ROUND_ID)
    page = await bucket.report("failures", sweep_id=_ID, limit=2)
    stored = await bucket.store.read_all()
    await bucket.store.change(all_record(origin(1), open_parts=("b",)), stored.etag, "m1")
    bucket.reader = bucket.new_reader()
    page = await bucket.report("failures", sweep_id=_ID, limit=9, after=page.next)
    assert [(row.project, row.key) for row in page.failures or ()] == [
        ("b", "p0/0"), ("b", "p0/1"), ("b", "p0/2"),
    ]  # fmt: skip


async def test_the_failures_are_those_of_the_round_that_answers_the_sweep() -> None:
    """Those of an earlier round are outdated, also if a new one begins between two pages."""
    bucket, running = Bucket(), record(done(2), origin(1))
    await bucket.add(running)
    await _fail(bucket, 0, 1, of=round_id(2))
    await _fail(bucket, 0, 2, of=ROUND_ID)
    page = await bucket.report("failures", "acme", sweep_id=_ID, limit=1)
    assert [row.key for row in page.failures or ()] == ["p0/0"]
    assert running.round is not None
    # A round that sorts before the earlier one, and one that sorts after it.
    for later in (WALK_ID, "00000000-0000-4000-8000-000000000000"):
        await _fail(bucket, 1, 1, of=later)
        stored = await bucket.store.read("acme")
        again = replace(running, round=replace(running.round, id=later))
        assert await bucket.store.change(again, stored.etag, "m1")
        report = await bucket.report("failures", "acme", sweep_id=_ID, after=page.next)
        assert [row.key for row in report.failures or ()] == ["p1/0"]


async def test_a_sweep_that_waits_for_a_round_has_no_failures_yet() -> None:
    bucket, running = Bucket(), record(origin(2))
    await bucket.add(replace(running, origins=(*running.origins, origin(1))))
    await _fail(bucket, 0, 1, of=ROUND_ID)
    assert await _rows(bucket) == []


async def test_a_forged_record_is_a_row_with_its_code_and_a_foreign_name_none() -> None:
    bucket = Bucket()
    await bucket.add(_FAILED)
    await _fail(bucket, 1, 1)
    folder = f".keyturn/sweeps/acme/{_ROUND}/failures"
    bucket.plant(f"{folder}/00000000.json", {})
    bucket.plant(f"{folder}/0000000|.json", {})
    assert await _rows(bucket, limit=1) == [
        ("acme", None, "corrupt_object"),
        ("acme", "p1/0", "no_usable_wrap"),
    ]


async def test_a_sweep_without_failures_or_a_record_has_no_rows() -> None:
    bucket = Bucket()
    assert await _rows(bucket) == []
    await bucket.add(record(done(1)))
    assert await _rows(bucket) == []


async def test_a_record_that_does_not_open_and_a_wrong_position_are_codes() -> None:
    bucket = Bucket()
    bucket.plant(".keyturn/sweeps/acme.json", {})
    assert (await bucket.report("failures", "acme", sweep_id=_ID)).code == "corrupt_object"
    for after in ("x", "a|b|c|d", "|||"):
        page = await bucket.report("failures", "acme", sweep_id=_ID, after=after)
        assert page.code == "malformed_request"
