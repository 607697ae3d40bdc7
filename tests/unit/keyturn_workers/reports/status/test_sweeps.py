"""One sweep with its parts, failures and evidence, a page at a time (SPEC 8.5, 15.1, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.counts import Counts
from keyturn.crypto import SigningKey
from keyturn.errors import StorageUnavailableError
from keyturn.evidence import digest, parse, sign
from keyturn.identifiers import evidence_s3_key
from keyturn_workers.core.errors import ArchivedError
from keyturn_workers.core.sweep_record import Failure, PartEnd
from tests.unit.keyturn.evidence.shared import statement
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.reports.status.bucket import (
    DEPLOYMENT,
    EVENT_KEY,
    ROUND_ID,
    WALK_ID,
    Bucket,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)

if TYPE_CHECKING:
    from keyturn.messages import EvidenceStatus, StatusReported, SweepStatus
    from keyturn_workers.core.sweep_record import Origin

_ID = sweep_id(1)
_OTHER_KEY: Final = SigningKey.from_seed(bytes([9]) * 32)


async def _report(bucket: Bucket, view: Any, project: str = "*", **more: Any) -> StatusReported:
    report = await bucket.report(view, project, sweep_id=_ID, **{"page": 1} | more)
    assert report.code is None, report
    return report


async def _rows(bucket: Bucket, project: str = "*", **more: Any) -> list[SweepStatus]:
    return list((await _report(bucket, "sweep", project, **more)).sweeps or ())


async def _of_all(bucket: Bucket, of: Origin | None = None) -> None:
    """A sweep of all: one part runs, one ended clean, one not clean, one failed."""
    of_all = all_record(of or origin(1), open_parts=("live",), sums=Counts(objects=8), projects=3)
    proven = {"proven": Counts(objects=4)}
    await bucket.add(of_all, record(part(1), project="live", round_fields=proven))
    for project, end in {
        "clean": PartEnd(Counts(), clean=True),
        "failing": PartEnd(Counts(failed=2), clean=False, round_id=ROUND_ID),
        "lost": PartEnd(Counts(failed=1), clean=False, code="unknown_project"),
    }.items():
        await bucket.store.add_part_end(WALK_ID, project, end, "m1")


async def test_a_running_sweep_knows_how_many_objects_there_are() -> None:
    bucket = Bucket()
    await bucket.add(record(origin(1)))
    bucket.put(keyring(), "a", "b", "c")
    (row,) = await _rows(bucket, "acme")
    assert (row.status, row.expected_objects) == ("running", 3)
    listings = bucket.storage.calls["list_page"]
    await _rows(bucket, "acme")
    assert bucket.storage.calls["list_page"] == listings


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
    report = await _report(bucket, "sweep")
    rows = report.sweeps or ()
    assert [(row.project, row.status, row.clean, row.code) for row in rows] == [
        ("*", "running", None, None),
        ("lost", "failed", False, "unknown_project"),
        ("failing", "done", False, None),
        ("live", "running", None, None),
    ]
    assert [row.part_of_all for row in rows] == [False, True, True, True]
    assert (report.total, report.of_all, report.is_complete) == (3, 3, True)
    assert rows[0].counts is not None
    assert (rows[0].counts.objects, rows[0].parts_ended) == (12, 3)


async def test_each_page_of_parts_begins_with_the_sweep_itself() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    for page, project in enumerate(("lost", "failing", "live"), 1):
        rows = await _rows(bucket, page=page, limit=1)
        assert [row.project for row in rows] == ["*", project]


async def test_a_sweep_of_all_that_waits_for_the_next_walk_has_no_parts_yet() -> None:
    bucket = Bucket()
    await _of_all(bucket, origin(2))
    stored = await bucket.store.read_all()
    waiting = replace(stored.record, origins=(*stored.record.origins, origin(1)))
    assert await bucket.store.change(waiting, stored.etag, "m1")
    assert [(row.project, row.status) for row in await _rows(bucket)] == [("*", "running")]


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


# Failures.


async def _fail(
    bucket: Bucket, page: int, count: int, *, project: str = "acme", of: str | None = None
) -> None:
    failures = tuple(Failure(f"p{page}/{n}", "no_usable_wrap") for n in range(count))
    await bucket.store.add_failures(project, of or round_id(1), page, failures, "m1")


async def _failures(bucket: Bucket, project: str = "acme", **more: Any) -> list[tuple[Any, ...]]:
    rows = (await _report(bucket, "failures", project, **more)).failures or ()
    return [(row.project, row.key, row.code) for row in rows]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
async def test_each_failure_comes_once_whatever_the_size_of_the_pages(limit: int) -> None:
    bucket = Bucket()
    await bucket.add(record(done(1, clean=False)))
    await _fail(bucket, 0, 2)
    await _fail(bucket, 7, 3)
    rows = [row for page in range(1, 6) for row in await _failures(bucket, page=page, limit=limit)]
    assert rows == [
        ("acme", key, "no_usable_wrap") for key in ("p0/0", "p0/1", "p7/0", "p7/1", "p7/2")
    ]


async def test_failures_are_filtered_and_counted_by_code_whatever_the_filter() -> None:
    bucket = Bucket()
    await bucket.add(record(done(1, clean=False)))
    await _fail(bucket, 0, 2)
    gone = (Failure("q", "corrupt_object"),)
    await bucket.store.add_failures("acme", round_id(1), 3, gone, "m1")
    report = await _report(bucket, "failures", "acme", filter={"code": "corrupt_object"})
    assert [row.key for row in report.failures or ()] == ["q"]
    assert (report.total, report.of_all, report.is_complete) == (1, 3, True)
    assert [(each.code, each.count) for each in report.codes or ()] == [
        ("no_usable_wrap", 2),
        ("corrupt_object", 1),
    ]


async def test_only_failures_of_the_round_that_answers_count() -> None:
    bucket = Bucket()
    await bucket.add(record(done(1, clean=False)))
    await _fail(bucket, 0, 1, of=ROUND_ID)
    assert await _failures(bucket) == []


async def test_of_a_sweep_of_all_the_failures_are_those_of_its_parts() -> None:
    bucket = Bucket()
    await _of_all(bucket)
    bucket.plant(".keyturn/sweeps/live.json", {})
    await _fail(bucket, 0, 1, project="failing", of=ROUND_ID)
    assert await _failures(bucket, "*") == [
        ("live", None, "corrupt_object"),
        ("failing", "p0/0", "no_usable_wrap"),
    ]
    assert await _failures(bucket, "failing") == [("failing", "p0/0", "no_usable_wrap")]


async def test_a_record_of_failures_that_does_not_open_is_a_failure_with_its_code() -> None:
    bucket = Bucket()
    await bucket.add(record(done(1, clean=False)))
    bucket.plant(f".keyturn/sweeps/acme/{round_id(1)}/failures/00000000.json", {})
    assert await _failures(bucket) == [("acme", None, "corrupt_object")]


# Evidence.


def _envelope(
    number: int, key: SigningKey = EVENT_KEY, *, deployment: str = DEPLOYMENT, **more: Any
) -> bytes:
    fields: dict[str, Any] = {"sweep_id": sweep_id(number), "generation": number} | more
    return sign(statement(deployment=deployment, **fields), key)


def _put(bucket: Bucket, number: int, envelope: bytes) -> None:
    bucket.plant(evidence_s3_key("acme", number, sweep_id(number)), {}, envelope)


async def _evidence(bucket: Bucket, **more: Any) -> list[EvidenceStatus]:
    page = await bucket.report("evidence", "acme", **more)
    assert page.code is None
    return list(page.evidence_files or ())


async def test_evidence_comes_as_stored_with_its_digest_and_its_time() -> None:
    bucket, envelope = Bucket(), _envelope(2)
    _put(bucket, 2, envelope)
    (row,) = await _evidence(bucket)
    assert (row.envelope, row.digest, row.code) == (envelope.decode(), digest(envelope), None)
    assert (row.generation, row.sweep_id) == (2, sweep_id(2))
    assert row.at == parse(envelope).proof.proven_to


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (b"junk", "malformed"),
        (_envelope(2, _OTHER_KEY), "unknown_key"),
        (_envelope(2, deployment="elsewhere"), "foreign"),
        (_envelope(3), "malformed"),  # a genuine file at the path of another one
        (_envelope(2).replace(b'"sig":"', b'"sig":"AAAA'), "forged"),
    ],
    ids=["junk", "unknown key", "foreign", "moved", "damaged"],
)
async def test_what_does_not_verify_is_a_row_without_its_content(
    envelope: bytes, code: str
) -> None:
    bucket = Bucket()
    _put(bucket, 2, envelope)
    (row,) = await _evidence(bucket)
    assert (row.code, row.envelope, row.digest) == (code, None, digest(envelope))
    assert (row.generation, row.sweep_id) == (2, sweep_id(2))


async def test_an_archived_file_is_a_row_and_a_lost_one_or_a_foreign_name_none() -> None:
    bucket = Bucket()
    _put(bucket, 2, _envelope(2))
    bucket.plant(".keyturn/evidence/acme/notes.txt", {}, b"x")
    bucket.storage.fail_next("read", ArchivedError("InvalidObjectState"))
    assert [row.code for row in await _evidence(bucket)] == ["archived_object"]

    async def remove() -> None:
        await bucket.storage.delete(evidence_s3_key("acme", 2, sweep_id(2)))

    bucket.storage.before_next("read", remove)
    assert await _evidence(bucket) == []


async def test_a_page_reads_only_its_own_files() -> None:
    bucket = Bucket()
    for number in range(1, 21):
        _put(bucket, number, _envelope(number))
    reads = bucket.storage.calls["read"]
    pages = [await bucket.report("evidence", "acme", page=page, limit=7) for page in (1, 2, 3)]
    assert [len(page.evidence_files or ()) for page in pages] == [7, 7, 6]
    assert {page.total for page in pages} == {20}
    assert bucket.storage.calls["read"] == reads + 20
    rows = [row for page in pages for row in page.evidence_files or ()]
    assert sorted(row.generation for row in rows) == list(range(1, 21))


async def test_an_outage_of_the_storage_is_a_code() -> None:
    bucket = Bucket()
    _put(bucket, 2, _envelope(2))
    bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    assert (await bucket.report("evidence", "acme")).code == "storage_unavailable"
