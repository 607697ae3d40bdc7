"""Decide when a page is proven, attempted again, or sent (SPEC 8.4, 8.5). Pure.

A page is proven by an attempt that observed the round's state, and nothing to change, later than
any stalled worker could have reverted an object. Only sealed records count as evidence; counters
and messages do not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.errors import CustomerKeyUnavailableError, StorageUnavailableError
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.core.sweep_record import OpenPage, ProjectRecord, Result, Round

# Attempts at a failing object before it is recorded as failed; transient failures get more.
MAX_FAILURES: Final = 3
# From this attempt on, a page that always has something to change waits between attempts.
_CALM_ATTEMPTS: Final = 4
MAX_PAUSE_S: Final = 600
# A page without a result is sent again after this: its message may be lost.
RESEND_AFTER_S: Final = 900
# Pages of a round that may be under way at once.
MIN_WIDTH: Final = 16
MAX_WIDTH: Final = 512
_RESULTS_TO_WIDTH: Final = 4
_TRANSIENT: Final = (StorageUnavailableError.code, CustomerKeyUnavailableError.code)


@dataclass(frozen=True, slots=True)
class AppliedResults:
    """A record with the results of its pages applied.

    `proven` are the pages that are proven now; `failing` are the results of proven pages with
    failures, by page number.
    """

    record: ProjectRecord
    proven: tuple[OpenPage, ...]
    failing: Mapping[int, Result]


def apply_results(
    record: ProjectRecord, of: Round, results: Mapping[int, Result], now: datetime
) -> AppliedResults:
    """Apply results to a record and its round.

    `results` are by page number, each of the page's current attempt. `now` is the storage's clock,
    by the step's own read.
    """
    still_open: list[OpenPage] = []
    proven: list[OpenPage] = []
    failing: dict[int, Result] = {}
    seen, written = of.proven, record.written
    dates: list[datetime] = []
    for page in of.open_pages:
        result = results.get(page.page)
        if result is None:
            still_open.append(page)
            continue
        written += result.counts.writes()
        next_attempt = _next_attempt(record, page, result, now)
        if next_attempt is not None:
            still_open.append(next_attempt)
            continue
        proven.append(page)
        dates.append(result.observed_at)
        seen += result.counts.without_writes()
        if result.failures:
            failing[page.page] = result
    after = replace(
        of,
        open_pages=tuple(still_open),
        proven=seen,
        proven_from=min(filter(None, (of.proven_from, *dates)), default=None),
        proven_to=max(filter(None, (of.proven_to, *dates)), default=None),
        width=min(MAX_WIDTH, max(MIN_WIDTH, _RESULTS_TO_WIDTH * len(results))),
    )
    after = _with_moments(after, now, has_changed=any(each.changed for each in results.values()))
    return AppliedResults(replace(record, round=after, written=written), tuple(proven), failing)


def _with_moments(of: Round, now: datetime, *, has_changed: bool) -> Round:
    """Record the moments that the round has reached with its results."""
    if has_changed and of.first_rewrap_at is None:
        of = replace(of, first_rewrap_at=now)
    is_rewrapped = of.is_fully_paginated and all(page.attempts for page in of.open_pages)
    if is_rewrapped and of.all_rewrapped_at is None:
        of = replace(of, all_rewrapped_at=now)
    return of


def with_writes(record: ProjectRecord, results: Iterable[Result]) -> ProjectRecord:
    """Add the writes of results that no longer prove anything."""
    return replace(record, written=sum((each.counts.writes() for each in results), record.written))


def _next_attempt(
    record: ProjectRecord, page: OpenPage, result: Result, now: datetime
) -> OpenPage | None:
    """The page for its next attempt; None if this attempt is the last one."""
    is_proof = (
        record.is_dated
        and _is_late_enough(result, record.proof_after, now)
        and _matches(record, page, result)
    )
    failures = page.failures + (1 if result.failures and is_proof else 0)
    # A storage or a KMS that fails for a moment says nothing against the object (SPEC 12).
    is_transient = any(failure.code in _TRANSIENT for failure in result.failures)
    max_failures = len(RETRY_DELAYS_S) if is_transient else MAX_FAILURES
    if is_proof and (not result.failures or failures >= max_failures):
        return None
    pause_s = min(MAX_PAUSE_S, 2 ** max(0, page.attempts - _CALM_ATTEMPTS) - 1)
    if failures:
        delay = min(failures, len(RETRY_DELAYS_S)) - 1
        pause_s += RETRY_DELAYS_S[delay] if is_transient else failures
    # Before `proof_after` an attempt would prove nothing. Failing objects can wait for it too.
    return replace(
        page,
        attempts=page.attempts + 1,
        failures=failures,
        sends=0,
        sent_at=None,
        not_before=max(record.proof_after, now + timedelta(seconds=pause_s)),
        seen=result.counts.without_writes(),
    )


def _is_late_enough(result: Result, proof_after: datetime, now: datetime) -> bool:
    """Check that the attempt observed later than any stalled worker could have written.

    An observation dated after the step's own read has a wrong date: it may have been early.
    """
    return result.proves and proof_after < result.observed_at <= now


def _matches(record: ProjectRecord, page: OpenPage, result: Result) -> bool:
    """Check that the attempt observed exactly the round's state, and changed nothing."""
    same_range = (result.after, result.last) == (page.after, page.last)
    return same_range and result.state == record.state and not result.changed


# Sending pages.


def mark_due_pages(of: Round, now: datetime) -> tuple[Round, tuple[OpenPage, ...]]:
    """Mark all due pages that fit as sent; return the round and these pages."""
    under_way = sum(page.sent_at is not None and not _is_due(page, now) for page in of.open_pages)
    room = max(0, of.width - under_way)
    sent: list[OpenPage] = []
    open_pages: list[OpenPage] = []
    for page in of.open_pages:
        if _is_due(page, now) and len(sent) < room:
            sent.append(replace(page, sent_at=now, sends=page.sends + 1))
            open_pages.append(sent[-1])
        else:
            open_pages.append(page)
    return replace(of, open_pages=tuple(open_pages)), tuple(sent)


def _is_due(page: OpenPage, now: datetime) -> bool:
    if page.sent_at is not None:
        # The delay doubles each time: a page of large bodies may need long.
        delay_s = RESEND_AFTER_S * 2 ** (page.sends - 1)
        return now - page.sent_at > timedelta(seconds=delay_s)
    return page.not_before is None or now > page.not_before


def next_due_at(of: Round) -> datetime | None:
    """The moment before which no page needs a step; None if a page is under way or due now."""
    if any(page.sent_at is not None or page.not_before is None for page in of.open_pages):
        return None
    moments = [page.not_before for page in of.open_pages if page.not_before is not None]
    return min(moments, default=None) if of.is_fully_paginated else None
