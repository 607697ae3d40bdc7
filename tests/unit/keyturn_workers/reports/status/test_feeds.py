"""Workers, queues and the audit trail are what the streams of the broker say (SPEC 15.3, 16.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import pytest

from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn.messages import QueueStatus
from keyturn_workers.reports.status import audit, feeds, workers
from keyturn_workers.reports.status.audit import AuditBook
from keyturn_workers.reports.status.feeds import BrokerFeeds, StreamFollower
from keyturn_workers.reports.status.workers import QueueDepth, WorkerBook
from tests.unit.keyturn_workers.reports.status.messages import (
    DEPLOYMENT,
    KEY,
    SIGNATURES,
    Clock,
    audit_record,
    chain,
    queue_report,
    stream_record,
    text,
    uid,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from keyturn.messages import WorkerReported
    from keyturn.publisher.event_stream import StreamRecord


class _Streams:
    """Streams in memory, each followed forever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: dict[str, list[StreamRecord]] = {}
        self.problem: str | None = None
        self.starts: list[Any] = []
        self.closed = 0
        self.is_ending, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        monkeypatch.setattr(feeds, "follow", self.follow)
        monkeypatch.setattr(feeds, "last_offset", self.last_offset)
        monkeypatch.setattr(feeds, "_SILENCE_S", 0.01)
        monkeypatch.setattr(feeds, "_FIRST_SILENCE_S", 0.01)

    async def last_offset(self, _connection: object, stream: str) -> int | None:
        records = self.records.get(stream)
        return records[-1].offset if records else None

    async def follow(
        self, _connection: object, start: Any, stream: str, **_: Any
    ) -> AsyncGenerator[StreamRecord, None]:
        if self.problem is not None:
            raise EventsUnavailableError(self.problem)
        self.starts.append(start)
        try:
            for record in self.records.get(stream, ()):
                yield record
            await asyncio.Event().wait()
        finally:
            self.is_ending.set()
            await self.may_end.wait()
            self.closed += 1


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> _Streams:
    return _Streams(monkeypatch)


def _feeds(clock: Clock | None = None) -> BrokerFeeds:
    broker: Any = "amqp://nobody@localhost:1/"
    return BrokerFeeds(broker, DEPLOYMENT, [KEY.verify_key()], clock or Clock(30))


async def test_reports_are_read_from_an_hour_ago_and_forged_ones_are_passed_over(
    streams: _Streams,
) -> None:
    streams.records["keyturn.workers"] = [
        stream_record(0, worker(0, 1)),
        stream_record(1, worker(1, 2), forged=True),
    ]
    clock = Clock(30)
    read = _feeds(clock)
    assert await read.read_workers(None)
    assert [row.host for row in read.workers.rows()] == ["node-1"]
    assert (clock.now - streams.starts[0]).total_seconds() == 3600
    assert await read.read_workers(None)
    assert len(streams.starts) == 1
    await read.close()
    assert streams.closed == 1


async def test_a_question_does_not_wait_longer_than_it_is_told(streams: _Streams) -> None:
    streams.records["keyturn.audit"] = chain(3)
    read = _feeds()
    assert not await read.read_audit(0)
    assert await read.read_audit(None)
    assert [row.counter for row in read.audit.rows()] == [3, 2, 1]
    assert streams.starts == [0]
    await read.close()


async def test_a_stream_that_cannot_be_read_is_the_answer_and_is_tried_again(
    streams: _Streams,
) -> None:
    streams.problem = "the broker is away"
    read = _feeds()
    with pytest.raises(StorageUnavailableError, match="away"):
        await read.read_workers(None)
    streams.problem = None
    assert await read.read_workers(None)
    await read.close()


async def test_a_stream_that_nobody_asks_about_is_followed_no_longer(streams: _Streams) -> None:
    read = _feeds()
    read._of_workers._followed_for_s = 0.05
    await read.read_workers(None)
    task = read._of_workers._task
    assert task is not None
    await asyncio.wait({task})
    assert streams.closed == 1
    assert await read.read_workers(None)
    await read.close()


async def test_a_question_while_the_following_ends_is_answered_by_what_was_read(
    streams: _Streams,
) -> None:
    streams.records["keyturn.workers"] = [stream_record(0, worker(0, 1))]
    streams.may_end.clear()
    rows: list[StreamRecord] = []
    follower = StreamFollower(
        "amqp://nobody@localhost:1/",
        "keyturn.workers",
        _from_first,
        lambda: rows.append,
        followed_for_s=0.05,
    )
    assert await follower.wait(None)
    await streams.is_ending.wait()
    assert await follower.wait(None)
    assert len(rows) == 1
    streams.may_end.set()
    await follower.close()


async def _from_first(_connection: object) -> Literal["first"]:
    return "first"


def _book(*reports: WorkerReported, now: float = 0) -> WorkerBook:
    book = WorkerBook(Clock(now))
    for report in reports:
        book.apply(report)
    return book


@pytest.mark.parametrize(
    ("report", "now", "is_missing"),
    [
        (worker(0), 44, False),
        (worker(0), 46, True),
        (worker(0, is_stopping=True), 100, False),
        (worker(0), 901, None),  # forgotten
    ],
)
def test_a_worker_is_missing_after_three_intervals_and_forgotten_later(
    report: WorkerReported, now: float, is_missing: bool | None
) -> None:
    rows = _book(report, now=now).rows()
    assert [row.is_missing for row in rows] == ([] if is_missing is None else [is_missing])


def test_an_older_report_changes_nothing() -> None:
    (row,) = _book(worker(15, version="new"), worker(0, version="old"), now=20).rows()
    assert (row.version, row.as_of) == ("new", text(15))


def test_a_report_that_is_dated_ahead_does_not_hide_what_follows_for_long() -> None:
    (row,) = _book(worker(86400), now=0).rows()
    assert row.as_of == text(300)


def test_rates_come_from_the_two_newest_reports() -> None:
    served = (0, 10, 40)
    reports = [worker(15 * n, queues=(queue_report(served=s),)) for n, s in enumerate(served)]
    assert _book(*reports, now=31).queues({})[0].served_per_s == 2.0
    assert _book(reports[0], now=1).queues({})[0].served_per_s is None
    # A process that began anew has another id; one that counts down is none.
    assert _book(reports[2], worker(45), now=46).queues({})[0].served_per_s == 0.0


def test_a_queue_shows_depth_retries_dead_letters_and_the_age_of_its_oldest() -> None:
    book = _book(worker(0), now=1)
    depths = {
        "keyturn.upload": QueueDepth(5, 1),
        "keyturn.upload.retry.5s": QueueDepth(2, 0),
        "keyturn.upload.dead": QueueDepth(3, 0),
    }
    row = book.queues(depths)[0]
    shown = (row.depth, row.consumers, row.retrying, row.dead, row.oldest_s)
    assert shown == (5, 1, 2, 3, 2.0)
    assert book.queues({"keyturn.upload": QueueDepth(0, 1)})[0].oldest_s is None
    assert book.queues({})[0].depth is None


def test_unsigned_dead_letters_are_counted_after_the_queues() -> None:
    """So the sum is that of all dead letters; while the number is unknown there is no row."""
    book = _book(worker(0), now=1)
    rows = book.queues({"keyturn.unsigned.dead": QueueDepth(4, 0)})
    assert rows[-1] == QueueStatus(queue="keyturn.unsigned.dead", dead=4)
    assert [row.queue for row in book.queues({})] == [row.queue for row in rows[:-1]]


def test_notifications_of_sources_have_a_depth_and_no_dead_letters() -> None:
    rows = _book().queues({"keyturn.notifications": QueueDepth(3, 1)})
    assert rows[-1] == QueueStatus(queue="keyturn.notifications", depth=3, consumers=1)
    assert "keyturn.notifications" in workers.WATCHED_QUEUES


def test_the_clock_is_unknown_since_the_first_report_that_said_so() -> None:
    book = _book(*(worker(seconds, is_clock_known=False) for seconds in (0, 15, 30)), now=40)
    assert book.rows()[0].clock_unknown_since == text(0)
    book.apply(worker(35))
    assert book.rows()[0].clock_unknown_since is None


def test_the_number_of_workers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_WORKERS", 2)
    book = _book(worker(0, 1), worker(1, 2), worker(2, 3), now=3)
    assert [row.worker_id for row in book.rows()] == [uid(2), uid(3)]
    assert book.is_truncated


def test_totals_are_what_was_done_in_each_minute_of_the_last_hour() -> None:
    def report(seconds: float, number: int, done: int) -> WorkerReported:
        queues = (
            queue_report(served=done, refused=done // 2, retried=1),
            queue_report("keyturn.control", served=2 * done),
            queue_report("keyturn.sweep", served=3 * done),
        )
        return worker(seconds, number, queues=queues)

    clock = Clock(0)
    book = WorkerBook(clock)
    for seconds, number, done in ((0, 1, 100), (30, 1, 110), (40, 2, 7), (50, 2, 9), (70, 1, 130)):
        clock.set(seconds)
        book.apply(report(seconds, number, done))
    rows = book.totals()
    assert len(rows) == 60
    assert [(row.at, row.uploads, row.uploads_refused) for row in rows[-2:]] == [
        (text(0), 12, 6),
        (text(60), 20, 10),
    ]
    assert (rows[-2].control, rows[-2].pages) == (24, 36)
    assert sum(row.uploads for row in rows) == 32
    clock.set(3700)
    assert sum(row.uploads for row in book.totals()) == 0


def _trail(*records: StreamRecord) -> AuditBook:
    book = AuditBook(SIGNATURES)
    for record in records:
        book.apply(record)
    return book


def test_the_newest_record_comes_first_and_a_gap_is_a_finding_of_the_record_after_it() -> None:
    records = chain(4)
    rows = _trail(records[0], records[1], records[3]).rows()
    assert [(row.counter, row.offset) for row in rows] == [(4, 3), (2, 1), (1, 0)]
    assert "MISSING" in rows[0].findings[0]
    assert [row.findings for row in rows[1:]] == [(), ()]


def test_a_forged_record_is_a_finding_and_no_record() -> None:
    book = _trail(stream_record(0, audit_record(1), forged=True))
    assert book.rows() == []
    assert [each.split(":")[0] for each in book.findings_without_record()] == ["FORGED"]
    assert book.findings.keys() == {0}


def test_a_stream_that_was_declared_anew_is_shown_and_is_a_finding() -> None:
    book = _trail(*chain(4), stream_record(0, audit_record(1, process=uid(8), audit_id=uid(90))))
    assert [row.audit_id for row in book.rows()] == [uid(90)]
    assert [each.split(":")[0] for each in book.findings_without_record()] == ["REPLACED"]


def test_the_number_of_records_is_bounded_and_the_book_says_that_there_are_older_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not _trail(*chain(3)).has_older
    assert _trail(*chain(3)[1:]).has_older
    monkeypatch.setattr(audit, "MAX_RECORDS", 2)
    book = _trail(*chain(3))
    assert [row.counter for row in book.rows()] == [3, 2]
    assert book.has_older


def test_chains_that_were_begun_anew_still_find_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_CHAINS_KEPT_FOR", 10)
    monkeypatch.setattr(audit, "_WARMED_FOR", 3)
    records = chain(40)
    book = _trail(*(each for index, each in enumerate(records) if index != 30))
    assert [row.counter for row in book.rows() if row.findings] == [32]
