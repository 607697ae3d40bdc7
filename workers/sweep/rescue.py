"""Sweeps whose messages were lost go on from their records; old records go (SPEC 8.5).

A broker that was emptied takes the steps of all sweeps with it. Each sweep worker looks, a
few times an hour, for sweeps whose record has not changed for a while.
"""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from contracts.errors import CorruptObjectError, UnknownMasterKeyError
from workers.sweep.role import SweepRole
from workers.sweep.store import SweepStore

# A step waits at most 600 s for its next try, and two leases for a proof.
_STILL_FOR: Final = timedelta(minutes=15)

_log = structlog.get_logger()


async def rescue(
    store: SweepStore, role: SweepRole, *, still_for: timedelta, keep_for: timedelta, now: datetime
) -> int:
    """Hurry sweeps that stand still, and remove those that ended long ago; gives how many.

    `now` is this machine's clock: ages are long, so its drift does not matter.
    """
    running: set[tuple[str, str]] = set()
    hurried = 0
    async for sweep_id, project, marked in store.running():
        running.add((sweep_id, project))
        changed = await store.changed_at(sweep_id, project)
        if now - (changed or marked) <= still_for:
            continue
        if changed is None:
            # Whoever marked it died before its plan stood; the request comes again.
            await store.unmark_running(sweep_id, project)
            continue
        try:
            await role.hurry(sweep_id, project)
        except (CorruptObjectError, UnknownMasterKeyError) as exc:
            # One whose record was forged, or that is another worker's: the others are not
            # to wait for it.
            said = {"sweep_id": sweep_id, "project": project, "code": exc.code}
            _log.warning("sweep not hurried", **said, detail=exc.detail)
        else:
            hurried += 1
    async for sweep_id, project, changed in store.plans():
        if (sweep_id, project) not in running and now - changed > keep_for:
            await store.remove(sweep_id, project)
    return hurried


async def keep_rescuing(
    store: SweepStore, role: SweepRole, *, keep_for: timedelta, interval_s: float
) -> None:
    """Rescue for ever, a little out of step with other workers."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        try:
            hurried = await rescue(
                store, role, still_for=_STILL_FOR, keep_for=keep_for, now=datetime.now(UTC)
            )
        except Exception:  # noqa: BLE001  # the broker may be what is down: the next round comes
            _log.exception("sweeps not looked after")
            continue
        if hurried:
            _log.warning("sweeps hurried", sweeps=hurried)
