"""Progress is true: rewrapping, then proving, with the earliest end (SPEC 8.4, 8.6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn.identifiers import format_time
from keyturn_workers.sweep import AllRecord, Origin, ProjectRecord
from keyturn_workers.sweep.progress import progress_of
from keyturn_workers.sweep.record import KeyRange, OpenPage, Round, Walk
from tests.unit.keyturn_workers.sweep.records import NOW, RECORD, ROUND_ID, SWEEP, ended

_SEEN = Counts(objects=10, current=10)
_UNSEEN = OpenPage(0, after="", last="m")
_SEEN_PAGE = OpenPage(1, after="m", last="", attempts=1, seen=_SEEN)
_PLANNED = (KeyRange(planned=True),)
_PROVEN = Counts(objects=30, current=29, failed=1, foreign=2)


def _record(*origins: Origin, **of_round: Any) -> ProjectRecord:
    fields: dict[str, Any] = {"ranges": _PLANNED, "keys": 42, "proven": _PROVEN}
    names = tuple(each.name for each in origins)
    current = Round(ROUND_ID, SWEEP.options, names, **fields | of_round)
    return replace(RECORD, origins=origins or (SWEEP,), round=current)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (replace(RECORD, origins=(SWEEP,), round=None), ("waiting", 0, None)),
        (_record(), ("waiting", 0, None)),  # a round that does not answer it
        (_record(SWEEP, open_pages=(_UNSEEN, _SEEN_PAGE)), ("rewrapping", 40, 40)),
        (_record(SWEEP, open_pages=(_UNSEEN,)), ("rewrapping", 30, 40)),
        (_record(SWEEP, open_pages=(_UNSEEN,), ranges=(KeyRange(),)), ("rewrapping", 30, None)),
        (
            _record(SWEEP, open_pages=(_SEEN_PAGE,), all_rewrapped_at=NOW),
            ("proving", 30, 40),
        ),
        # Objects that came after the listing.
        (
            _record(SWEEP, open_pages=(_SEEN_PAGE,), all_rewrapped_at=NOW, keys=7),
            ("proving", 30, 40),
        ),
    ],
)
def test_the_phase_says_how_many_of_how_many(
    record: ProjectRecord, expected: tuple[str, int, int | None]
) -> None:
    progress = progress_of(record, SWEEP)
    assert (progress.phase, progress.done, progress.total) == expected


def test_everything_can_be_proven_once_every_page_may_be_attempted_again() -> None:
    soon, late = (RECORD.proof_after + timedelta(seconds=n) for n in (0, 60))
    waiting = replace(_SEEN_PAGE, not_before=late)
    for pages, possible_at in (((_SEEN_PAGE,), soon), ((_SEEN_PAGE, waiting), late)):
        progress = progress_of(_record(SWEEP, open_pages=pages), SWEEP)
        assert progress.proof_possible_at == format_time(possible_at)


def test_of_a_sweep_of_all_the_projects_that_ended_are_counted() -> None:
    walk = Walk(ROUND_ID, SWEEP.options, (SWEEP.name,), projects=7)
    progress = progress_of(AllRecord(origins=(SWEEP,), round=walk), SWEEP)
    assert (progress.phase, progress.done) == ("rewrapping", 7)


def test_an_end_keeps_the_moments() -> None:
    origin = ended(SWEEP)
    assert origin.end is not None
    end = replace(origin.end, counts=_SEEN, first_rewrap_at=NOW, proof_possible_at=NOW)
    progress = progress_of(RECORD, replace(origin, end=end))
    assert (progress.phase, progress.done, progress.total) == ("ended", 10, 10)
    assert progress.first_rewrap_at == progress.proof_possible_at == format_time(NOW)
    assert progress.all_rewrapped_at is None
