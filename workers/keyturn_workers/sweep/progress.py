"""What becomes of a page once a take of it is told, and which pages are sent (SPEC 8.5). Pure.

A page is proven by a take that observed the desired state which the sweep proves, later
than any stalled worker could still have set an object back, with nothing to change. Only
what stands in sealed records counts here; no counter and no message does.

Moments are the storage's, as one read told them, and one read can be told wrongly: what a
moment is later than the step's own read proves nothing, and holds nothing up (SPEC 8.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.errors import LeaseMismatchError, StorageUnavailableError
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import KeyRange, OpenPage, Plan, Result, State

# Looks at an object that fails, before it is recorded as failed; more where it may pass.
TRIES: Final = 3
# From this take on a page that always finds something to change waits between takes.
_CALM_TAKES: Final = 4
_MAX_PAUSE_S: Final = 600
# A page whose result does not come is sent again: its message may have been lost.
RESEND_AFTER_S: Final = 900
# The record of a sweep that workers with its longer lease have left for this long is carried on
# by others: there may be none of the former any more.
_LEFT_ALONE_S: Final = 900
# Front ends of one storage may differ by seconds; what lies further ahead was told wrongly.
_MAX_AHEAD_S: Final = 60
MIN_WIDTH: Final = 16
MAX_WIDTH: Final = 512
_RESULTS_TO_WIDTH: Final = 4


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan after its results were looked at; `failing` are the proven pages with failures."""

    plan: Plan
    proven: tuple[OpenPage, ...]
    failing: Mapping[int, Result]


def moved(plan: Plan, state: State, at: datetime, *, dated: bool) -> Plan:
    """The plan for another desired state: everything is to be looked at again.

    What was written stays counted. A page of an earlier round proves nothing any more. `dated`
    says whether `at` comes from a read that proves.
    """
    return replace(
        plan,
        state=state,
        turned_at=at,
        turn_dated=dated,
        round=plan.round + 1,
        next_page=0,
        ranges=tuple(
            KeyRange(through=start, end=keys.end)
            for start, keys in zip(_starts(plan.ranges), plan.ranges, strict=True)
        ),
        live=(),
        proven=Counts(),
    )


def with_lease(plan: Plan, own_s: int, keyring_s: int | None, now: datetime) -> Plan:
    """The plan as a worker with this lease carries it on (SPEC 8.4, "One lease").

    The record decides: a longer lease, of this worker or of one that wrote the keyring, is
    written in, and everything is looked at again, since what that worker wrote may arrive
    later than the pages so far were held against. A worker with a shorter one leaves the
    sweep to those with the record's. Where none of them made a step for a long time it goes
    on by the record's lease, which proves no less: else a sweep whose lease was lowered
    everywhere would never end.

    Args:
        plan: As it was read.
        own_s: This worker's `LEASE_S`.
        keyring_s: The longest lease of those who wrote the keyring, where it says.
        now: The storage's clock.

    Raises:
        LeaseMismatchError: others carry this sweep on.
    """
    longest = max(own_s, keyring_s or 0)
    lease_s = plan.lease_s or own_s
    if longest > lease_s:
        longer = replace(plan, lease_s=longest)
        plan = moved(longer, plan.state, plan.turned_at, dated=plan.turn_dated)
    elif own_s < lease_s and (plan.stepped_lease_s or 0) > own_s:
        since = plan.turned_at if plan.stepped_at is None else plan.stepped_at
        if now - since <= timedelta(seconds=_LEFT_ALONE_S):
            raise LeaseMismatchError(f"the sweep's lease is {lease_s} s, and LEASE_S here {own_s}")
    else:
        plan = replace(plan, lease_s=lease_s)
    return replace(plan, stepped_lease_s=own_s)


def at(plan: Plan, now: datetime, *, proves: bool) -> Plan:
    """The plan as a step sees it whose own read is of this moment (SPEC 8.4).

    `turned_at` must be no earlier than the turn, and no later than anything that follows it.
    Steps read it again until one does so whose worker has known the storage's clock for two
    leases: pages are done meanwhile, and none of them proves anything. A step that finds it
    later than its own read begins a new round.

    Args:
        plan: As it was read.
        now: The storage's `Date` of the step's own read.
        proves: Whether this worker has known the storage's clock for two leases.

    Raises:
        StorageUnavailableError: the record is of a later moment, and it is not known which of
            the two was told wrongly.
    """
    latest = plan.turned_at if plan.stepped_at is None else max(plan.turned_at, plan.stepped_at)
    if now < latest and not proves:
        raise StorageUnavailableError("the sweep's record is of a later moment than this read")
    if plan.turned_at > now:
        plan = moved(plan, plan.state, now, dated=proves)
    elif plan.stepped_at is None or not plan.turn_dated:
        # The worker that dated it may have met one slow front end, and dated the turn too early.
        plan = _dated(plan, now, proves=proves)
    progressed_at = plan.progressed_at
    return replace(
        plan,
        live=tuple(_redated(live, now, plan.lease_s or 0) for live in plan.live),
        progressed_at=None if progressed_at is None or progressed_at > now else progressed_at,
    )


def _dated(plan: Plan, now: datetime, *, proves: bool) -> Plan:
    """The plan with its turn dated anew; pages that wait for a proof wait for the later one."""
    plan = replace(plan, turned_at=now, turn_dated=proves)
    late = plan.proof_after(plan.lease_s or 0)
    waiting = (
        live if live.not_before is None else replace(live, not_before=max(live.not_before, late))
        for live in plan.live
    )
    return replace(plan, live=tuple(waiting))


def _redated(live: OpenPage, now: datetime, lease_s: int) -> OpenPage:
    """The page without moments that only a wrong `Date` can have given: it would wait for them."""
    latest = now + timedelta(seconds=_MAX_AHEAD_S)
    sent_at = None if live.sent_at is None or live.sent_at > latest else live.sent_at
    latest += timedelta(seconds=2 * lease_s + _MAX_PAUSE_S + RETRY_DELAYS_S[-1])
    not_before = live.not_before
    if not_before is not None and not_before > latest:
        not_before = None
    return replace(live, sent_at=sent_at, not_before=not_before)


def _starts(ranges: Sequence[KeyRange]) -> Sequence[str]:
    return ("", *(keys.end for keys in ranges[:-1]))


def judge(plan: Plan, results: Mapping[int, Result], now: datetime, lease_s: int) -> Judged:
    """The plan after these results, by page; each is of its page's current take.

    `now` is the storage's clock, by the step's own read.
    """
    kept: list[OpenPage] = []
    proven: list[OpenPage] = []
    failing: dict[int, Result] = {}
    seen, written = plan.proven, plan.written
    for live in plan.live:
        result = results.get(live.page)
        if result is None:
            kept.append(live)
            continue
        written += result.counts.written()
        again = _again(plan, live, result, now, lease_s)
        if again is not None:
            kept.append(again)
            continue
        proven.append(live)
        seen += result.counts.seen()
        if result.failures:
            failing[live.page] = result
    width = min(MAX_WIDTH, max(MIN_WIDTH, _RESULTS_TO_WIDTH * len(results)))
    after = replace(plan, live=tuple(kept), proven=seen, written=written, width=width)
    return Judged(after, tuple(proven), failing)


def _again(
    plan: Plan, live: OpenPage, result: Result, now: datetime, lease_s: int
) -> OpenPage | None:
    """The page as it is to be done again, or None where this take is the last."""
    if plan.ask.dry_run:
        return None  # it counts, and proves nothing
    late = plan.proof_after(lease_s)
    in_time = plan.turn_dated and _is_in_time(result, late, now)
    as_wanted = in_time and _is_as_wanted(plan, live, result)
    tries = live.tries + (1 if result.failures and as_wanted else 0)
    # A storage that fails for a moment is no fault of the object's (SPEC 12).
    passing = any(failure.code == StorageUnavailableError.code for failure in result.failures)
    if as_wanted and (not result.failures or tries >= (len(RETRY_DELAYS_S) if passing else TRIES)):
        return None
    pause_s = min(_MAX_PAUSE_S, 2 ** max(0, live.take - _CALM_TAKES) - 1)
    if tries:
        pause_s += RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S)) - 1] if passing else tries
    # Until then a look would prove nothing; failing objects can wait for it as well.
    return replace(
        live,
        take=live.take + 1,
        tries=tries,
        sends=0,
        sent_at=None,
        not_before=max(late, now + timedelta(seconds=pause_s)),
        seen=result.counts.seen(),
    )


def _is_in_time(result: Result, late: datetime, now: datetime) -> bool:
    """Whether the take looked later than any stalled worker could still have written.

    Dated after the step's own read, an observation was told wrongly: it may be an early one.
    """
    return result.proves and late < result.observed_at <= now


def _is_as_wanted(plan: Plan, live: OpenPage, result: Result) -> bool:
    """Whether the take observed just what the sweep proves, and found it so."""
    its_own = (result.after, result.last) == (live.after, live.last)
    return its_own and result.state == plan.state and not result.changed


def due(plan: Plan, now: datetime) -> tuple[Plan, tuple[OpenPage, ...]]:
    """The plan with those pages marked as sent that may be sent now, and these pages."""
    under_way = sum(live.sent_at is not None and not _may_go(live, now) for live in plan.live)
    room = max(0, plan.width - under_way)
    sent: list[OpenPage] = []
    every: list[OpenPage] = []
    for live in plan.live:
        if _may_go(live, now) and len(sent) < room:
            sent.append(replace(live, sent_at=now, sends=live.sends + 1))
            every.append(sent[-1])
        else:
            every.append(live)
    return replace(plan, live=tuple(every)), tuple(sent)


def _may_go(live: OpenPage, now: datetime) -> bool:
    if live.sent_at is not None:
        # Twice as late each time: a page of large bodies may take its time.
        return now - live.sent_at > timedelta(seconds=RESEND_AFTER_S * 2 ** (live.sends - 1))
    return live.not_before is None or now > live.not_before


def waits_until(plan: Plan) -> datetime | None:
    """The moment before which no page needs a step, or None where one is under way or due."""
    if any(live.sent_at is not None or live.not_before is None for live in plan.live):
        return None
    moments = [live.not_before for live in plan.live if live.not_before is not None]
    return min(moments, default=None) if plan.everything_planned else None
