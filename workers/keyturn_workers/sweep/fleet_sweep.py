"""A sweep of all projects: one part a project, begun a window at a time (SPEC 6.6, 8.1).

It walks through the listing of keyrings, lets each be re-sealed under the master key that
is named, and begins the project's part, which is a sweep like any other. It ends when a
walk through a fresh listing finds no keyring whose part has not ended.

A keyring that is listed and answers 404 is not taken as gone: it is looked for in further
walks, and recorded as failed where a listing still shows it after a few (SPEC 8.6).

A part under way whose record a bucket writer removed would never end: it is begun again.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    MalformedRequestError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.plan import AllPlan, Ended
from keyturn_workers.sweep.progress import TRIES
from keyturn_workers.sweep.starter import Starter
from keyturn_workers.sweep.step_runner import StepRunner
from keyturn_workers.sweep.store import Standing, SweepStore

# Parts under way at once: each waits for two leases, whatever its size.
MAX_LIVE: Final = 512
# Keyrings that one step looks at.
_PROJECTS_A_STEP: Final = 2000
_BETWEEN_STEPS_S: Final = 1.0
# Between looks at the records of the parts under way: about a minute.
_STEPS_A_LOOK: Final = 60
# Before a walk that has only projects left whose master key nobody here has.
_STUCK_S: Final = 30.0
# Before a walk that has only keyrings left that were listed and not found.
_NOT_FOUND_S: Final = 5.0
# So many of those are counted at once; further ones wait for their turn.
_MAX_NOT_FOUND: Final = 1000

_log = structlog.get_logger()


class FleetSweep(StepRunner[AllPlan]):
    """Carries sweeps of all projects on.

    Args:
        storage: The bucket.
        keyrings: The process's reads of keyrings.
        keys: The operator's.
        store: The records of sweeps.
        starter: Begins the parts.
        outbox: Hints and events.
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        store: SweepStore,
        starter: Starter,
        outbox: Outbox,
    ) -> None:
        super().__init__(store, outbox)
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._starter = starter

    async def _read(self, sweep_id: str, project: str) -> Standing[AllPlan]:
        del project
        return await self._store.read_all(sweep_id)

    async def _send_again(self, plan: AllPlan) -> None:
        await self._outbox.step(plan)

    @property
    def _refuses_late_writes(self) -> bool:
        return self._storage.capabilities.late_writes_refused

    async def _step(self, standing: Standing[AllPlan]) -> bool:
        if standing.plan.step == 0 and not self._refuses_late_writes:
            sweep_id = standing.plan.ask.sweep_id
            _log.warning("the storage does not refuse late writes", sweep_id=sweep_id)
        plan = await self._without_ended(standing.plan)
        if plan.step % _STEPS_A_LOOK == 0:
            plan = await self._without_lost(plan, standing.master_key)
        walk = _Walk(not_found=dict(plan.not_found))
        async for project in self._missing(plan):
            if len(plan.live) >= MAX_LIVE or walk.looked_at == _PROJECTS_A_STEP:
                walk.over = False
                break
            walk.looked_at += 1
            plan = replace(plan, through=project)
            if await self._begin(plan, project, standing.master_key, walk):
                plan = replace(plan, live=(*plan.live, project))
        plan = replace(
            plan,
            begun_in_walk=plan.begun_in_walk + walk.begun + walk.stuck + walk.missed,
            not_found=walk.not_found,
        )
        if not walk.over or plan.live:
            return await self._go_on(standing, plan, _BETWEEN_STEPS_S)
        if plan.begun_in_walk:
            # Projects may have been enrolled behind the walk: once more from the beginning.
            plan = replace(plan, through="", begun_in_walk=0)
            return await self._go_on(standing, plan, walk.pause_s)
        return await self._end(standing, plan)

    async def _go_on(self, standing: Standing[AllPlan], plan: AllPlan, wait_s: float) -> bool:
        plan = replace(plan, step=plan.step + 1, stepped_at=datetime.now(UTC))
        if not await self._store.change(plan, standing.etag, standing.master_key):
            return False
        await self._outbox.step(plan, wait_s)
        return True

    async def _without_ended(self, plan: AllPlan) -> AllPlan:
        """The plan without the parts that ended since the last step."""
        if not plan.live:
            return plan
        left, sums, projects = set(plan.live), plan.sums, plan.projects
        async for project in self._store.ended(plan.ask.sweep_id, since=_first(plan.live)):
            if project not in left:
                continue
            ended = await self._store.read_ended(plan.ask.sweep_id, project)
            if ended is not None:
                left.discard(project)
                # For people: what is told in the end is summed up anew.
                sums, projects = sums + ended.counts, projects + 1
        live = tuple(project for project in plan.live if project in left)
        return replace(plan, live=live, sums=sums, projects=projects)

    async def _without_lost(self, plan: AllPlan, master_key: str) -> AllPlan:
        """The plan without the parts that have no record any more: the next walk begins them.

        Of a part that ended and was published, only the record of its end can be gone.
        """
        lost = set[str]()
        for project in plan.live:
            try:
                part = (await self._store.read(plan.ask.sweep_id, project)).plan
            except UnknownMasterKeyError:
                continue
            except (MissingError, CorruptObjectError):
                # One that was overwritten has failed: the walk records that.
                said = {"sweep_id": plan.ask.sweep_id, "project": project}
                _log.warning("part of a sweep of all without a record", **said)
                lost.add(project)
                continue
            if part.told:
                ended = Ended.of(part)
                await self._store.add_ended(plan.ask.sweep_id, project, ended, master_key)
        live = tuple(project for project in plan.live if project not in lost)
        return replace(plan, live=live, begun_in_walk=plan.begun_in_walk + len(lost))

    async def _missing(self, plan: AllPlan) -> AsyncIterator[str]:
        """The projects of the rest of the walk that have a keyring, and no part that ended."""
        live = set(plan.live)
        ended = self._store.ended(plan.ask.sweep_id, since=plan.through)
        done = await anext(ended, None)
        start = f"{KEYRINGS_PREFIX}{plan.through}.json" if plan.through else ""
        async for row in self._storage.list(KEYRINGS_PREFIX, after=start):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            while done is not None and _order(done) < _order(project):
                done = await anext(ended, None)
            if not is_project(project) or project in live:
                continue
            # A name proves nothing, whoever put it there: the record must open.
            if project == done and await self._store.read_ended(plan.ask.sweep_id, project):
                continue
            yield project

    async def _begin(self, plan: AllPlan, project: str, master_key: str, walk: "_Walk") -> bool:
        """Begin a project's part; False where there is nothing to do, or it failed at once."""
        ask = plan.ask
        try:
            part = replace(ask, project=project, of_all=True)
            await self._starter.start(part, plan.origins)
        except UnknownProjectError as exc:
            await self._not_found(plan, project, exc, master_key, walk)
            return False
        except UnknownMasterKeyError as exc:
            # The rest goes on; the walk comes by again, perhaps in a process that has the key.
            _log.warning("project put off", project=project, code=exc.code, detail=exc.detail)
            walk.stuck += 1
            return False
        except (CorruptObjectError, MalformedRequestError) as exc:
            # A keyring that somebody forged, or another sweep of the project by the same id:
            # nothing may be wrapped by it, and the rest goes on.
            await self._note_failed(plan, project, exc, master_key)
            return False
        walk.begun += 1
        return True

    async def _not_found(
        self,
        plan: AllPlan,
        project: str,
        error: UnknownProjectError,
        master_key: str,
        walk: "_Walk",
    ) -> None:
        """A keyring that was listed does not exist, says the storage: perhaps it was removed.

        The next walk's listing decides. Taken as gone, a whole project could be left under
        the master key that is to be dropped.
        """
        tries = walk.not_found.get(project, 0) + 1
        if tries >= TRIES:
            walk.not_found.pop(project, None)
            await self._note_failed(plan, project, error, master_key)
            return
        walk.missed += 1
        if project in walk.not_found or len(walk.not_found) < _MAX_NOT_FOUND:
            walk.not_found[project] = tries
        _log.warning("keyring listed and not found", project=project, tries=tries)

    async def _note_failed(
        self, plan: AllPlan, project: str, error: CodedError, master_key: str
    ) -> None:
        ask = plan.ask
        said = {"sweep_id": ask.sweep_id, "project": project, "code": error.code}
        _log.error("sweep failed", **said, detail=error.detail)
        part = replace(ask, project=project)
        await self._outbox.progressed(part, Counts(failed=1), plan.origins)
        ended = Ended(Counts(failed=1), clean=False)
        await self._store.add_ended(ask.sweep_id, project, ended, master_key)

    async def _end(self, standing: Standing[AllPlan], plan: AllPlan) -> bool:
        """Nothing is missing: the sums of all parts, by their records, are the end."""
        sums, projects, clean = await self._summed(plan.ask.sweep_id)
        if plan.ask.master_key is not None and not plan.ask.dry_run:
            clean &= await self._all_under(plan.ask.master_key)
            # So that no record is left under the key that is to be dropped.
            await self._store.reseal_ended(plan.ask.master_key)
        ended = replace(
            plan,
            status="done",
            clean=clean,
            sums=sums,
            projects=projects,
            ended_at=datetime.now(UTC),
            late_writes_refused=None if plan.ask.dry_run else self._refuses_late_writes,
        )
        if not await self._store.change(ended, standing.etag, standing.master_key):
            return False
        _log.info("sweep of all ended", sweep_id=plan.ask.sweep_id, clean=clean)
        await self._tell_end(await self._store.read_all(plan.ask.sweep_id))
        return True

    async def _summed(self, sweep_id: str) -> tuple[Counts, int, bool]:
        sums, projects, clean = Counts(), 0, True
        async for project in self._store.ended(sweep_id):
            ended = await self._store.read_ended(sweep_id, project)
            if ended is not None:
                sums, projects, clean = sums + ended.counts, projects + 1, clean and ended.clean
        return sums, projects, clean

    async def _all_under(self, master_key: str) -> bool:
        """Whether a fresh listing shows every keyring under the master key that was named."""
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if not is_project(project):
                continue
            try:
                observed = await self._keyrings.read_fresh(project)
            except UnknownProjectError:
                if await self._is_listed(project):
                    return False
                continue  # removed since it was listed
            except (CorruptObjectError, UnknownMasterKeyError):
                return False
            if observed.keyring.master_key != master_key:
                return False
        return True

    async def _is_listed(self, project: str) -> bool:
        """Whether a listing that begins now shows the project's keyring."""
        key = keyring_s3_key(project)
        return any([row.key == key async for row in self._storage.list(key, limit=1)])

    async def _before_told(self, standing: Standing[AllPlan]) -> None:
        """Nothing: its parts ended before it did."""


@dataclass(slots=True)
class _Walk:
    """What one step's part of the walk came by.

    `not_found` counts, by project, the walks in which its keyring was listed and not found;
    `missed` are those of this part of the walk that another walk must look for.
    """

    looked_at: int = 0
    begun: int = 0
    stuck: int = 0
    missed: int = 0
    over: bool = True
    not_found: dict[str, int] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next walk."""
        if self.stuck:
            return _STUCK_S
        return _NOT_FOUND_S if self.missed else _BETWEEN_STEPS_S


def _order(project: str) -> bytes:
    """As the bucket lists their records: by the name with its ending."""
    return f"{project}.json".encode()


def _first(projects: tuple[str, ...]) -> str:
    return min(projects, key=_order)
