"""The steps of a sweep of all projects: one part per project (SPEC 6.6, 8.1).

Each step walks on through the listing of keyrings. It lets each keyring be re-sealed under the
master key that the request names, and starts the project's part, which is a sweep like any
other. The sweep ends when a walk through a fresh listing finds no keyring whose part has not
ended.

A keyring that is listed but answers 404 is not taken as gone. Further walks look for it, and if
a listing still shows it after a few, the project is recorded as failed (SPEC 8.6).

A part whose record an attacker removed from the bucket would never end: it is started again.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    KeyringRolledBackError,
    KmsUnavailableError,
    MalformedRequestError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key, parse_time
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import KeyringContradictedError, KeyringHiddenError
from keyturn_workers.sweep.context import SweepContext
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import AllPlan, PartResult
from keyturn_workers.sweep.progress import MAX_TRIES
from keyturn_workers.sweep.starter import SweepStarter
from keyturn_workers.sweep.step_runner import StepRunner
from keyturn_workers.sweep.sweep_store import StoredPlan

# Parts under way at once: each waits for two leases, however small the project.
MAX_OPEN_PARTS: Final = 512
# Keyrings that one step inspects.
_PROJECTS_PER_STEP: Final = 2000
_STEP_INTERVAL_S: Final = 1.0
# Steps between checks of the records of the parts under way: about a minute.
_STEPS_PER_CHECK: Final = 60
# Before a walk that has only projects left whose master key no worker here holds.
_DEFERRED_PAUSE_S: Final = 30.0
# Before a walk that has only keyrings left that were listed but not found.
_NOT_FOUND_PAUSE_S: Final = 5.0
# How many of those are counted at once. The others are counted later.
_MAX_NOT_FOUND: Final = 1000

_log = structlog.get_logger()


class AllProjectsSweep(StepRunner[AllPlan]):
    """Runs the steps of sweeps of all projects.

    Args:
        context: What the parts of a sweep share.
        starter: Starts the parts.
    """

    def __init__(self, context: SweepContext, starter: SweepStarter) -> None:
        super().__init__(context.store, context.dispatcher)
        self._storage = context.storage
        self._keyrings = context.keyrings
        self._starter = starter

    async def _read(self, sweep_id: str, project: str) -> StoredPlan[AllPlan]:
        del project
        return await self._store.read_all(sweep_id)

    async def _send_again(self, plan: AllPlan) -> None:
        await self._dispatcher.send_step(plan)

    async def _before_end_published(self, stored: StoredPlan[AllPlan]) -> None:
        """Nothing: its parts ended before it did."""

    @property
    def _refuses_late_writes(self) -> bool:
        return self._storage.capabilities.late_writes_refused

    async def _step(self, stored: StoredPlan[AllPlan]) -> bool:
        if stored.plan.step == 0:
            await self._keyrings.sign_marks_anew()
            if not self._refuses_late_writes:
                sweep_id = stored.plan.ask.sweep_id
                _log.warning("the storage does not refuse late writes", sweep_id=sweep_id)
        plan = await self._without_ended(stored.plan)
        if plan.step % _STEPS_PER_CHECK == 0:
            plan = await self._without_lost(plan, stored.master_key)
        walk = _Walk(not_found=dict(plan.not_found))
        async for project in self._projects_to_start(plan):
            if len(plan.live) >= MAX_OPEN_PARTS or walk.inspected == _PROJECTS_PER_STEP:
                walk.is_over = False
                break
            walk.inspected += 1
            plan = replace(plan, through=project)
            if await self._start_part(plan, project, stored.master_key, walk):
                plan = replace(plan, live=(*plan.live, project))
        plan = replace(
            plan,
            begun_in_walk=plan.begun_in_walk + walk.started + walk.deferred + walk.missed,
            not_found=walk.not_found,
        )
        if not walk.is_over or plan.live:
            return await self._continue(stored, plan, _STEP_INTERVAL_S)
        if plan.begun_in_walk:
            # Projects may have been enrolled behind the walk: once more from the beginning.
            plan = replace(plan, through="", begun_in_walk=0)
            return await self._continue(stored, plan, walk.pause_s)
        return await self._end(stored, plan)

    async def _continue(self, stored: StoredPlan[AllPlan], plan: AllPlan, wait_s: float) -> bool:
        plan = replace(plan, step=plan.step + 1, stepped_at=datetime.now(UTC))
        if not await self._store.change(plan, stored.etag, stored.master_key):
            return False
        await self._dispatcher.send_step(plan, wait_s)
        return True

    # Parts under way.

    async def _without_ended(self, plan: AllPlan) -> AllPlan:
        """The plan without the parts that ended since the last step."""
        if not plan.live:
            return plan
        open_parts, sums, projects = set(plan.live), plan.sums, plan.projects
        async for project in self._store.ended_parts(plan.ask.sweep_id, since=_first(plan.live)):
            if project not in open_parts:
                continue
            result = await self._store.read_part_result(plan.ask.sweep_id, project)
            if result is not None:
                open_parts.discard(project)
                # These sums show progress. The sums of the end are computed anew.
                sums, projects = sums + result.counts, projects + 1
        live = tuple(project for project in plan.live if project in open_parts)
        return replace(plan, live=live, sums=sums, projects=projects)

    async def _without_lost(self, plan: AllPlan, master_key: str) -> AllPlan:
        """The plan without the parts that have no record any more: the next walk starts them.

        If a part ended and its end was published, only the record of its result can be lost.
        """
        lost = set[str]()
        for project in plan.live:
            try:
                part = (await self._store.read(plan.ask.sweep_id, project)).plan
            except (UnknownMasterKeyError, KmsUnavailableError):
                continue
            except (MissingError, CorruptObjectError):
                # If it was overwritten, it has failed: the walk records that.
                fields = {"sweep_id": plan.ask.sweep_id, "project": project}
                _log.warning("part of a sweep of all without a record", **fields)
                lost.add(project)
                continue
            if part.told:
                result = PartResult.of(part)
                await self._store.add_part_result(plan.ask.sweep_id, project, result, master_key)
        live = tuple(project for project in plan.live if project not in lost)
        return replace(plan, live=live, begun_in_walk=plan.begun_in_walk + len(lost))

    # The walk.

    async def _projects_to_start(self, plan: AllPlan) -> AsyncIterator[str]:
        """The projects of the rest of the walk whose part neither ended nor is under way."""
        open_parts = set(plan.live)
        ended_parts = self._store.ended_parts(plan.ask.sweep_id, since=plan.through)
        ended = await anext(ended_parts, None)
        start = f"{KEYRINGS_PREFIX}{plan.through}.json" if plan.through else ""
        async for row in self._storage.list(KEYRINGS_PREFIX, after=start):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            while ended is not None and _order(ended) < _order(project):
                ended = await anext(ended_parts, None)
            if not is_project(project) or project in open_parts:
                continue
            # The name of a record proves nothing, an attacker can create it: it must open.
            if project == ended and await self._store.read_part_result(plan.ask.sweep_id, project):
                continue
            yield project

    async def _start_part(
        self, plan: AllPlan, project: str, master_key: str, walk: "_Walk"
    ) -> bool:
        """Start a project's part; False if there is nothing to do, or it failed at once."""
        try:
            part = replace(plan.ask, project=project, of_all=True)
            await self._starter.start(part, plan.origins)
        except (UnknownProjectError, KeyringHiddenError) as exc:
            await self._keyring_not_found(plan, project, exc, master_key, walk)
            return False
        except (UnknownMasterKeyError, KmsUnavailableError) as exc:
            # The others continue. A later walk tries again, perhaps in a process with the key.
            _log.warning("project put off", project=project, code=exc.code, detail=exc.detail)
            walk.deferred += 1
            return False
        except (CorruptObjectError, MalformedRequestError, KeyringContradictedError) as exc:
            # A keyring that was forged or rolled back, by which nothing may be wrapped, or another
            # sweep of the project with the same id. The others continue.
            await self._record_failed_part(plan, project, exc, master_key)
            return False
        walk.started += 1
        return True

    async def _keyring_not_found(
        self,
        plan: AllPlan,
        project: str,
        error: UnknownProjectError | KeyringHiddenError,
        master_key: str,
        walk: "_Walk",
    ) -> None:
        """A keyring was listed, and the storage says that it does not exist.

        If it was removed, the listing of the next walk shows that. If it were taken as gone now, a
        whole project could be left under the master key that is to be dropped.
        """
        tries = walk.not_found.get(project, 0) + 1
        if tries >= MAX_TRIES:
            walk.not_found.pop(project, None)
            await self._record_failed_part(plan, project, error, master_key)
            return
        walk.missed += 1
        if project in walk.not_found or len(walk.not_found) < _MAX_NOT_FOUND:
            walk.not_found[project] = tries
        _log.warning("keyring listed and not found", project=project, tries=tries)

    async def _record_failed_part(
        self, plan: AllPlan, project: str, error: CodedError, master_key: str
    ) -> None:
        sweep_id = plan.ask.sweep_id
        fields = {"sweep_id": sweep_id, "project": project, "code": error.code}
        _log.error("sweep failed", **fields, detail=error.detail)
        part = replace(plan.ask, project=project)
        await self._dispatcher.publish_progress(part, Counts(failed=1), plan.origins)
        result = PartResult(Counts(failed=1), clean=False)
        await self._store.add_part_result(sweep_id, project, result, master_key)

    # The end.

    async def _end(self, stored: StoredPlan[AllPlan], plan: AllPlan) -> bool:
        """Every part ended: publish the sums of all of them, by their records."""
        sums, ended_parts, clean = await self._sum_parts(plan.ask.sweep_id)
        for project in sorted(self._keyrings.marked_projects() - ended_parts):
            error = await self._find_missed(plan, project)
            if error is not None:
                await self._record_failed_part(plan, project, error, stored.master_key)
                sums, clean = sums + Counts(failed=1), False
                ended_parts.add(project)
        if plan.ask.master_key is not None and not plan.ask.dry_run:
            clean &= await self._all_under(plan.ask.master_key)
            # No record may be left under the master key that is to be dropped.
            await self._store.reseal_records(plan.ask.master_key)
        ended = replace(
            plan,
            status="done",
            clean=clean,
            sums=sums,
            projects=len(ended_parts),
            ended_at=datetime.now(UTC),
            late_writes_refused=None if plan.ask.dry_run else self._refuses_late_writes,
        )
        if not await self._store.change(ended, stored.etag, stored.master_key):
            return False
        _log.info("sweep of all ended", sweep_id=plan.ask.sweep_id, clean=clean)
        await self._finish(await self._store.read_all(plan.ask.sweep_id))
        return True

    async def _sum_parts(self, sweep_id: str) -> tuple[Counts, set[str], bool]:
        sums, projects, clean = Counts(), set[str](), True
        async for project in self._store.ended_parts(sweep_id):
            result = await self._store.read_part_result(sweep_id, project)
            if result is not None:
                projects.add(project)
                sums, clean = sums + result.counts, clean and result.clean
        return sums, projects, clean

    async def _find_missed(self, plan: AllPlan, project: str) -> CodedError | None:
        """Why a project that has a mark has no part; None if it was enrolled meanwhile.

        A bucket writer may have removed its keyring, and may put it back later.
        """
        try:
            snapshot = await self._keyrings.read_fresh(project)
        except (
            CorruptObjectError,
            KeyringContradictedError,
            UnknownMasterKeyError,
            UnknownProjectError,
        ) as exc:
            return exc
        requested_at = parse_time(plan.ask.requested_at)
        if parse_time(snapshot.keyring.enrollment.at) >= requested_at:
            return None
        return KeyringRolledBackError("no listing of this sweep has shown the keyring")

    async def _all_under(self, master_key: str) -> bool:
        """Whether a fresh listing shows every keyring under this master key."""
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if not is_project(project):
                continue
            try:
                snapshot = await self._keyrings.read_fresh(project)
            except UnknownProjectError:
                if await self._is_listed(project):
                    return False
                continue  # removed since it was listed
            except (
                CorruptObjectError,
                UnknownMasterKeyError,
                KeyringHiddenError,
                KeyringContradictedError,
            ):
                return False
            if snapshot.keyring.master_key != master_key:
                return False
        return True

    async def _is_listed(self, project: str) -> bool:
        """Whether a listing that begins now shows the project's keyring."""
        s3_key = keyring_s3_key(project)
        return any([row.key == s3_key async for row in self._storage.list(s3_key, limit=1)])


@dataclass(slots=True)
class _Walk:
    """What one step's part of a walk found.

    Attributes:
        inspected: How many projects were inspected.
        started: How many parts were started.
        deferred: How many projects wait for a process with their master key.
        missed: How many keyrings were not found that the next walk must look for.
        is_over: Whether the walk reached the end of the listing.
        not_found: By project, in how many walks its keyring was listed but not found.
    """

    inspected: int = 0
    started: int = 0
    deferred: int = 0
    missed: int = 0
    is_over: bool = True
    not_found: dict[str, int] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next walk."""
        if self.deferred:
            return _DEFERRED_PAUSE_S
        return _NOT_FOUND_PAUSE_S if self.missed else _STEP_INTERVAL_S


def _order(project: str) -> bytes:
    """The order in which the bucket lists records: by the name with its suffix."""
    return f"{project}.json".encode()


def _first(projects: tuple[str, ...]) -> str:
    return min(projects, key=_order)
