"""Sweeps whose messages were lost go on from their records; old records go (SPEC 8.5).

A broker that was emptied takes the steps of all sweeps with it. Each sweep worker looks, a
few times an hour, for sweeps whose record has not changed for a while. It also removes what
nothing will look at again: results that a stalled worker put after its sweep's end, and
records of long ago. A rotation whose record was removed is begun anew.
"""

import asyncio
import random
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import structlog

from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn_workers.sweep.handler import SweepRole
from keyturn_workers.sweep.lost_rotations import OpenRotations
from keyturn_workers.sweep.store import Folder, SweepStore

# A step waits at most 600 s for its next try, and two leases for a proof.
_STILL_FOR: Final = timedelta(minutes=15)
# Plans without a mark that one round reads: most are of sweeps that ended well.
_PLANS_A_ROUND: Final = 200

_Name: TypeAlias = tuple[str, str]
"""A sweep's id and its project, or `*`."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Seen:
    """The plans without a mark that earlier rounds saw ended: by sweep, the ETag then."""

    ended: dict[_Name, str] = field(default_factory=dict)


async def rescue(
    store: SweepStore,
    role: SweepRole,
    *,
    still_for: timedelta,
    keep_for: timedelta,
    now: datetime,
    seen: Seen | None = None,
    rotations: OpenRotations | None = None,
) -> int:
    """Hurry sweeps that stand still, remove what ended long ago; gives how many were hurried.

    Marks are hints that anyone who writes the bucket can forge or remove, so no record of a
    sweep that runs is removed, and none is left alone, for the lack of one.

    Args:
        store: The records of sweeps.
        role: Carries them on.
        still_for: A plan that has not changed for this long is taken for stalled.
        keep_for: How long the records of an ended sweep are kept.
        now: This machine's clock: ages are long, so its drift does not matter.
        seen: What earlier rounds of this process saw, so that they read each plan once.
        rotations: The last ones of all projects: one that lost its record is begun anew.
    """
    if rotations is not None:
        await rotations.look()
    hurried, marked = 0, set[_Name]()
    async for sweep_id, project, since in store.running():
        marked.add((sweep_id, project))
        changed = await store.changed_at(sweep_id, project)
        if now - (changed or since) <= still_for:
            continue
        if changed is None:
            await _without_plan(store, sweep_id, project, rotations)
            continue
        hurried += await _hurried(role, (sweep_id, project))
    unmarked = _Unmarked(store, role, seen or Seen(), still_for, keep_for, now, rotations)
    hurried += await unmarked.look_after(marked)
    if rotations is not None:
        hurried += await rotations.begin_lost(
            unmarked.present, still_for=still_for, keep_for=keep_for, now=now
        )
    return hurried


async def _without_plan(
    store: SweepStore, sweep_id: str, project: str, rotations: OpenRotations | None
) -> None:
    """Remove the mark of a sweep that has no plan.

    The worker that marked it died before it put the plan, and the request comes again; or the
    plan was removed. A rotation whose keyring holds earlier keys is begun anew, and keeps it.
    """
    if rotations is not None and rotations.needs(sweep_id, project):
        return
    _log.warning("sweep without a record", sweep_id=sweep_id, project=project)
    await store.unmark_running(sweep_id, project)


@dataclass(slots=True)
class _Unmarked:
    """One round over the sweeps that have no mark: most of them ended, and were published."""

    store: SweepStore
    role: SweepRole
    seen: Seen
    still_for: timedelta
    keep_for: timedelta
    now: datetime
    rotations: OpenRotations | None = None
    unread: int = _PLANS_A_ROUND
    present: set[_Name] = field(default_factory=set)
    """The sweeps that have a plan."""

    async def look_after(self, marked: AbstractSet[_Name]) -> int:
        """Give how many of them were hurried."""
        hurried = 0
        before, self.seen.ended = self.seen.ended, {}
        async for folder in self.store.folders():
            name = (folder.sweep_id, folder.project)
            if folder.changed_at is not None:
                self.present.add(name)
            if before.get(name) == folder.etag:
                self.seen.ended[name] = folder.etag
            if name in marked or self.now - folder.touched_at <= self.still_for:
                continue
            if folder.changed_at is None or name in self.seen.ended:
                await self._clear(folder)
            elif self.unread:
                self.unread -= 1
                hurried += await self._read(folder)
        return hurried

    async def _read(self, folder: Folder) -> int:
        name = (folder.sweep_id, folder.project)
        try:
            plan = await self.store.plan_of(*name)
        except (CorruptObjectError, UnknownMasterKeyError):
            # It does not open here, and may be another worker's to carry on.
            if self._is_old(folder):
                await self._clear(folder)
            return 0
        if plan is not None and (plan.status == "running" or not plan.told):
            return await _hurried(self.role, name)
        self.seen.ended[name] = folder.etag
        await self._clear(folder)
        return 0

    async def _clear(self, folder: Folder) -> None:
        """Remove what nothing looks at any more of a sweep that ended, or that lost its plan."""
        needed = self.rotations is not None and self.rotations.needs(
            folder.sweep_id, folder.project
        )
        if self._is_old(folder) and not needed:
            await self.store.remove(folder.sweep_id, folder.project)
        elif folder.has_results:
            # Nothing else of a folder without a plan: a rotation whose plan was removed is
            # begun anew, and puts tags back that were noted there.
            await self.store.forget_results(folder.sweep_id, folder.project)

    def _is_old(self, folder: Folder) -> bool:
        return self.now - folder.touched_at > self.keep_for


async def _hurried(role: SweepRole, name: _Name) -> int:
    sweep_id, project = name
    try:
        await role.resume(sweep_id, project)
    except (CorruptObjectError, UnknownMasterKeyError) as exc:
        # One whose record was forged, or that is another worker's: the others are not
        # to wait for it.
        said = {"sweep_id": sweep_id, "project": project, "code": exc.code}
        _log.warning("sweep not hurried", **said, detail=exc.detail)
        return 0
    return 1


async def keep_rescuing(
    store: SweepStore,
    role: SweepRole,
    rotations: OpenRotations,
    *,
    keep_for: timedelta,
    interval_s: float,
) -> None:
    """Rescue for ever, a little out of step with other workers."""
    seen = Seen()
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        try:
            hurried = await rescue(
                store,
                role,
                still_for=_STILL_FOR,
                keep_for=keep_for,
                now=datetime.now(UTC),
                seen=seen,
                rotations=rotations,
            )
        except Exception:  # noqa: BLE001  # the broker may be what is down: the next round comes
            _log.exception("sweeps not looked after")
            continue
        if hurried:
            _log.warning("sweeps hurried", sweeps=hurried)
