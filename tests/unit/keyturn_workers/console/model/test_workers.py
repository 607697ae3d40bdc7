"""Workers and queues: who is missing, rates, ages."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from keyturn_workers.console.model import workers
from keyturn_workers.console.model.rows import QueueDepth, QueueSnapshot
from keyturn_workers.console.model.workers import WorkerBook
from tests.unit.keyturn_workers.console.model.messages import Clock, at, uid, worker

if TYPE_CHECKING:
    import pytest


def test_a_worker_is_missing_after_three_intervals() -> None:
    clock = Clock(44)
    book = WorkerBook(clock)
    book.apply(worker(0))
    assert not book.rows()[0].is_missing
    clock.set(46)
    assert book.rows()[0].is_missing
    clock.set(1000)
    assert book.rows() == ()
    assert book.expire()


def test_a_worker_that_stopped_is_not_missing() -> None:
    book = WorkerBook(Clock(100))
    book.apply(worker(0, is_stopping=True))
    assert (book.rows()[0].is_missing, book.rows()[0].is_present) == (False, False)


def test_rates_come_from_the_two_newest_reports_in_any_order() -> None:
    reports = [worker(0, served=0), worker(15, served=10), worker(30, served=40)]
    for order in permutations(reports):
        book = WorkerBook(Clock(31))
        for report in (*order, order[0]):
            book.apply(report)
        assert book.queues()[0].served_per_s == 2.0


def test_a_queue_shows_depth_and_the_age_of_its_oldest() -> None:
    book = WorkerBook(Clock(1))
    book.apply(worker(0))
    depths = (
        QueueDepth("keyturn.upload", 5, 1),
        QueueDepth("keyturn.upload.retry.5s", 2, 0),
        QueueDepth("keyturn.upload.dead", 3, 0),
        QueueDepth("keyturn.unsigned.dead", 9, 0),
    )
    book.apply_queues(QueueSnapshot(at(1), depths))
    row = book.queues()[0]
    assert (row.depth, row.consumers, row.retrying, row.dead_depth) == (5, 1, 2, 3)
    assert row.oldest_s == 2.0
    assert book.unsigned_depth() == 9
    book.apply_queues(QueueSnapshot(at(2), (QueueDepth("keyturn.upload", 0, 1),)))
    assert book.queues()[0].oldest_s is None


def test_an_older_snapshot_changes_nothing() -> None:
    book = WorkerBook(Clock(1))
    book.apply_queues(QueueSnapshot(at(2), (QueueDepth("keyturn.upload", 1, 1),)))
    assert not book.apply_queues(QueueSnapshot(at(1), (QueueDepth("keyturn.upload", 7, 1),)))
    assert book.queues()[0].depth == 1
    assert book.depths("keyturn.upload") == ((at(1), 7), (at(2), 1))


def test_the_clock_is_unknown_since_the_first_report_that_said_so() -> None:
    book = WorkerBook(Clock(40))
    for seconds in (0, 15, 30):
        book.apply(worker(seconds, is_clock_known=False))
    assert book.rows()[0].clock_unknown_since == at(0)
    book.apply(worker(35))
    assert book.rows()[0].clock_unknown_since is None


def test_the_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_WORKERS", 2)
    book = WorkerBook(Clock(5))
    for number in range(3):
        book.apply(worker(number, number))
    assert book.is_truncated
    assert {row.worker_id for row in book.rows()} == {uid(1), uid(2)}
