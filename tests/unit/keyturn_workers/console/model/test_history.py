"""Counts by minute, within a bound of time."""

from __future__ import annotations

from datetime import timedelta

from keyturn_workers.console.model.history import History
from tests.unit.keyturn_workers.console.model.messages import (
    Clock,
    accepted,
    at,
    stored,
    upload_rejected,
)


def make(clock: Clock) -> History:
    return History(timedelta(hours=1), clock)


def test_counts_are_those_of_the_minute_that_the_event_names() -> None:
    history = make(Clock(300))
    for seconds in (0, 10, 59, 60, 299):
        history.add(stored(seconds))
    values = [value for _, value in history.series("stored", at(0), 100)]
    assert values == [3, 1, 0, 0, 1, 0]


def test_buckets_are_means_of_a_minute() -> None:
    history = make(Clock(299))
    for seconds in (0, 1, 2, 60):
        history.add(stored(seconds))
    series = history.series("stored", at(0), 2)
    assert [value for _, value in series] == [4 / 3, 0]
    assert [instant for instant, _ in series] == [at(0), at(180)]


def test_refusals_are_counted_by_code() -> None:
    history = make(Clock(10))
    history.add(upload_rejected(1))
    history.add(upload_rejected(2, "deleted_key"))
    history.add(upload_rejected(3, "deleted_key"))
    assert history.codes(at(0)) == {"deleted_key": 2, "already_exists": 1}
    assert history.total("rejected", at(0)) == 3


def test_what_is_older_than_the_history_or_in_the_future_does_not_count() -> None:
    history = make(Clock(0))
    history.add(stored(-3700))
    history.add(stored(600))
    history.add(accepted(-3000))
    assert history.size == 1


def test_memory_is_bounded_by_the_length_of_the_history() -> None:
    clock = Clock(0)
    history = make(clock)
    for minute in range(1000):
        clock.set(minute * 60)
        history.add(stored(minute * 60))
    assert history.total("stored", at(0)) <= 60 + 64
    assert history.size <= 2 * (60 + 65)
