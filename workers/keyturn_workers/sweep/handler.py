"""What a sweep worker does with the hints that it receives (SPEC 8.5)."""

import asyncio

import structlog

from keyturn.errors import CodedError
from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.all_projects_sweep import AllProjectsSweep
from keyturn_workers.sweep.messages import SweepPage, SweepStep
from keyturn_workers.sweep.page_worker import PageWorker
from keyturn_workers.sweep.plan import ALL, OpenPage, Plan, Result
from keyturn_workers.sweep.project_sweep import ProjectSweep
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.worker.metrics import WorkerMetrics

_log = structlog.get_logger()


class SweepHandler:
    """Serves `keyturn.plan` and `keyturn.sweep`.

    Args:
        store: The records of sweeps.
        project_sweep: Runs the steps of sweeps of one project.
        all_projects_sweep: Runs the steps of sweeps of all projects.
        page_worker: Processes pages.
        metrics: Of the process.
    """

    def __init__(
        self,
        store: SweepStore,
        project_sweep: ProjectSweep,
        all_projects_sweep: AllProjectsSweep,
        page_worker: PageWorker,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._store = store
        self._project_sweep = project_sweep
        self._all_projects_sweep = all_projects_sweep
        self._page_worker = page_worker
        self._metrics = metrics or WorkerMetrics()
        self._stage = self._metrics.queue(SWEEP_QUEUE).stage
        # The event loop itself keeps no reference to a task.
        self._recording: set[asyncio.Task[None]] = set()

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        """Run a step of a sweep; arguments and errors as of `StepRunner.run_step`."""
        await self._runner(hint.project).run_step(hint, again=again)

    async def process_page(self, hint: SweepPage) -> None:
        """Make one attempt at a page, if the sweep's record still waits for it.

        Raises: as `PageWorker.process`.
        """
        try:
            stored = await self._store.read(hint.sweep_id, hint.project)
        except MissingError:
            return  # the sweep ended, and its records were removed
        plan = stored.plan
        if plan.successor is not None:
            await self._project_sweep.restore_page_tags(plan, hint)
            return
        open_page = plan.page(hint.page)
        if plan.status != "running" or open_page is None:
            return
        if (plan.round, open_page.take) != (hint.round, hint.take):
            return
        if await self._project_sweep.extend_lease(stored):
            return
        with self._stage("take"):
            result = await self._page_worker.process(plan, open_page)
        with self._stage("record"):
            # Completed even if this message's handler is cancelled, as when the connection to
            # the broker is lost. A result without the check that follows would stay for days.
            recording = asyncio.create_task(self._record(plan, open_page, result))
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

    async def _record(self, plan: Plan, open_page: OpenPage, result: Result) -> None:
        state = result.state or plan.state
        if await self._store.add_result(plan, open_page, result, state.master_key):
            await self._store.delete_result_if_stale(plan, open_page)

    async def record_failure(self, hint: SweepStep, error: CodedError) -> None:
        """Record and publish that a sweep cannot continue."""
        await self._runner(hint.project).record_failure(hint, error)

    async def resume(self, sweep_id: str, project: str) -> None:
        """Make sure that a sweep continues whose messages may be lost."""
        await self._runner(project).resume(sweep_id, project)

    def _runner(self, project: str) -> ProjectSweep | AllProjectsSweep:
        return self._all_projects_sweep if project == ALL else self._project_sweep
