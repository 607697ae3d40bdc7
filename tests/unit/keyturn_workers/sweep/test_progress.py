"""What becomes of a page after each kind of result, and when pages are sent (SPEC 8.4, 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from keyturn.errors import LeaseMismatchError, StorageUnavailableError
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import (
    Failure,
    KeyRange,
    OpenPage,
    Plan,
    Result,
    State,
    SweepRequest,
)
from keyturn_workers.sweep.progress import (
    MAX_TRIES,
    MAX_WIDTH,
    MIN_WIDTH,
    RESEND_AFTER_S,
    apply_results,
    mark_due_pages,
    next_due_at,
    reconcile_clock,
    start_round,
    with_lease,
)

LEASE_S = 15
TURN = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)
PROOF = TURN + timedelta(seconds=2 * LEASE_S + 1)
STATE = State(2, "9f86d081884c7d65", "m1", plaintext=False, etag="e2")
SEEN = Counts(objects=5, current=5)


def plan(*live: OpenPage, **more: object) -> Plan:
    made = Plan(
        ask=SweepRequest("rotation", "2f6c9a0e-1111-4111-8111-111111111111", "acme", ""),
        state=STATE,
        turned_at=TURN,
        started_at=TURN,
        live=live,
        ranges=(KeyRange(through="z", planned=True),),
    )
    return replace(made, **more)  # type: ignore[arg-type]  # a test's own fields


def page(number: int = 0, **more: object) -> OpenPage:
    made = OpenPage(page=number, after="a", last="m", take=1, sent_at=TURN, sends=1)
    return replace(made, **more)  # type: ignore[arg-type]  # a test's own fields


def result(**more: object) -> Result:
    made = Result("a", "m", STATE, PROOF, SEEN, changed=0, proves=True)
    return replace(made, **more)  # type: ignore[arg-type]  # a test's own fields


def test_a_page_in_the_desired_state_is_proven_late_enough() -> None:
    applied = apply_results(plan(page()), {0: result()}, PROOF, LEASE_S)
    assert applied.plan.live == ()
    assert applied.plan.complete
    assert applied.plan.proven == SEEN


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(result(changed=1), id="something was changed"),
        pytest.param(
            result(observed_at=PROOF - timedelta(seconds=1)), id="two leases were not over"
        ),
        pytest.param(result(observed_at=TURN), id="observed when the state changed"),
        pytest.param(
            result(observed_at=PROOF + timedelta(seconds=1)), id="dated after the step's own read"
        ),
        pytest.param(result(proves=False), id="the storage's clock was not known long enough"),
        pytest.param(result(state=None), id="the state changed during the attempt"),
        pytest.param(result(state=replace(STATE, generation=1)), id="another generation"),
        pytest.param(result(state=replace(STATE, kek_id="0" * 16)), id="another KEK"),
        pytest.param(result(state=replace(STATE, master_key="m2")), id="another master key"),
        pytest.param(result(state=replace(STATE, plaintext=True)), id="another permission"),
        pytest.param(result(state=replace(STATE, etag="e4")), id="a state that came back"),
        pytest.param(result(after=""), id="another beginning"),
        pytest.param(result(last="q"), id="another end"),
        pytest.param(result(failures=(Failure("k", "corrupt_object"),)), id="an object failed"),
    ],
)
def test_a_page_is_processed_again_if_its_result_proves_nothing(outcome: Result) -> None:
    applied = apply_results(plan(page()), {0: outcome}, PROOF, LEASE_S)
    (again,) = applied.plan.live
    assert (again.take, again.sent_at, again.sends) == (2, None, 0)
    assert not applied.plan.complete
    assert applied.plan.proven == Counts()
    assert again.not_before is not None
    assert again.not_before >= plan().proof_after(LEASE_S)


def test_a_page_without_a_result_stays_as_it_is() -> None:
    applied = apply_results(plan(page(0), page(1)), {1: result()}, PROOF, LEASE_S)
    assert applied.plan.live == (page(0),)


def test_writes_add_up_over_all_attempts() -> None:
    wrote = result(changed=3, counts=Counts(objects=5, rewrapped=3, current=2))
    first = apply_results(plan(page()), {0: wrote}, PROOF, LEASE_S).plan
    second = apply_results(first, {0: result()}, PROOF, LEASE_S).plan
    assert second.counts == Counts(objects=5, rewrapped=3, current=5)


def test_a_failing_object_is_tried_a_few_times_and_then_recorded() -> None:
    failing = result(
        counts=Counts(objects=5, current=4, failed=1), failures=(Failure("k", "corrupt_object"),)
    )
    tried = plan(page())
    for _ in range(MAX_TRIES - 1):
        applied = apply_results(tried, {0: failing}, PROOF, LEASE_S)
        assert applied.plan.live
        assert not applied.failing
        tried = applied.plan
    applied = apply_results(tried, {0: failing}, PROOF, LEASE_S)
    assert applied.plan.complete
    assert applied.failing == {0: failing}
    assert applied.plan.counts.failed == 1
    assert not applied.plan.counts.all_as_desired


def test_tries_are_not_spent_while_other_objects_change() -> None:
    both = result(changed=1, failures=(Failure("k", "storage_unavailable"),))
    (again,) = apply_results(plan(page()), {0: both}, PROOF, LEASE_S).plan.live
    assert again.tries == 0


def test_a_dry_run_makes_one_attempt() -> None:
    dry = plan(page(), ask=replace(plan().ask, kind="sweep", dry_run=True))
    early = result(observed_at=TURN, counts=Counts(objects=5, current=2))
    applied = apply_results(dry, {0: early}, TURN, LEASE_S)
    assert applied.plan.complete
    assert not applied.plan.counts.all_as_desired


def test_a_page_that_always_changes_waits_longer_and_longer() -> None:
    waits = []
    for take in (1, 5, 8, 40):
        (again,) = apply_results(
            plan(page(take=take)), {0: result(changed=1)}, PROOF, LEASE_S
        ).plan.live
        assert again.not_before is not None
        waits.append((again.not_before - PROOF).total_seconds())
    assert waits == sorted(waits)
    assert waits[0] <= 0
    assert waits[-1] == 600


def test_another_state_starts_a_round_that_keeps_only_the_writes() -> None:
    before = plan(
        page(),
        proven=SEEN,
        written=Counts(rewrapped=7),
        next_page=9,
        ranges=(KeyRange("f", "f", planned=True), KeyRange("k", "")),
    )
    state = replace(STATE, generation=3)
    after = start_round(before, state, PROOF, dated=True)
    assert (after.round, after.next_page, after.live) == (1, 0, ())
    assert after.ranges == (KeyRange("", "f"), KeyRange("f", ""))
    assert (after.state, after.turned_at) == (state, PROOF)
    assert after.counts == Counts(rewrapped=7)


def test_pages_are_sent_up_to_the_width_and_no_page_twice() -> None:
    waiting = tuple(page(n, sent_at=None, take=0) for n in range(MIN_WIDTH + 5))
    first, sent = mark_due_pages(plan(*waiting), TURN)
    assert [page.page for page in sent] == list(range(MIN_WIDTH))
    again, more = mark_due_pages(first, TURN + timedelta(seconds=1))
    assert more == ()
    assert again == first


def test_a_page_is_not_sent_before_an_attempt_can_prove_something() -> None:
    at = plan().proof_after(LEASE_S)
    held = plan(page(sent_at=None, not_before=at))
    assert mark_due_pages(held, at)[1] == ()
    assert next_due_at(held) == at
    assert [page.page for page in mark_due_pages(held, at + timedelta(seconds=1))[1]] == [0]


def test_a_page_without_a_result_is_sent_again_with_growing_delay() -> None:
    lost = plan(page())
    moments = []
    for seconds in range(0, 7 * RESEND_AFTER_S, 60):
        lost, sent = mark_due_pages(lost, TURN + timedelta(seconds=seconds))
        moments += [seconds] if sent else []
    assert len(moments) == 2
    assert moments[0] > RESEND_AFTER_S
    assert moments[1] - moments[0] > 2 * RESEND_AFTER_S


def test_the_width_follows_the_rate_of_results() -> None:
    many = tuple(page(n) for n in range(100))
    applied = apply_results(plan(*many), {n: result() for n in range(100)}, PROOF, LEASE_S)
    assert applied.plan.width == 400
    assert apply_results(plan(page()), {0: result()}, PROOF, LEASE_S).plan.width == MIN_WIDTH
    crowd = tuple(page(n) for n in range(500))
    applied = apply_results(plan(*crowd), {n: result() for n in range(500)}, PROOF, LEASE_S)
    assert applied.plan.width == MAX_WIDTH


# One lease, and one wrong `Date` (SPEC 8.4).

A_DAY = timedelta(days=1)


def test_a_longer_lease_is_written_into_the_record_and_starts_a_round() -> None:
    """What that worker writes may arrive later than the pages so far were held against."""
    before = plan(page(), lease_s=LEASE_S, stepped_lease_s=LEASE_S, proven=SEEN)
    after = with_lease(before, 60, None, PROOF)
    assert (after.lease_s, after.round, after.live, after.proven) == (60, 1, (), Counts())
    assert (after.turned_at, after.stepped_lease_s) == (TURN, 60)
    assert after.proof_after(60) == TURN + timedelta(seconds=120)


def test_the_longest_lease_of_the_keyrings_writers_counts() -> None:
    before = plan(page(), lease_s=LEASE_S, stepped_lease_s=LEASE_S)
    after = with_lease(before, LEASE_S, 60, PROOF)
    assert (after.lease_s, after.round, after.stepped_lease_s) == (60, 1, LEASE_S)
    # It continues by that lease, since no worker with that lease continues the sweep.
    again = with_lease(after, LEASE_S, 60, PROOF)
    assert (again.lease_s, again.round) == (60, 1)


def test_a_worker_with_a_shorter_lease_leaves_the_sweep_to_others() -> None:
    before = plan(page(), lease_s=60, stepped_lease_s=60, stepped_at=TURN)
    with pytest.raises(LeaseMismatchError, match="60 s"):
        with_lease(before, LEASE_S, 60, TURN + timedelta(minutes=15))


def test_an_abandoned_sweep_continues_by_its_own_lease() -> None:
    """Else one whose lease was lowered everywhere would never end."""
    before = plan(page(), lease_s=60, stepped_lease_s=60, stepped_at=TURN)
    after = with_lease(before, LEASE_S, 60, TURN + timedelta(minutes=15, seconds=1))
    assert (after.lease_s, after.round, after.stepped_lease_s) == (60, 0, LEASE_S)
    later = replace(after, stepped_at=PROOF)
    assert with_lease(later, LEASE_S, 60, PROOF) == later


def test_a_record_of_0_4_gets_the_lease_of_this_worker() -> None:
    after = with_lease(plan(page()), LEASE_S, None, PROOF)
    assert (after.lease_s, after.round, after.live) == (LEASE_S, 0, (page(),))


def test_a_state_dated_after_the_read_is_dated_again() -> None:
    """One `Date` a day ahead must not stall a rotation for a day."""
    ahead = plan(page(), turned_at=PROOF + A_DAY, stepped_at=PROOF, step=3)
    after = reconcile_clock(ahead, PROOF, proves=True)
    assert (after.turned_at, after.round, after.live) == (PROOF, 1, ())


def test_a_clock_not_known_for_long_dates_no_state_back() -> None:
    """It may be this read that is wrong: a state dated too early would be proven too early."""
    for record in (
        plan(page(), turned_at=PROOF, stepped_at=TURN, step=3),
        plan(page(), turned_at=TURN, stepped_at=PROOF, step=3),
    ):
        with pytest.raises(StorageUnavailableError):
            reconcile_clock(record, PROOF - timedelta(seconds=1), proves=False)
        assert reconcile_clock(record, PROOF, proves=False).turned_at == record.turned_at


def test_the_first_step_dates_the_state_again() -> None:
    for step in (0, 2):  # resumed, or taken over, before its first step
        assert reconcile_clock(plan(step=step), PROOF, proves=True).turned_at == PROOF
    stepped = plan(page(), step=1, stepped_at=TURN)
    assert reconcile_clock(stepped, PROOF, proves=False).turned_at == TURN


@pytest.mark.parametrize("step", [0, 2])
def test_a_read_that_proves_nothing_does_not_date_the_state(step: int) -> None:
    """A worker that had just started met a slow front end: pages were proven too early."""
    early = reconcile_clock(plan(page(), step=step), PROOF, proves=False)
    assert (early.turned_at, early.turn_dated) == (PROOF, False)
    after_two_leases = early.proof_after(LEASE_S) + timedelta(seconds=1)
    found = {0: result(observed_at=after_two_leases)}
    applied = apply_results(early, found, after_two_leases, LEASE_S)
    assert applied.proven == ()
    assert apply_results(replace(early, turn_dated=True), found, after_two_leases, LEASE_S).proven
    # The first read that proves dates it, and pages wait for the proof from then on.
    dated = reconcile_clock(applied.plan, after_two_leases, proves=True)
    assert (dated.turned_at, dated.turn_dated) == (after_two_leases, True)
    (waiting,) = dated.live
    assert waiting.not_before is not None
    assert waiting.not_before >= dated.proof_after(dated.lease_s or 0)


def test_a_page_waits_for_no_moment_that_only_a_wrong_date_explains() -> None:
    ahead = PROOF + A_DAY
    record = plan(
        page(0, sent_at=ahead),
        page(1, sent_at=None, not_before=ahead),
        page(2, sent_at=PROOF),
        page(3, sent_at=None, not_before=PROOF + timedelta(minutes=19)),
        stepped_at=ahead,
        progressed_at=ahead,
        step=3,
    )
    after = reconcile_clock(record, PROOF, proves=True)
    assert [(page.sent_at, page.not_before) for page in after.live] == [
        (None, None),
        (None, None),
        (PROOF, None),
        (None, PROOF + timedelta(minutes=19)),
    ]
    assert after.progressed_at is None
    assert [page.page for page in mark_due_pages(after, PROOF)[1]] == [0, 1]


# The dates of proofs.


def test_the_plan_knows_when_its_first_and_its_last_page_were_proven() -> None:
    def at(seconds: int) -> datetime:
        return PROOF + timedelta(seconds=seconds)

    found = {number: result(observed_at=at(seconds)) for number, seconds in enumerate((5, 1, 9))}
    first = apply_results(plan(*map(page, range(4))), found, at(20), LEASE_S).plan
    assert (first.proven_from, first.proven_to, first.dated_pages) == (at(1), at(9), 3)
    middle = apply_results(first, {3: result(observed_at=at(7))}, at(20), LEASE_S).plan
    assert (middle.proven_from, middle.proven_to, middle.dated_pages) == (at(1), at(9), 4)


def test_a_new_round_has_no_proof_yet() -> None:
    proven = apply_results(plan(page()), {0: result()}, PROOF, LEASE_S).plan
    again = start_round(proven, STATE, PROOF, dated=True)
    assert (again.proven_from, again.proven_to, again.dated_pages) == (None, None, 0)
