"""A sweep of all projects: one part a project, begun a window at a time (SPEC 6.6, 8.1).

It walks through the listing of keyrings, lets each be re-sealed under the master key that
is named, and begins the project's part, which is a sweep like any other. It ends when a
walk through a fresh listing finds no keyring whose part has not ended.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from contracts.errors import CorruptObjectError, KeyturnError, NotFoundError, UnknownProjectError
from contracts.names import KEYRINGS_PREFIX, is_project, parse_time
from workers.envelope import OperatorKeys
from workers.errors import MissingError
from workers.keyring import KeyringReader, Observed
from workers.storage import Storage
from workers.sweep.counts import Counts
from workers.sweep.messages import SweepStep
from workers.sweep.outbox import Outbox
from workers.sweep.plan import AllPlan, Ask, Ended
from workers.sweep.start import Starter
from workers.sweep.store import StandingAll, SweepStore

# Parts under way at once: each waits for two leases, whatever its size.
MAX_LIVE: Final = 512
# Keyrings that one step looks at.
_PROJECTS_A_STEP: Final = 2000
_BETWEEN_STEPS_S: Final = 1.0

_log = structlog.get_logger()


class Everyone:
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
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._store = store
        self._starter = starter
        self._outbox = outbox

    async def serve(self, hint: SweepStep, *, again: bool) -> None:
        """Carry the sweep on, as `workers.sweep.steps.Steps.serve` does one project's.

        Raises:
            NotFoundError: there is no such sweep.
            CorruptObjectError: its record was forged.
            UnknownMasterKeyError, StorageUnavailableError: later.
        """
        try:
            standing = await self._store.read_all(hint.sweep_id)
        except MissingError as exc:
            raise NotFoundError("no record of this sweep stands in the bucket") from exc
        plan = standing.plan
        if plan.status != "running":
            await self._tell_end(standing)
        elif hint.step == plan.step:
            await self._step(standing)
        elif again and hint.step + 1 == plan.step:
            await self._outbox.step(plan)

    async def hurry(self, sweep_id: str) -> None:
        """As `Steps.hurry`."""
        try:
            standing = await self._store.read_all(sweep_id)
        except MissingError:
            return
        if standing.plan.status != "running":
            await self._tell_end(standing)
            return
        plan = replace(standing.plan, step=standing.plan.step + 1)
        if await self._store.change(plan, standing.etag, standing.master_key):
            await self._outbox.step(plan)

    async def _step(self, standing: StandingAll) -> None:
        plan = await self._gathered(standing.plan)
        looked_at, over = 0, True
        begun: list[str] = []
        async for project in self._missing(plan):
            if len(plan.live) >= MAX_LIVE or looked_at == _PROJECTS_A_STEP:
                over = False
                break
            looked_at += 1
            plan = replace(plan, through=project)
            if await self._begin(plan, project, standing.master_key):
                plan = replace(plan, live=(*plan.live, project))
                begun.append(project)
        plan = replace(plan, begun_in_walk=plan.begun_in_walk + len(begun))
        if over and not plan.live:
            if not plan.begun_in_walk:
                await self._end(standing, plan)
                return
            # Projects may have been enrolled behind the walk: once more from the beginning.
            plan = replace(plan, through="", begun_in_walk=0)
        await self._go_on(standing, plan)

    async def _go_on(self, standing: StandingAll, plan: AllPlan) -> None:
        plan = replace(plan, step=plan.step + 1, stepped_at=datetime.now(UTC))
        if await self._store.change(plan, standing.etag, standing.master_key):
            await self._outbox.step(plan, _BETWEEN_STEPS_S)

    async def _gathered(self, plan: AllPlan) -> AllPlan:
        """The plan after the parts that ended since the last step."""
        if not plan.live:
            return plan
        sums, clean, projects, left = plan.sums, plan.clean, plan.projects, set(plan.live)
        async for project in self._store.ended(plan.ask.sweep_id, since=_first(plan.live)):
            if project in left:
                ended = await self._store.read_ended(plan.ask.sweep_id, project)
                sums += ended.counts
                clean &= ended.clean
                projects += 1
                left.discard(project)
        live = tuple(project for project in plan.live if project in left)
        return replace(plan, live=live, sums=sums, clean=clean, projects=projects)

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
            if is_project(project) and project != done and project not in live:
                yield project

    async def _begin(self, plan: AllPlan, project: str, master_key: str) -> bool:
        """Begin a project's part; False where there is nothing to do, or it failed at once."""
        ask = plan.ask
        try:
            observed = await self._keyrings.fresh(project)
            if _needs_nothing(observed, ask, plan.started_at):
                ended = Ended(Counts(), clean=True)
                await self._store.add_ended(ask.sweep_id, project, ended, master_key)
                return False
            await self._starter.start(replace(ask, project=project, of_all=True))
        except UnknownProjectError:
            return False  # removed since it was listed
        except CorruptObjectError as exc:
            # A keyring that somebody forged: nothing may be wrapped by it, the rest goes on.
            _log.error(
                "sweep failed",
                sweep_id=ask.sweep_id,
                project=project,
                code=exc.code,
                detail=exc.detail,
            )
            await self._outbox.progressed(replace(ask, project=project), Counts(failed=1))
            ended = Ended(Counts(failed=1), clean=False)
            await self._store.add_ended(ask.sweep_id, project, ended, master_key)
        else:
            return True
        return False

    async def _end(self, standing: StandingAll, plan: AllPlan) -> None:
        clean = plan.clean and await self._all_under(plan.ask)
        if plan.ask.master_key is not None and not plan.ask.dry_run:
            # So that no record is left under the key that is to be dropped.
            await self._store.reseal_ended(plan.ask.master_key)
        ended = replace(plan, status="done", clean=clean, ended_at=datetime.now(UTC))
        if not await self._store.change(ended, standing.etag, standing.master_key):
            return
        _log.info("sweep of all ended", sweep_id=plan.ask.sweep_id, clean=clean)
        await self._tell_end(await self._store.read_all(plan.ask.sweep_id))

    async def _all_under(self, ask: Ask) -> bool:
        """Whether a fresh listing shows every keyring under the master key that was named."""
        if ask.master_key is None or ask.dry_run:
            return True
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if not is_project(project):
                continue
            try:
                observed = await self._keyrings.fresh(project)
            except UnknownProjectError:
                continue
            except CorruptObjectError:
                return False
            if observed.keyring.master_key != ask.master_key:
                return False
        return True

    async def _tell_end(self, standing: StandingAll) -> None:
        plan = standing.plan
        if not plan.told:
            await self._outbox.ended(plan)
            told = replace(plan, told=True)
            if not await self._store.change(told, standing.etag, standing.master_key):
                return
        await self._store.unmark_running(plan.ask.sweep_id, plan.ask.project)

    async def fail(self, hint: SweepStep, error: KeyturnError) -> None:
        """Record and tell that the sweep cannot go on."""
        try:
            standing = await self._store.read_all(hint.sweep_id)
        except MissingError:
            return
        if standing.plan.status != "running":
            return
        plan = replace(
            standing.plan,
            status="failed",
            clean=False,
            told=True,
            code=error.code,
            detail=error.detail,
            ended_at=datetime.now(UTC),
        )
        if await self._store.change(plan, standing.etag, standing.master_key):
            await self._outbox.failed(plan.ask, error)
            await self._store.unmark_running(plan.ask.sweep_id, plan.ask.project)


def _order(project: str) -> bytes:
    """As the bucket lists their records: by the name with its ending."""
    return f"{project}.json".encode()


def _first(projects: tuple[str, ...]) -> str:
    return min(projects, key=_order)


def _needs_nothing(observed: Observed, ask: Ask, started_at: datetime) -> bool:
    """Whether the project was enrolled since the sweep began, as the sweep would leave it.

    Otherwise a sweep of all would never end where enrolments keep coming. Whoever adopts
    objects sweeps them by that request.
    """
    keyring = observed.keyring
    if keyring.history or keyring.v0_allowed or ask.dry_run:
        return False
    if ask.encrypt_plaintext and keyring.plaintext_allowed:
        return False
    named = ask.master_key in (None, keyring.master_key)
    return named and parse_time(keyring.current.at) > started_at
