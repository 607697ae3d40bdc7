"""Recovery of sweeps whose messages were lost, and removal of old records (SPEC 8.5).

A broker that was emptied loses the steps of all sweeps. Several times an hour each sweep worker
looks for sweeps whose record has not changed for a while, and resumes them. It also removes what
nothing reads any more: results that a stalled worker stored after the end of its sweep, and old
records. A rotation whose record was removed is restarted.
"""

import asyncio
import random
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import structlog

from keyturn.errors import CorruptObjectError, KmsUnavailableError, UnknownMasterKeyError
from keyturn_workers.sweep.handler import SweepHandler
from keyturn_workers.sweep.lost_rotations import OpenRotations
from keyturn_workers.sweep.sweep_store import SweepFolder, SweepStore

# A step waits at most 600 s for its next attempt, and two leases for a proof.
_STALLED_AFTER: Final = timedelta(minutes=15)
# How many plans without a marker one round reads: most are of sweeps that ended well.
_PLANS_PER_ROUND: Final = 200

_Name: TypeAlias = tuple[str, str]
"""A sweep's id and its project, or `*`."""

_log = structlog.get_logger()


@dataclass(slots=True)
class SeenPlans:
    """The plans without a marker that earlier rounds found ended: by sweep, their ETag then."""

    ended: dict[_Name, str] = field(default_factory=dict)


async def recover(
    store: SweepStore,
    handler: SweepHandler,
    *,
    stalled_after: timedelta,
    keep_for: timedelta,
    now: datetime,
    seen: SeenPlans | None = None,
    rotations: OpenRotations | None = None,
) -> int:
    """Resume stalled sweeps, and remove the records of sweeps that ended long ago.

    Markers are hints that anyone who can write the bucket can forge or remove. So the lack of a
    marker neither removes the record of a running sweep nor keeps it from being resumed.

    Args:
        store: The records of sweeps.
        handler: Resumes them.
        stalled_after: A plan that has not changed for this long counts as stalled.
        keep_for: How long the records of an ended sweep are kept.
        now: This machine's clock. Ages are long, so its drift does not matter.
        seen: What earlier rounds of this process saw, so that they read each plan once.
        rotations: The last rotations of all projects, to restart those that lost their record.

    Returns:
        How many sweeps were resumed or restarted.
    """
    if rotations is not None:
        await rotations.refresh()
    resumed, marked = 0, set[_Name]()
    async for sweep_id, project, since in store.running():
        marked.add((sweep_id, project))
        changed_at = await store.changed_at(sweep_id, project)
        if now - (changed_at or since) <= stalled_after:
            continue
        if changed_at is None:
            await _unmark_without_plan(store, sweep_id, project, rotations)
            continue
        resumed += await _resume(handler, (sweep_id, project))
    unmarked = _UnmarkedSweeps(
        store, handler, seen or SeenPlans(), stalled_after, keep_for, now, rotations
    )
    resumed += await unmarked.recover(marked)
    if rotations is not None:
        resumed += await rotations.restart_lost(
            unmarked.present, stalled_after=stalled_after, keep_for=keep_for, now=now
        )
    return resumed


async def _unmark_without_plan(
    store: SweepStore, sweep_id: str, project: str, rotations: OpenRotations | None
) -> None:
    """Remove the marker of a sweep that has no plan.

    Either the worker that put it died before it created the plan, and the request is delivered
    again, or the plan was removed. A rotation whose keyring holds earlier keys is restarted, and
    keeps its marker.
    """
    if rotations is not None and rotations.needs_record(sweep_id, project):
        return
    _log.warning("sweep without a record", sweep_id=sweep_id, project=project)
    await store.unmark_running(sweep_id, project)


@dataclass(slots=True)
class _UnmarkedSweeps:
    """One round over the sweeps without a marker. Most ended, and their end was published."""

    store: SweepStore
    handler: SweepHandler
    seen: SeenPlans
    stalled_after: timedelta
    keep_for: timedelta
    now: datetime
    rotations: OpenRotations | None = None
    reads_left: int = _PLANS_PER_ROUND
    present: set[_Name] = field(default_factory=set)
    """The sweeps that have a plan."""

    async def recover(self, marked: AbstractSet[_Name]) -> int:
        """Resume them or remove their records; returns how many were resumed."""
        resumed = 0
        before, self.seen.ended = self.seen.ended, {}
        async for folder in self.store.folders():
            name = (folder.sweep_id, folder.project)
            if folder.changed_at is not None:
                self.present.add(name)
            if before.get(name) == folder.etag:
                self.seen.ended[name] = folder.etag
            if name in marked or self.now - folder.touched_at <= self.stalled_after:
                continue
            if folder.changed_at is None or name in self.seen.ended:
                await self._clear(folder)
            elif self.reads_left:
                self.reads_left -= 1
                resumed += await self._read(folder)
        return resumed

    async def _read(self, folder: SweepFolder) -> int:
        name = (folder.sweep_id, folder.project)
        try:
            plan = await self.store.find_plan(*name)
        except KmsUnavailableError:
            return 0  # nothing is known about it, whatever its age
        except (CorruptObjectError, UnknownMasterKeyError):
            # It does not open here. Another worker may be able to continue it.
            if self._is_old(folder):
                await self._clear(folder)
            return 0
        if plan is not None and (plan.status == "running" or not plan.told):
            return await _resume(self.handler, name)
        self.seen.ended[name] = folder.etag
        await self._clear(folder)
        return 0

    async def _clear(self, folder: SweepFolder) -> None:
        """Remove what nothing reads any more of a sweep that ended, or that lost its plan."""
        is_needed = self.rotations is not None and self.rotations.needs_record(
            folder.sweep_id, folder.project
        )
        if self._is_old(folder) and not is_needed:
            await self.store.remove(folder.sweep_id, folder.project)
        elif folder.has_results:
            # Only the results: a rotation whose plan was removed is restarted, and puts back the
            # tags that were noted there.
            await self.store.delete_results(folder.sweep_id, folder.project)

    def _is_old(self, folder: SweepFolder) -> bool:
        return self.now - folder.touched_at > self.keep_for


async def _resume(handler: SweepHandler, name: _Name) -> int:
    sweep_id, project = name
    try:
        await handler.resume(sweep_id, project)
    except (CorruptObjectError, UnknownMasterKeyError, KmsUnavailableError) as exc:
        # Its record is forged, or another worker must resume it. The others must not wait.
        fields = {"sweep_id": sweep_id, "project": project, "code": exc.code}
        _log.warning("sweep not resumed", **fields, detail=exc.detail)
        return 0
    return 1


async def recover_periodically(
    store: SweepStore,
    handler: SweepHandler,
    rotations: OpenRotations,
    *,
    keep_for: timedelta,
    interval_s: float,
) -> None:
    """Recover sweeps for ever, at random intervals so that workers are out of step."""
    seen = SeenPlans()
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        try:
            resumed = await recover(
                store,
                handler,
                stalled_after=_STALLED_AFTER,
                keep_for=keep_for,
                now=datetime.now(UTC),
                seen=seen,
                rotations=rotations,
            )
        except Exception:  # noqa: BLE001  # the broker may be down: another round follows
            _log.exception("sweeps not recovered")
            continue
        if resumed:
            _log.warning("sweeps resumed", sweeps=resumed)
