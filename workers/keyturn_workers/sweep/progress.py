"""What becomes of a page after an attempt, and which pages are sent (SPEC 8.4, 8.5). Pure.

A page is proven by an attempt that observed the desired state which the sweep proves, later
than any stalled worker could have set an object back, with nothing to change. Only sealed
records count as evidence; counters and messages do not.

All moments are the storage's, each by one read, and one read can be dated wrongly. So a moment
later than the step's own read proves nothing, and nothing waits for it (SPEC 8.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.errors import LeaseMismatchError, StorageUnavailableError
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import KeyRange, OpenPage, Plan, Result, State

# Attempts at a failing object before it is recorded as failed; transient failures get more.
MAX_TRIES: Final = 3
# From this attempt on, a page that always finds something to change waits between attempts.
_CALM_ATTEMPTS: Final = 4
_MAX_PAUSE_S: Final = 600
# A page without a result is sent again after this: its message may be lost.
RESEND_AFTER_S: Final = 900
# If workers with the sweep's longer lease made no step for this long, others continue it: there
# may be no such worker any more.
_ABANDONED_AFTER_S: Final = 900
# The clocks of one storage's front ends may differ by seconds. A date further ahead is wrong.
_MAX_AHEAD_S: Final = 60
MIN_WIDTH: Final = 16
MAX_WIDTH: Final = 512
_RESULTS_TO_WIDTH: Final = 4


@dataclass(frozen=True, slots=True)
class AppliedResults:
    """A plan after the results of its pages were applied.

    Attributes:
        plan: The plan.
        proven: The pages that are proven now.
        failing: The results of proven pages with failures, by page number.
    """

    plan: Plan
    proven: tuple[OpenPage, ...]
    failing: Mapping[int, Result]


# Rounds, leases and the date of the state.


def start_round(plan: Plan, state: State, changed_at: datetime, *, dated: bool) -> Plan:
    """The plan for another desired state: every page must be proven again.

    What was written stays counted. A page of an earlier round proves nothing any more.

    Args:
        plan: The plan so far.
        state: The state to prove.
        changed_at: When it was first snapshot, by the storage's clock.
        dated: Whether that date comes from a read that proves.
    """
    return replace(
        plan,
        state=state,
        turned_at=changed_at,
        turn_dated=dated,
        round=plan.round + 1,
        next_page=0,
        ranges=tuple(
            KeyRange(through=start, end=key_range.end)
            for start, key_range in zip(_starts(plan.ranges), plan.ranges, strict=True)
        ),
        live=(),
        proven=Counts(),
        proven_from=None,
        proven_to=None,
        dated_pages=0,
    )


def _starts(ranges: Sequence[KeyRange]) -> Sequence[str]:
    return ("", *(key_range.end for key_range in ranges[:-1]))


def with_lease(plan: Plan, own_s: int, keyring_s: int | None, now: datetime) -> Plan:
    """The plan as a worker with this lease continues it (SPEC 8.4, "One lease").

    The record decides. A longer lease, of this worker or of one that wrote the keyring, is
    written into it and starts a new round: what that worker wrote may arrive later than the
    proofs so far allowed for. A worker with a shorter lease leaves the sweep to workers with the
    record's. If none of those made a step for a long time, it continues by the record's lease,
    which proves no less. Otherwise a sweep would never end after every lease was shortened.

    Args:
        plan: As it was read.
        own_s: This worker's `LEASE_S`.
        keyring_s: The longest lease of the workers that wrote the keyring, if it says.
        now: The storage's clock.

    Raises:
        LeaseMismatchError: other workers continue this sweep.
    """
    longest = max(own_s, keyring_s or 0)
    lease_s = plan.lease_s or own_s
    if longest > lease_s:
        longer = replace(plan, lease_s=longest)
        plan = start_round(longer, plan.state, plan.turned_at, dated=plan.turn_dated)
    elif own_s < lease_s and (plan.stepped_lease_s or 0) > own_s:
        since = plan.turned_at if plan.stepped_at is None else plan.stepped_at
        if now - since <= timedelta(seconds=_ABANDONED_AFTER_S):
            raise LeaseMismatchError(f"the sweep's lease is {lease_s} s, and LEASE_S here {own_s}")
    else:
        plan = replace(plan, lease_s=lease_s)
    return replace(plan, stepped_lease_s=own_s)


def reconcile_clock(plan: Plan, now: datetime, *, proves: bool) -> Plan:
    """The plan with its moments checked against the step's own read (SPEC 8.4).

    `turned_at` must be no earlier than the change of state, and no later than anything that
    follows it. Every step dates it anew until one is made by a worker that has known the
    storage's clock for two leases. Pages are processed meanwhile, and none of them proves
    anything. A step that finds the date later than its own read starts a new round.

    Args:
        plan: As it was read.
        now: The storage's `Date` of the step's own read.
        proves: Whether this worker has known the storage's clock for two leases.

    Raises:
        StorageUnavailableError: the record is dated later, and it is unknown which of the two
            dates is wrong.
    """
    latest = plan.turned_at if plan.stepped_at is None else max(plan.turned_at, plan.stepped_at)
    if now < latest and not proves:
        raise StorageUnavailableError("the sweep's record is of a later moment than this read")
    if plan.turned_at > now:
        plan = start_round(plan, plan.state, now, dated=proves)
    elif plan.stepped_at is None or not plan.turn_dated:
        # The worker that dated it may have met one slow front end, and dated it too early.
        plan = _date_state_change(plan, now, proves=proves)
    progressed_at = plan.progressed_at
    return replace(
        plan,
        live=tuple(_drop_implausible_times(each, now, plan.lease_s or 0) for each in plan.live),
        progressed_at=None if progressed_at is None or progressed_at > now else progressed_at,
    )


def _date_state_change(plan: Plan, now: datetime, *, proves: bool) -> Plan:
    """The plan with its state dated anew. Pages that wait for a proof wait for the later one."""
    plan = replace(plan, turned_at=now, turn_dated=proves)
    proof_after = plan.proof_after(plan.lease_s or 0)
    open_pages = (
        each
        if each.not_before is None
        else replace(each, not_before=max(each.not_before, proof_after))
        for each in plan.live
    )
    return replace(plan, live=tuple(open_pages))


def _drop_implausible_times(open_page: OpenPage, now: datetime, lease_s: int) -> OpenPage:
    """The page without moments that only a wrong `Date` can explain: it would wait for them."""
    latest = now + timedelta(seconds=_MAX_AHEAD_S)
    sent_at = open_page.sent_at
    if sent_at is not None and sent_at > latest:
        sent_at = None
    latest += timedelta(seconds=2 * lease_s + _MAX_PAUSE_S + RETRY_DELAYS_S[-1])
    not_before = open_page.not_before
    if not_before is not None and not_before > latest:
        not_before = None
    return replace(open_page, sent_at=sent_at, not_before=not_before)


# Results.


def apply_results(
    plan: Plan, results: Mapping[int, Result], now: datetime, lease_s: int
) -> AppliedResults:
    """The plan after these results.

    Args:
        plan: The plan so far.
        results: By page number, each of the current attempt.
        now: The storage's clock, by the step's own read.
        lease_s: The lease of the sweep.
    """
    still_open: list[OpenPage] = []
    proven: list[OpenPage] = []
    failing: dict[int, Result] = {}
    seen, written = plan.proven, plan.written
    dates: list[datetime] = []
    for open_page in plan.live:
        result = results.get(open_page.page)
        if result is None:
            still_open.append(open_page)
            continue
        written += result.counts.writes()
        next_attempt = _next_attempt(plan, open_page, result, now, lease_s)
        if next_attempt is not None:
            still_open.append(next_attempt)
            continue
        proven.append(open_page)
        dates.append(result.observed_at)
        seen += result.counts.without_writes()
        if result.failures:
            failing[open_page.page] = result
    width = min(MAX_WIDTH, max(MIN_WIDTH, _RESULTS_TO_WIDTH * len(results)))
    after = replace(plan, live=tuple(still_open), proven=seen, written=written, width=width)
    return AppliedResults(_with_proof_dates(after, dates), tuple(proven), failing)


def _with_proof_dates(plan: Plan, dates: Sequence[datetime]) -> Plan:
    """The plan with the moments at which further pages were proven."""
    if not dates:
        return plan
    return replace(
        plan,
        proven_from=min(filter(None, (plan.proven_from, *dates))),
        proven_to=max(filter(None, (plan.proven_to, *dates))),
        dated_pages=plan.dated_pages + len(dates),
    )


def _next_attempt(
    plan: Plan, open_page: OpenPage, result: Result, now: datetime, lease_s: int
) -> OpenPage | None:
    """The page as it must be processed again, or None if this attempt is the last one."""
    if plan.ask.dry_run:
        return None  # it counts, and proves nothing
    proof_after = plan.proof_after(lease_s)
    is_proof = (
        plan.turn_dated
        and _is_late_enough(result, proof_after, now)
        and _matches_plan(plan, open_page, result)
    )
    tries = open_page.tries + (1 if result.failures and is_proof else 0)
    # A storage that fails for a moment says nothing against the object (SPEC 12).
    is_transient = any(failure.code == StorageUnavailableError.code for failure in result.failures)
    max_tries = len(RETRY_DELAYS_S) if is_transient else MAX_TRIES
    if is_proof and (not result.failures or tries >= max_tries):
        return None
    pause_s = min(_MAX_PAUSE_S, 2 ** max(0, open_page.take - _CALM_ATTEMPTS) - 1)
    if tries:
        pause_s += RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S)) - 1] if is_transient else tries
    # Before `proof_after` an attempt would prove nothing. Failing objects can wait for it too.
    return replace(
        open_page,
        take=open_page.take + 1,
        tries=tries,
        sends=0,
        sent_at=None,
        not_before=max(proof_after, now + timedelta(seconds=pause_s)),
        seen=result.counts.without_writes(),
    )


def _is_late_enough(result: Result, proof_after: datetime, now: datetime) -> bool:
    """Whether the attempt observed later than any stalled worker could have written.

    An observation dated after the step's own read has a wrong date: it may be an early one.
    """
    return result.proves and proof_after < result.observed_at <= now


def _matches_plan(plan: Plan, open_page: OpenPage, result: Result) -> bool:
    """Whether the attempt observed exactly what the sweep proves, and changed nothing."""
    same_range = (result.after, result.last) == (open_page.after, open_page.last)
    return same_range and result.state == plan.state and not result.changed


# Which pages are sent.


def mark_due_pages(plan: Plan, now: datetime) -> tuple[Plan, tuple[OpenPage, ...]]:
    """The plan with the pages marked as sent that may be sent now, and these pages."""
    under_way = sum(each.sent_at is not None and not _is_due(each, now) for each in plan.live)
    room = max(0, plan.width - under_way)
    sent: list[OpenPage] = []
    open_pages: list[OpenPage] = []
    for open_page in plan.live:
        if _is_due(open_page, now) and len(sent) < room:
            sent.append(replace(open_page, sent_at=now, sends=open_page.sends + 1))
            open_pages.append(sent[-1])
        else:
            open_pages.append(open_page)
    return replace(plan, live=tuple(open_pages)), tuple(sent)


def _is_due(open_page: OpenPage, now: datetime) -> bool:
    if open_page.sent_at is not None:
        # The delay doubles each time: a page of large bodies may need long.
        delay_s = RESEND_AFTER_S * 2 ** (open_page.sends - 1)
        return now - open_page.sent_at > timedelta(seconds=delay_s)
    return open_page.not_before is None or now > open_page.not_before


def next_due_at(plan: Plan) -> datetime | None:
    """The moment before which no page needs a step; None if one is under way or due now."""
    if any(each.sent_at is not None or each.not_before is None for each in plan.live):
        return None
    moments = [each.not_before for each in plan.live if each.not_before is not None]
    return min(moments, default=None) if plan.everything_planned else None
