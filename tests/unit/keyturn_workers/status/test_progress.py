"""The progress of a sweep by its events: rate and time left (SPEC 6.7, 8.6). Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from keyturn.identifiers import format_time
from keyturn_workers.status.progress import SweepProgress
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from keyturn.messages import Event

_ID = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)


def _progressed(after_s: float, project: str = "acme", **counts: Any) -> Event:
    at = format_time(_BEGIN + timedelta(seconds=after_s))
    return event("sweep.progressed", at, sweep_id=_ID, project=project, **counts)


def _after(*events: Event, expected: int | None = None) -> SweepProgress:
    progress = SweepProgress(expected)
    for each in events:
        progress.add_event(each)
    return progress


def test_an_object_counts_half_until_it_is_proven() -> None:
    assert _after(_progressed(0, objects=10, rewrapped=10)).done == 5
    assert _after(_progressed(0, objects=10, rewrapped=10, current=10)).done == 10
    assert _after(_progressed(0, objects=10, plaintext=3, deleted=2, failed=5)).done == 10


def test_rate_and_time_left_follow_the_times_of_the_events() -> None:
    """A late reader reads an hour of events in a moment."""
    progress = _after(
        _progressed(0, objects=100, current=100), _progressed(10, objects=600, current=600),
        expected=1100,
    )  # fmt: skip
    assert progress.rate_per_s == 50
    assert progress.left == timedelta(seconds=10)
    assert progress.elapsed(_BEGIN + timedelta(seconds=10)) == timedelta(seconds=10)


def test_only_the_last_minute_counts_for_the_rate() -> None:
    events = [_progressed(s, objects=s * 10, current=s * 10) for s in range(0, 3600, 10)]
    events += [
        _progressed(3600 + s, objects=36000 + s, current=36000 + s) for s in range(0, 90, 10)
    ]
    assert _after(*events).rate_per_s == 1


def test_without_a_count_or_progress_the_time_left_is_unknown() -> None:
    moving = (_progressed(0, objects=1, current=1), _progressed(1, objects=2, current=2))
    assert _after(*moving).left is None
    assert _after(*moving).total is None
    assert _after(expected=5).left is None
    assert _after(moving[0], moving[0], expected=5).left is None
    back = (_progressed(0, objects=9, current=9), _progressed(1, objects=1))  # planned again
    assert _after(*back, expected=9).rate_per_s is None


def test_the_total_excludes_foreign_keys_and_includes_new_objects() -> None:
    assert _after(_progressed(0, objects=3, foreign=2), expected=10).total == 8
    assert _after(_progressed(0, objects=30), expected=10).total == 30


def test_projects_add_up_until_the_end_of_a_sweep_of_all() -> None:
    progress = _after(
        _progressed(0, "a", objects=5),
        _progressed(1, "b", objects=7),
        _progressed(2, "a", objects=6),
    )
    assert progress.counts.objects == 13
    progress.add_event(event("sweep.completed", sweep_id=_ID, project="*", objects=14))
    assert progress.counts.objects == 14
