"""A page is proven no earlier than it may be, and progress is correct (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn.identifiers import format_time
from keyturn_workers.core.sweep_progress import progress_of
from keyturn_workers.core.sweep_proof import (
    MAX_FAILURES,
    MAX_WIDTH,
    MIN_WIDTH,
    RESEND_AFTER_S,
    mark_due_pages,
    next_due_at,
)
from keyturn_workers.core.sweep_record import (
    AllRecord,
    Failure,
    KeyRange,
    OpenPage,
    Origin,
    ProjectRecord,
    Result,
    Round,
    Walk,
)
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    NOW,
    PROOF,
    RECORD,
    ROUND_ID,
    SEEN,
    STATE,
    SWEEP,
    apply,
    ended,
    page,
    result,
    round_of,
    running,
    the_round,
)

_SEEN = Counts(objects=10, current=10)
_UNSEEN = OpenPage(0, after="", last="m")
_SEEN_PAGE = OpenPage(1, after="m", last="", attempts=1, seen=_SEEN)
_PLANNED = (KeyRange(planned=True),)
_PROVEN = Counts(objects=30, current=29, failed=1, foreign=2)


def pages_after(before: ProjectRecord, outcome: Result) -> tuple[OpenPage, ...]:
    return the_round(apply(before, {0: outcome}).record).open_pages


def test_a_page_in_the_desired_state_is_proven_late_enough() -> None:
    applied = apply(running(page()), {0: result()})
    assert applied.proven == (page(),)
    assert the_round(applied.record).complete
    assert the_round(applied.record).proven == SEEN


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(result(changed=1), id="something was changed"),
        pytest.param(
            result(observed_at=PROOF - timedelta(seconds=1)), id="two leases were not over"
        ),
        pytest.param(result(observed_at=NOW), id="observed when the state changed"),
        pytest.param(
            result(observed_at=PROOF + timedelta(seconds=1)), id="dated after the step's own read"
        ),
        pytest.param(result(proves=False), id="the storage's clock was not known long enough"),
        pytest.param(result(state=None), id="the state changed during the attempt"),
        pytest.param(result(state=replace(STATE, generation=1)), id="another generation"),
        pytest.param(result(state=replace(STATE, kek_id="0" * 16)), id="another KEK"),
        pytest.param(result(state=replace(STATE, master_key="m2")), id="another master key"),
        pytest.param(result(state=replace(STATE, plaintext=True)), id="another permission"),
        pytest.param(result(state=replace(STATE, serial=5)), id="a state that came back"),
        pytest.param(result(after=""), id="another beginning"),
        pytest.param(result(last="q"), id="another end"),
        pytest.param(result(failures=(Failure("k", "corrupt_object"),)), id="an object failed"),
    ],
)
def test_a_page_is_processed_again_if_its_result_proves_nothing(outcome: Result) -> None:
    applied = apply(running(page()), {0: outcome})
    current = the_round(applied.record)
    (again,) = current.open_pages
    assert (again.attempts, again.sent_at, again.sends) == (2, None, 0)
    assert (applied.proven, current.complete, current.proven) == ((), False, Counts())
    assert again.not_before is not None
    assert again.not_before >= applied.record.proof_after


def test_a_page_without_a_result_stays_as_it_is() -> None:
    applied = apply(running(page(0), page(1)), {1: result()})
    assert the_round(applied.record).open_pages == (page(0),)


def test_writes_add_up_over_all_attempts() -> None:
    wrote = result(changed=3, counts=Counts(objects=5, rewrapped=3, current=2))
    first = apply(running(page()), {0: wrote}).record
    second = apply(first, {0: result()}).record
    assert second.counts_of(SWEEP) == Counts(objects=5, rewrapped=3, current=5)


def test_a_failing_object_is_tried_a_few_times_and_then_recorded() -> None:
    failing = result(
        counts=Counts(objects=5, current=4, failed=1), failures=(Failure("k", "corrupt_object"),)
    )
    tried = running(page())
    for _ in range(MAX_FAILURES - 1):
        applied = apply(tried, {0: failing})
        assert (applied.proven, applied.failing) == ((), {})
        tried = applied.record
    applied = apply(tried, {0: failing})
    assert the_round(applied.record).complete
    assert applied.failing == {0: failing}
    assert applied.record.counts_of(SWEEP).failed == 1
    assert not the_round(applied.record).counts.all_as_desired


@pytest.mark.parametrize("code", ["storage_unavailable", "customer_key_unavailable"])
def test_what_is_away_has_more_tries_and_longer_pauses(code: str) -> None:
    away = result(failures=(Failure("k", code),))
    tried, waits = running(page()), list[float]()
    while not (applied := apply(tried, {0: away})).failing:
        tried = applied.record
        (again,) = the_round(tried).open_pages
        assert again.not_before is not None
        waits.append((again.not_before - PROOF).total_seconds())
    assert len(waits) >= MAX_FAILURES
    assert waits[-1] > 60


def test_tries_are_not_spent_while_other_objects_change() -> None:
    both = result(changed=1, failures=(Failure("k", "storage_unavailable"),))
    (again,) = pages_after(running(page()), both)
    assert again.failures == 0


def test_a_page_that_always_changes_waits_longer_and_longer() -> None:
    waits = []
    for attempts in (1, 5, 8, 40):
        (again,) = pages_after(running(page(attempts=attempts)), result(changed=1))
        assert again.not_before is not None
        waits.append((again.not_before - PROOF).total_seconds())
    assert waits == sorted(waits)
    assert waits[0] == 0
    assert waits[-1] == 600


def test_the_width_follows_the_rate_of_results() -> None:
    for number, width in ((1, MIN_WIDTH), (100, 400), (500, MAX_WIDTH)):
        many_pages = running(*map(page, range(number)))
        applied = apply(many_pages, {each: result() for each in range(number)})
        assert the_round(applied.record).width == width


def test_a_round_knows_when_its_first_and_its_last_page_were_proven() -> None:
    def at(seconds: int) -> datetime:
        return PROOF + timedelta(seconds=seconds)

    found = {number: result(observed_at=at(seconds)) for number, seconds in enumerate((5, 1, 9))}
    first = apply(running(*map(page, range(4))), found, at(20)).record
    assert (the_round(first).proven_from, the_round(first).proven_to) == (at(1), at(9))
    middle = apply(first, {3: result(observed_at=at(7))}, at(20)).record
    assert (the_round(middle).proven_from, the_round(middle).proven_to) == (at(1), at(9))


# Which pages are sent.


def test_pages_are_sent_up_to_the_width_and_no_page_twice() -> None:
    waiting = round_of(*(page(n, sent_at=None, attempts=0) for n in range(MIN_WIDTH + 5)))
    first, sent = mark_due_pages(waiting, NOW)
    assert [each.page for each in sent] == list(range(MIN_WIDTH))
    assert mark_due_pages(first, NOW + timedelta(seconds=1)) == (first, ())


def test_pages_that_wait_for_their_moment_hold_no_other_back() -> None:
    waiting = [page(n, sent_at=None, not_before=PROOF) for n in range(MIN_WIDTH)]
    of = round_of(*waiting, page(MIN_WIDTH, sent_at=None))
    assert [each.page for each in mark_due_pages(of, NOW)[1]] == [MIN_WIDTH]


def test_a_page_is_not_sent_before_an_attempt_can_prove_something() -> None:
    held = the_round(running(page(sent_at=None, not_before=PROOF)))
    assert mark_due_pages(held, PROOF)[1] == ()
    assert next_due_at(held) == PROOF
    assert [each.page for each in mark_due_pages(held, PROOF + timedelta(seconds=1))[1]] == [0]


@pytest.mark.parametrize(
    "of",
    [
        the_round(running(page(0, sent_at=None, not_before=PROOF), page(1))),
        the_round(running(page(0, sent_at=None, not_before=PROOF), page(1, sent_at=None))),
        round_of(page(sent_at=None, not_before=PROOF)),
    ],
    ids=["one is under way", "one is due", "more is to be planned"],
)
def test_a_step_that_has_something_to_do_waits_for_no_page(of: Round) -> None:
    assert next_due_at(of) is None


def test_a_page_without_a_result_is_sent_again_with_growing_delay() -> None:
    lost, moments = round_of(page()), list[int]()
    for seconds in range(0, 7 * RESEND_AFTER_S, 60):
        lost, sent = mark_due_pages(lost, NOW + timedelta(seconds=seconds))
        moments += [seconds] if sent else []
    assert len(moments) == 2
    assert moments[0] > RESEND_AFTER_S
    assert moments[1] - moments[0] > 2 * RESEND_AFTER_S


# What progress says.


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
