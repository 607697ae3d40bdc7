"""A report is a page, or the reason why there is none (SPEC 16.1)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.messages import StatusReported, StatusView
from keyturn_workers.errors import RefusedError
from keyturn_workers.status import reader as reader_module
from keyturn_workers.status.reader import READ_AT_ONCE
from tests.unit.keyturn_workers.cli.status_bucket import sweep_id
from tests.unit.keyturn_workers.factories import keyring, rotated
from tests.unit.keyturn_workers.status.bucket import REQUEST_ID, Bucket, request


@pytest.fixture
async def bucket() -> Bucket:
    made = Bucket()
    await made.enroll(keyring("acme"), keyring("other"))
    return made


async def test_a_report_repeats_what_was_requested(bucket: Bucket) -> None:
    report = await bucket.report("sweep", "acme", sweep_id=sweep_id(1), limit=7)
    assert (report.request_id, report.view, report.project) == (REQUEST_ID, "sweep", "acme")
    assert (report.sweep_id, report.sweeps, report.next) == (sweep_id(1), (), None)


async def test_a_report_counts_what_matches_and_what_there_is(bucket: Bucket) -> None:
    for page, names in ((1, ["acme"]), (2, ["other"]), (3, [])):
        report = await bucket.report("projects", limit=1, page=page)
        assert [row.project for row in report.projects or ()] == names
        assert (report.page, report.total, report.of_all) == (page, 2, 2)
        assert report.is_complete
    wanted = {"text": "othe"}
    report = await bucket.report("projects", filter=wanted)
    assert (report.total, report.of_all) == (1, 2)
    bucket.replace(rotated(keyring("acme")))
    changed = await bucket.report("projects", "acme")
    assert [row.generation for row in changed.projects or ()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "detail"),
    [
        (StorageUnavailableError("no answer"), "no answer"),
        (RefusedError("AccessDenied"), "the storage refuses: RefusedError"),
        (ZeroDivisionError("a bug"), "internal failure: ZeroDivisionError"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_cannot_be_read_is_a_report_with_its_code(
    bucket: Bucket, failure: Exception, detail: str
) -> None:
    bucket.storage.fail_next("list_entries", failure)
    report = await bucket.report("projects")
    assert (report.code, report.detail) == ("storage_unavailable", detail)
    assert (report.projects, report.total) == (None, None)
    assert (await bucket.report("projects")).code is None


async def test_the_time_of_a_report_is_before_what_it_read(bucket: Bucket) -> None:
    """A change that comes while it is read is newer than the report."""
    times = iter(datetime(2026, 11, 24, 10, tzinfo=UTC) + timedelta(hours=n) for n in range(9))
    asked: list[datetime] = []

    def now() -> datetime:
        asked.append(next(times))
        return asked[-1]

    reader = bucket.new_reader(now=now)
    read: list[int] = []

    async def note() -> None:
        read.append(len(asked))

    bucket.storage.before_next("list_entries", note)
    report = await reader.report(request("objects"))
    assert read == [1]
    assert report.at == "2026-11-24T10:00:00.000000Z"


async def test_a_process_reads_few_reports_at_once_and_refuses_what_is_too_many(
    bucket: Bucket,
) -> None:
    go_on, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def wait() -> None:
        begun.release()
        await go_on.wait()

    for _ in range(9):
        bucket.storage.before_next("list_entries", wait)
    reader = bucket.new_reader(max_waiting=3)

    async def report() -> StatusReported:
        return await reader.report(request("objects"))

    tasks = [asyncio.create_task(report()) for _ in range(READ_AT_ONCE + 3)]
    for _ in range(READ_AT_ONCE):
        await begun.acquire()
    await asyncio.sleep(0)
    assert begun.locked()  # none beyond these
    assert (await report()).code == "too_many_requests"
    go_on.set()
    assert [each.code for each in await asyncio.gather(*tasks)] == [None] * 5
    assert (await report()).code is None


async def test_a_report_that_is_canceled_gives_its_place_back(bucket: Bucket) -> None:
    reader, begun = bucket.new_reader(max_waiting=0), asyncio.Semaphore(0)

    async def wait() -> None:
        begun.release()
        await asyncio.Event().wait()

    for _ in range(READ_AT_ONCE):
        bucket.storage.before_next("list_entries", wait)
    tasks = [asyncio.create_task(reader.report(request("objects"))) for _ in range(READ_AT_ONCE)]
    for _ in range(READ_AT_ONCE):
        await begun.acquire()
    assert (await reader.report(request("objects"))).code == "too_many_requests"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await reader.report(request("objects"))).code is None


def test_every_view_has_its_field() -> None:
    assert reader_module.ROWS_OF.keys() == {*get_args(StatusView)}
    assert {*reader_module.ROWS_OF.values()} < {*StatusReported.model_fields}
