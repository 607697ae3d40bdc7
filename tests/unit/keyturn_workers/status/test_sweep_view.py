"""One sweep with its progress, and of a sweep of all the parts that matter (SPEC 8.5, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyturn.counts import Counts
from keyturn_workers.sweep.record import PartEnd
from tests.unit.keyturn_workers.cli.status_bucket import (
    WALK_ID,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    sweep_id,
)
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.status.bucket import Bucket

if TYPE_CHECKING:
    from keyturn.messages import SweepStatus
    from keyturn_workers.sweep import Origin

_ID = sweep_id(1)


async def _rows(bucket: Bucket, project: str = "*", **more: Any) -> list[SweepStatus]:
    page = await bucket.report("sweep", project, sweep_id=_ID, **more)
    rows = list(page.sweeps or ())
    while page.next is not None:
        page = await bucket.report("sweep", project, sweep_id=_ID, after=page.next, **more)
        rows += page.sweeps or ()
    assert page.code is None
    return rows


async def _of_all(bucket: Bucket, of: Origin | None = None) -> None:
    """A sweep of all: one part runs, one ended clean, one not clean, one failed."""
    of_all = all_record(of or origin(1), open_parts=("live",), sums=Counts(objects=8), projects=3)
    proven = {"proven": Counts(objects=4)}
    await bucket.add(of_all, record(part(1), project="live", round_fields=proven))
    for project, end in {
        "clean": PartEnd(Counts(), clean=True),
        "failing": PartEnd(Counts(failed=2), clean=False),
        "lost": PartEnd(Counts(failed=1), clean=False, code="unknown_project"),
    }.items():
        await bucket.store.add_part_end(WALK_ID, project, end, "m1")


async def test_a_running_sweep_knows_how_many_objects_there_are() -> None:
    bucket = Bucket()
    await bucket.add(record(origin(1)))
    bucket.put(keyring(), "a", "b", "c")
    (row,) = await _rows(bucket, "acme")
    assert (row.status, row.expected_objects) == ("running", 3)


async def test_the_objects_of_an_ended_sweep_are_not_counted() -> None:
    bucket = Bucket()
    await bucket.add(record(done(1)))
    (row,) = await _rows(bucket, "acme")
    assert (row.clean, row.expected_objects) == (True, None)
    assert bucket.storage.calls["list_page"] == 0


async def test_a_sweep_that_no_record_has_is_no_row() -> None:
    bucket = Bucket()
    for records in ((), (record(done(2)), all_record(done(2)))):
        await bucket.add(*records)
        assert await _rows(bucket, "acme") == []
        assert await _rows(bucket) == []


async def test_a_record_that_does_not_open_is_a_row_with_its_code() -> None:
    bucket = Bucket()
    bucket.plant(".keyturn/sweeps/acme.json", {})
    (row,) = await _rows(bucket, "acme")
    assert (row.sweep_id, row.code) == (_ID, "corrupt_object")


async def test_a_sweep_of_all_comes_with_the_parts_that_run_or_are_not_clean() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    rows = await _rows(bucket)
    assert [(row.project, row.status, row.clean, row.code) for row in rows] == [
        ("*", "running", None, None),
        ("live", "running", None, None),
        ("failing", "done", False, None),
        ("lost", "failed", False, "unknown_project"),
    ]
    assert [row.part_of_all for row in rows] == [False, True, True, True]
    assert rows[0].counts is not None
    assert (rows[0].counts.objects, rows[0].parts_ended) == (12, 3)


async def test_a_sweep_of_all_that_waits_for_the_next_walk_has_no_parts_yet() -> None:
    bucket = Bucket()
    await _of_all(bucket, origin(2))
    stored = await bucket.store.read_all()
    waiting = replace(stored.record, origins=(*stored.record.origins, origin(1)))
    assert await bucket.store.change(waiting, stored.etag, "m1")
    assert [(row.project, row.status) for row in await _rows(bucket)] == [("*", "running")]


async def test_no_page_of_parts_repeats_or_loses_one_however_small_it_is() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    projects = [row.project for row in await _rows(bucket)]
    for limit in (1, 2, 3):
        assert [row.project for row in await _rows(bucket, limit=limit)] == projects


async def test_a_part_that_does_not_open_is_a_row_of_its_sweep() -> None:
    bucket = Bucket()
    await bucket.add(all_record(origin(1), open_parts=("forged",)))
    bucket.plant(".keyturn/sweeps/forged.json", {})
    row = (await _rows(bucket))[1]
    assert (row.project, row.code, row.part_of_all) == ("forged", "corrupt_object", True)


async def test_a_part_is_found_by_its_project_while_it_runs_and_after_it_ended() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    for project, status in {"live": "running", "failing": "done", "lost": "failed"}.items():
        (row,) = await _rows(bucket, project)
        assert (row.project, row.status, row.part_of_all) == (project, status, True)
    assert await _rows(bucket, "other") == []


async def test_a_sweep_of_all_is_not_taken_for_one_of_a_project_with_its_id() -> None:
    bucket = Bucket()
    await bucket.add(all_record(failed(1, "x")), record(done(1), project="other"))
    assert [row.project for row in await _rows(bucket)] == ["*"]
    (row,) = await _rows(bucket, "other")
    assert (row.project, row.part_of_all) == ("other", False)
