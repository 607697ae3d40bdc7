"""What a sweep worker does with the hints that it gets (SPEC 8.5)."""

import asyncio

import structlog

from keyturn.errors import CodedError
from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.fleet_sweep import FleetSweep
from keyturn_workers.sweep.messages import SweepPage, SweepStep
from keyturn_workers.sweep.page_worker import PageWorker
from keyturn_workers.sweep.plan import ALL, OpenPage, Plan, Result
from keyturn_workers.sweep.project_sweep import ProjectSweep
from keyturn_workers.sweep.store import SweepStore
from keyturn_workers.worker.metrics import WorkerMetrics

_log = structlog.get_logger()


class SweepRole:
    """Serves `keyturn.plan` and `keyturn.sweep`."""

    def __init__(
        self,
        store: SweepStore,
        steps: ProjectSweep,
        everyone: FleetSweep,
        pages: PageWorker,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._store = store
        self._steps = steps
        self._everyone = everyone
        self._pages = pages
        self._metrics = metrics or WorkerMetrics()
        self._stage = self._metrics.queue(SWEEP_QUEUE).stage
        # The event loop holds no task by itself.
        self._recording: set[asyncio.Task[None]] = set()

    async def step(self, hint: SweepStep, *, again: bool) -> None:
        """Carry a sweep on by one step; errors as `StepRunner.serve`."""
        await self._carrier(hint.project).serve(hint, again=again)

    async def page(self, hint: SweepPage) -> None:
        """Do one take of a page, if the sweep's record still waits for it.

        Raises: as `PageWorker.take`.
        """
        try:
            standing = await self._store.read(hint.sweep_id, hint.project)
        except MissingError:
            return  # the sweep ended, and its records went
        plan = standing.plan
        if plan.successor is not None:
            await self._steps.restore_tags_of(plan, hint)
            return
        live = plan.page(hint.page)
        if (
            plan.status != "running"
            or live is None
            or (plan.round, live.take)
            != (
                hint.round,
                hint.take,
            )
        ):
            return
        if await self._steps.lengthen(standing):
            return
        with self._stage("take"):
            result = await self._pages.take(plan, live)
        with self._stage("record"):
            # Whole even where this message's handler is cancelled, as it is when the broker's
            # connection is lost: a result put and not looked after would stay for days.
            recording = asyncio.create_task(self._record(plan, live, result))
            self._recording.add(recording)
            recording.add_done_callback(self._recording.discard)
            await asyncio.shield(recording)
        self._metrics.count_page(
            result.counts.to_json(), (failure.code for failure in result.failures)
        )
        _log.info(
            "page done",
            sweep_id=hint.sweep_id,
            project=hint.project,
            page=hint.page,
            take=hint.take,
            changed=result.changed,
            failed=len(result.failures),
        )

    async def _record(self, plan: Plan, live: OpenPage, result: Result) -> None:
        state = result.state or plan.state
        if await self._store.add_result(plan, live, result, state.master_key):
            await self._store.forget_if_over(plan, live)

    async def fail(self, hint: SweepStep, error: CodedError) -> None:
        """Record and tell that a sweep cannot go on."""
        await self._carrier(hint.project).fail(hint, error)

    async def resume(self, sweep_id: str, project: str) -> None:
        """Make sure that a sweep goes on whose messages may be lost."""
        await self._carrier(project).resume(sweep_id, project)

    def _carrier(self, project: str) -> ProjectSweep | FleetSweep:
        return self._everyone if project == ALL else self._steps
