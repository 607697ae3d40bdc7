"""Workers, queues and totals follow from the workers' reports (SPEC 16.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.messages import QueueStatus
from keyturn_workers.status import workers
from keyturn_workers.status.workers import QueueDepth, WorkerBook
from tests.unit.keyturn_workers.status.messages import Clock, queue_report, text, uid, worker

if TYPE_CHECKING:
    from keyturn.messages import WorkerReported


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
