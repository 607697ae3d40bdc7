"""A later sweep of a project takes over the earlier ones: work is not multiplied (SPEC 8.6).

The later sweep marks the record of each earlier one, by a conditional put, while it has no
proof of its own yet, and then proves every page itself: nothing that was proven for an earlier
state is taken over. The earlier sweep does no page any more. It waits for the end of the later
one and copies it, failure included; where the later one's record is gone, it goes on from its
own. Which of two sweeps is the later one is a total order, so that no two take over each other.

A mark alone says little: a worker that stalled between reading the later sweep and marking the
earlier one may set it after the later one has ended, for a state that is over. So the later one
notes whom it took in the very put that makes its step, which fails where it has gone on, and
the earlier one copies no end of a sweep that did not note it.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import parse_time
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.plan import Plan, SweepRequest
from keyturn_workers.sweep.store import SweepStore

# By two: what still travels of the earlier sweep's steps is then out of date.
_MARK_STEPS: Final = 2
_MAX_TURNS: Final = 8
# Between looks at the later sweep: after so many of them, seconds.
_PAUSE_S: Final = ((20, 30.0), (6, 9.0), (0, 5.0))

_log = structlog.get_logger()


def is_later(ask: SweepRequest, than: SweepRequest) -> bool:
    """Whether a sweep comes after another one, by the time that it was asked for, then by id."""
    return _order(ask) > _order(than)


def _order(ask: SweepRequest) -> tuple[datetime, str]:
    return parse_time(ask.requested_at), ask.sweep_id


def covers(later: SweepRequest, earlier: SweepRequest) -> bool:
    """Whether the end of the later sweep says all that the end of the earlier one would say.

    A master key that the earlier one names must be the later one's too: without naming it, the
    later one would be clean under any.
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


async def take_over_earlier(store: SweepStore, outbox: Outbox, plan: Plan, master_key: str) -> Plan:
    """Mark the earlier sweeps of the project as taken over by this one; the plan that notes them.

    To be called where a round begins: no page of this plan is proven then. A mark that is
    missing among the hints of running sweeps leaves a sweep to run by itself.

    Args:
        store: The records of sweeps.
        outbox: Hints.
        plan: The later sweep.
        master_key: The one that the project's keyring names now.

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
        if await _take_over(store, outbox, plan, sweep_id, master_key)
    ]
    return replace(plan, taken=tuple(dict.fromkeys((*plan.taken, *taken))))


async def _take_over(
    store: SweepStore, outbox: Outbox, plan: Plan, sweep_id: str, master_key: str
) -> bool:
    """Mark one sweep; False where it goes on by itself."""
    later = plan.ask
    for _ in range(_MAX_TURNS):
        try:
            standing = await store.read(sweep_id, later.project)
        except (MissingError, CorruptObjectError, UnknownMasterKeyError):
            return False  # no sweep: a hint that an attacker made, or a record that was removed
        earlier = standing.plan
        if earlier.status != "running" or not covers(later, earlier.ask):
            return False
        if earlier.successor == later.sweep_id:
            # Whoever marked it may have died before it sent this.
            await outbox.step(earlier)
            return True
        if earlier.successor is not None and not await _replaces(store, later, earlier.successor):
            return False
        taken = replace(earlier, successor=later.sweep_id, step=earlier.step + _MARK_STEPS, idle=0)
        if await store.change(taken, standing.etag, master_key):
            said = {"sweep_id": sweep_id, "project": later.project}
            _log.info("sweep taken over", **said, successor=later.sweep_id)
            await outbox.step(taken)
            return True
    raise StorageUnavailableError("an earlier sweep's record kept changing")


async def _replaces(store: SweepStore, later: SweepRequest, successor: str) -> bool:
    """Whether this sweep takes an earlier one over from the one that did so before it."""
    try:
        other = (await store.read(successor, later.project)).plan
    except (MissingError, CorruptObjectError):
        return True
    except UnknownMasterKeyError:
        return False
    return other.status == "running" and covers(later, other.ask)


def pause_s(plan: Plan) -> float:
    """Seconds until a sweep that was taken over looks at its successor again."""
    return next(seconds for looks, seconds in _PAUSE_S if plan.idle >= looks)


def copied(plan: Plan, later: Plan) -> Plan:
    """A sweep that was taken over, with the end of its successor as its own.

    A failed one may be asked for again, and then goes on by itself: see `ProjectSweep._resumed`.
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
        proven=later.counts.seen(),
        written=later.counts.written(),
        # Failures of pages that this sweep had looked at itself are not the successor's.
        round=plan.round + 1,
        live=tuple(replace(live, seen=Counts()) for live in plan.live),
    )
