"""A later sweep of a project takes over the earlier ones, so work is not multiplied (SPEC 8.6).

The later sweep marks the record of each earlier one by a conditional put, while it has no proof
yet. It then proves every page itself: nothing that was proven for an earlier state is reused. The
earlier sweep processes no page any more. It waits for the end of the later one and copies it,
failure included. If the record of the later one is gone, the earlier one continues from its own.
Which of two sweeps is the later one is a total order, so no two take over each other.

A mark by itself proves little. A worker that stalled between reading the later sweep and marking
the earlier one may set the mark after the later one has ended, for a state that is over. So the
later one notes which sweeps it took over in the very put that makes its step. That put fails if
the sweep has moved on, and an earlier sweep never copies the end of a sweep that did not note it.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import parse_time
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.dispatcher import SweepDispatcher
from keyturn_workers.sweep.plan import Plan, SweepRequest
from keyturn_workers.sweep.sweep_store import SweepStore

# By two, so that messages of the earlier sweep's steps are out of date.
_MARK_STEPS: Final = 2
_MAX_ATTEMPTS: Final = 8
# Between checks of the later sweep: after this many of them, seconds.
_PAUSE_S: Final = ((20, 30.0), (6, 9.0), (0, 5.0))

_log = structlog.get_logger()


def is_later(request: SweepRequest, than: SweepRequest) -> bool:
    """Whether a sweep comes after another one, by the time of its request, then by id."""
    return _order(request) > _order(than)


def _order(request: SweepRequest) -> tuple[datetime, str]:
    return parse_time(request.requested_at), request.sweep_id


def covers(later: SweepRequest, earlier: SweepRequest) -> bool:
    """Whether the end of the later sweep says all that the end of the earlier one would.

    If the earlier one names a master key, the later one must name the same. Without naming it,
    the later one would be clean under any master key.
    """
    return (
        later.project == earlier.project
        and not later.dry_run
        and not earlier.dry_run
        and later.encrypt_plaintext >= earlier.encrypt_plaintext
        and later.repair >= earlier.repair
        and earlier.master_key in (None, later.master_key)
        and is_later(later, earlier)
    )


async def take_over_earlier(
    store: SweepStore, dispatcher: SweepDispatcher, plan: Plan, master_key: str
) -> Plan:
    """Mark the earlier sweeps of the project as taken over; returns the plan that notes them.

    Call this at the beginning of a round, while no page of this plan is proven. An earlier sweep
    without a running marker is not found, and runs by itself.

    Args:
        store: The records of sweeps.
        dispatcher: Sends hints.
        plan: The later sweep.
        master_key: The master key that the project's keyring names now.

    Raises:
        StorageUnavailableError: try again later.
    """
    if plan.ask.dry_run:
        return plan
    earlier = [
        sweep_id
        async for sweep_id, project, _ in store.running()
        if project == plan.ask.project and sweep_id != plan.ask.sweep_id
    ]
    taken = [
        sweep_id
        for sweep_id in earlier
        if await _take_over(store, dispatcher, plan, sweep_id, master_key)
    ]
    return replace(plan, taken=tuple(dict.fromkeys((*plan.taken, *taken))))


async def _take_over(
    store: SweepStore, dispatcher: SweepDispatcher, plan: Plan, sweep_id: str, master_key: str
) -> bool:
    """Mark one sweep; False if it continues by itself."""
    later = plan.ask
    for _ in range(_MAX_ATTEMPTS):
        try:
            stored = await store.read(sweep_id, later.project)
        except (MissingError, CorruptObjectError, UnknownMasterKeyError):
            return False  # no sweep: a forged marker, or a record that was removed
        earlier = stored.plan
        if earlier.status != "running" or not covers(later, earlier.ask):
            return False
        if earlier.successor == later.sweep_id:
            # The worker that marked it may have died before it sent this.
            await dispatcher.send_step(earlier)
            return True
        if earlier.successor is not None and not await _replaces(store, later, earlier.successor):
            return False
        taken = replace(earlier, successor=later.sweep_id, step=earlier.step + _MARK_STEPS, idle=0)
        if await store.change(taken, stored.etag, master_key):
            fields = {"sweep_id": sweep_id, "project": later.project}
            _log.info("sweep taken over", **fields, successor=later.sweep_id)
            await dispatcher.send_step(taken)
            return True
    raise StorageUnavailableError("an earlier sweep's record kept changing")


async def _replaces(store: SweepStore, later: SweepRequest, successor: str) -> bool:
    """Whether this sweep takes an earlier one over from its present successor."""
    try:
        other = (await store.read(successor, later.project)).plan
    except (MissingError, CorruptObjectError):
        return True
    except UnknownMasterKeyError:
        return False
    return other.status == "running" and covers(later, other.ask)


def pause_s(plan: Plan) -> float:
    """Seconds until a sweep that was taken over checks its successor again."""
    return next(seconds for checks, seconds in _PAUSE_S if plan.idle >= checks)


def copy_end(plan: Plan, later: Plan) -> Plan:
    """A sweep that was taken over, with the end of its successor as its own.

    If that is a failure, the sweep may be requested again, and then continues by itself.
    """
    return replace(
        plan,
        state=later.state,
        turned_at=later.turned_at,
        status=later.status,
        clean=later.clean,
        code=later.code,
        detail=later.detail,
        ended_at=later.ended_at,
        late_writes_refused=later.late_writes_refused,
        evidence=later.evidence,
        proven=later.counts.without_writes(),
        written=later.counts.writes(),
        # Failures that this sweep recorded itself are not the successor's.
        round=plan.round + 1,
        live=tuple(replace(open_page, seen=Counts()) for open_page in plan.live),
    )
