"""Consumes the hints of sweeps (SPEC 6.2, 8.5, 12).

A hint is unsigned, so not trusted: a message that is not a hint, or names no sweep, changes
nothing.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage
from faststream import ContextRepo
from faststream.message import StreamMessage

from keyturn.errors import (
    CodedError,
    MalformedRequestError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn.topology import RETRY_DELAYS_S, SWEEP_QUEUE
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.sweep_record import ALL, OpenPage, ProjectRecord, Result
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.amqp.failures import retry_delay_s
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.pipeline.amqp.routes import Codec, Route
from keyturn_workers.pipeline.amqp.settlement import (
    DeliveryContext,
    Job,
    NotAdmittedError,
    Report,
    Settlement,
)
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.messages import Hint, SweepPage, SweepStep, parse, queue_of
from keyturn_workers.pipeline.sweep.page import CannotProveYetError, PageWorker
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.process.metrics import WorkerMetrics

_log = structlog.get_logger()


class SweepHandler:
    """Serves `keyturn.plan` and `keyturn.sweep`."""

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
            # Complete this even if this message's handler is canceled, as when the connection to
            # the broker is lost: a result without the check in `_record` would stay for days.
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


@dataclass(slots=True)
class HintJob(Job):
    """A hint that came on the right queue."""

    hint: Hint

    @property
    def log_fields(self) -> dict[str, Any]:
        """See `Job.log_fields`."""
        return {"project": self.hint.project}


@dataclass(frozen=True, slots=True)
class HintQueue:
    """The objects that all deliveries of one of the sweep's queues share.

    A step is retried for up to `max_age`; then every open request of its record fails.
    """

    handler: SweepHandler
    name: str
    max_age: timedelta
    shared: DeliveryContext


class HintCodec(Codec):
    """Parses hints, which are unsigned."""

    def __init__(self, queue: HintQueue) -> None:
        self._queue = queue

    async def decode(self, msg: StreamMessage[Any]) -> HintJob:
        """Return the hint.

        Raises:
            NotAdmittedError: the message is no hint, or a hint of another queue.
        """
        message: AbstractIncomingMessage = msg.raw_message
        try:
            hint = parse(message.body)
        except MalformedRequestError as exc:
            raise NotAdmittedError(exc) from exc
        if queue_of(hint) != self._queue.name:
            raise NotAdmittedError(MalformedRequestError("this hint belongs on another queue"))
        retry = self._queue.shared.worker_publisher.retry_of(message, self._queue.name)
        return HintJob(bool(message.redelivered), retry, "", hint)


class HintSettlement(Settlement[HintJob, None]):
    """Settles a hint. The sweep itself has published its events by then."""

    def __init__(
        self,
        queue: HintQueue,
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(queue.name, queue.shared, message, context=context)
        self._handler = queue.handler
        self._max_age = queue.max_age

    def _note_admitted(self, job: HintJob) -> None:
        if isinstance(job.hint, SweepPage):
            self._delivery.identify("round", job.hint.round)

    async def _reject(self, refusal: NotAdmittedError) -> Report:
        error = refusal.error
        await self._dead_letter(error)

        def report() -> None:
            self._metrics.count_refused(error)
            _log.warning("refused", queue=self._queue, code=error.code, detail=error.detail)

        return report

    async def _complete(self, job: HintJob, result: None) -> Report:
        del job, result
        return self._metrics.count_hint

    def _retry_delay_s(self, job: HintJob, error: CodedError, attempt: int) -> int | None:
        """Seconds until the next attempt, or None if the sweep ends here.

        A page is retried whatever the error: if its keyring is unusable, the next step reports it.
        """
        now = self._now()
        if isinstance(job.hint, SweepPage) and not error.transient:
            error = StorageUnavailableError(error.detail)
        waited = timedelta(seconds=_waited_s(attempt))
        return retry_delay_s(
            error, attempt, requested_at=now - waited, max_age=self._max_age, now=now
        )

    async def _give_up(self, job: HintJob, error: CodedError) -> Report:
        if isinstance(job.hint, SweepStep):
            await self._fail(job.hint, error)
        await self._dead_letter(error)
        return partial(self._report_given_up, job, error)

    def _report_given_up(self, job: HintJob, error: CodedError) -> None:
        self._metrics.count_refused(error)
        _log.error("gave up", **job.log_fields, code=error.code, detail=error.detail)

    async def _fail(self, hint: SweepStep, error: CodedError) -> None:
        try:
            await self._handler.record_failure(hint, error)
        except (CodedError, StorageResponseError) as exc:
            # This process cannot change the record, perhaps because it lacks a master key: then
            # only the dead letter reports the failure.
            _log.error("failure not recorded", project=hint.project, problem=type(exc).__name__)


def hint_route(
    queue: HintQueue, prefetch: int, *, settlement: type[HintSettlement] = HintSettlement
) -> Route:
    """Return the route of one of the sweep's queues."""

    async def serve(job: HintJob) -> None:
        try:
            match job.hint:
                case SweepStep():
                    await queue.handler.run_step(job.hint, again=job.seen_before)
                case SweepPage():
                    await queue.handler.process_page(job.hint)
        except NotFoundError as exc:
            # Forged, or left over from a sweep whose records were removed.
            _log.warning("hint without a record", project=job.hint.project, detail=exc.detail)
        except CannotProveYetError as exc:
            # Not a failure, so do not count an attempt: while workers are replaced one by one, a
            # page can meet several that have just started, and would then wait for minutes.
            raise DeferError(exc.wait_s) from exc
        except StorageResponseError as exc:
            raise StorageUnavailableError(f"{type(exc).__name__}: {exc}") from exc

    return Route(queue.name, prefetch, HintCodec(queue), serve, (partial(settlement, queue),))


def _waited_s(attempt: int) -> int:
    """The sum of the delays of all attempts before this one."""
    more = max(0, attempt - len(RETRY_DELAYS_S))
    return sum(RETRY_DELAYS_S[:attempt]) + RETRY_DELAYS_S[-1] * more
