"""What a sweep worker does with the hints that it receives (SPEC 8.5)."""

import asyncio

import structlog

from keyturn.errors import CodedError
from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.all_projects import AllProjectsSweep
from keyturn_workers.sweep.messages import SweepPage, SweepStep
from keyturn_workers.sweep.page import PageWorker
from keyturn_workers.sweep.reconciler import Reconciler
from keyturn_workers.sweep.record import ALL, OpenPage, ProjectRecord, Result
from keyturn_workers.sweep.store import SweepStore
from keyturn_workers.worker.metrics import WorkerMetrics

_log = structlog.get_logger()


class SweepHandler:
    """Serves `keyturn.plan` and `keyturn.sweep`.

    Args:
        store: The records of sweeps.
        reconciler: Makes the steps of projects.
        all_projects: Makes the steps of sweeps of all projects.
        page_worker: Processes pages.
        metrics: Of the process.
    """

    def __init__(
        self,
        store: SweepStore,
        reconciler: Reconciler,
        all_projects: AllProjectsSweep,
        page_worker: PageWorker,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._all_projects = all_projects
        self._page_worker = page_worker
        self._metrics = metrics or WorkerMetrics()
        self._stage = self._metrics.queue(SWEEP_QUEUE).stage
        # The event loop itself keeps no reference to a task.
        self._recording: set[asyncio.Task[None]] = set()

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        """Make a step; arguments and errors as of `StepRunner.run_step`."""
        await self._runner(hint.project).run_step(hint, again=again)

    async def process_page(self, hint: SweepPage) -> None:
        """Make one attempt at a page, if the project's record still waits for it.

        Raises: as `PageWorker.process`.
        """
        try:
            stored = await self._store.read(hint.project)
        except MissingError:
            return
        record = stored.record
        current = record.round
        if current is None or current.id != hint.round:
            return
        page = current.page(hint.page)
        if page is None or page.attempts != hint.attempt:
            return
        if await self._reconciler.extend_lease(stored):
            return
        with self._stage("take"):
            result = await self._page_worker.process(record, current, page)
        with self._stage("record"):
            # Completed even if this message's handler is cancelled, as when the connection to
            # the broker is lost. A result without the check that follows would stay for days.
            recording = asyncio.create_task(self._record(record, current.id, page, result))
            self._recording.add(recording)
            recording.add_done_callback(self._recording.discard)
            await asyncio.shield(recording)
        self._metrics.count_page(
            result.counts.to_json(), (failure.code for failure in result.failures)
        )
        _log.info(
            "page done",
            project=hint.project,
            round=hint.round,
            page=hint.page,
            attempt=hint.attempt,
            changed=result.changed,
            failed=len(result.failures),
        )

    async def _record(
        self, record: ProjectRecord, round_id: str, page: OpenPage, result: Result
    ) -> None:
        project, state = record.project, result.state or record.state
        if await self._store.add_result(project, round_id, page, result, state.master_key):
            await self._store.delete_result_if_stale(project, round_id, page)

    async def record_failure(self, hint: SweepStep, error: CodedError) -> None:
        """Record and publish that a record cannot continue."""
        await self._runner(hint.project).record_failure(hint, error)

    async def resume(self, project: str) -> bool:
        """Resume a record whose messages may be lost; False if it has nothing to do."""
        return await self._runner(project).resume(project)

    def _runner(self, project: str) -> Reconciler | AllProjectsSweep:
        return self._all_projects if project == ALL else self._reconciler
