"""What one message says about a sweep."""

from __future__ import annotations

from keyturn_workers.console.model.rows import SweepCounts
from keyturn_workers.console.model.sweep_messages import end_of_event, event_counts, reported_row
from tests.unit.keyturn_workers.console.model.messages import (
    DIGEST,
    at,
    progressed,
    rotation_completed,
    rotation_failed,
    sweep_rejected,
    sweep_status,
)


def test_counts_are_those_of_the_event() -> None:
    assert event_counts(progressed(1, objects=4, current=2)) == SweepCounts(objects=4, current=2)
    assert SweepCounts(objects=4, current=2).done == 3.0


def test_an_end_says_how() -> None:
    clean = end_of_event(rotation_completed(1))
    assert (clean.status, clean.clean, clean.evidence) == ("done", True, DIGEST)
    assert end_of_event(rotation_failed(1)).status == "failed"
    rejected = end_of_event(sweep_rejected(1))
    assert (rejected.status, rejected.code) == ("rejected", "unknown_project")


def test_a_record_that_does_not_open_says_nothing_about_its_options() -> None:
    closed = sweep_status(status=None, code="unknown_master_key")
    assert reported_row(closed, at(1)).repair is None
    assert reported_row(sweep_status(repair=True), at(1)).repair is True
