"""Consumes the sweep's hints (SPEC 6.2, 8.5, 12).

A hint is unsigned, so not trusted: a message that is not a hint, or names no sweep, changes
nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import (
    CodedError,
    MalformedRequestError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.amqp.message_consumer import (
    ConsumerContext,
    DeferError,
    Job,
    MessageConsumer,
    NotAdmittedError,
    Report,
)
from keyturn_workers.amqp.retry import retry_delay_s
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.sweep.handler import SweepHandler
from keyturn_workers.sweep.messages import Hint, SweepPage, SweepStep, parse, queue_of
from keyturn_workers.sweep.page import CannotProveYetError
from keyturn_workers.worker.metrics import Delivery

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HintJob(Job):
    """A hint that belongs on its queue."""

    hint: Hint

    @property
    def log_fields(self) -> dict[str, Any]:
        """See `Job.log_fields`."""
        return {"project": self.hint.project}


class HintConsumer(MessageConsumer[HintJob, None]):
    """Consumes one of the sweep's queues."""

    def __init__(
        self, handler: SweepHandler, queue: str, max_age: timedelta, context: ConsumerContext
    ) -> None:
        """A step is retried for up to `max_age`; then every open request of its record fails."""
        super().__init__(queue, context)
        self._handler = handler
        self._max_age = max_age

    async def _admit(self, message: AbstractIncomingMessage, delivery: Delivery) -> HintJob:
        try:
            hint = parse(message.body)
        except MalformedRequestError as exc:
            raise NotAdmittedError(exc) from exc
        if queue_of(hint) != self._queue:
            raise NotAdmittedError(MalformedRequestError("this hint belongs on another queue"))
        if isinstance(hint, SweepPage):
            delivery.identify("round", hint.round)
        retry = self._worker_publisher.retry_of(message, self._queue)
        return HintJob(message, retry, "", hint)

    async def _reject(self, message: AbstractIncomingMessage, refusal: NotAdmittedError) -> Report:
        error = refusal.error
        await self._worker_publisher.dead_letter(message, self._queue, error)

        def report() -> None:
            self._metrics.count_refused(error)
            _log.warning("refused", queue=self._queue, code=error.code, detail=error.detail)

        return report

    async def _serve(self, job: HintJob) -> None:
        try:
            match job.hint:
                case SweepStep():
                    await self._handler.run_step(job.hint, again=job.seen_before)
                case SweepPage():
                    await self._handler.process_page(job.hint)
        except NotFoundError as exc:
            # Forged, or left over from a sweep whose records were removed.
            _log.warning("hint without a record", project=job.hint.project, detail=exc.detail)
        except CannotProveYetError as exc:
            # No failure, so no attempt: while workers are replaced one after the other, a page
            # can meet several that have just started. Counted, it would wait for minutes.
            raise DeferError(exc.wait_s) from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(f"{type(exc).__name__}: {exc}") from exc

    async def _complete(self, job: HintJob, result: None, delivery: Delivery) -> Report:
        """Only count it: the sweep published what there is."""
        del job, result, delivery
        return self._metrics.count_hint

    def _retry_delay_s(self, job: HintJob, error: CodedError, attempt: int) -> int | None:
        """Seconds until the next attempt, or None if the sweep ends here.

        A page is retried whatever the error: if its keyring cannot be used, the next step says so.
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
        await self._worker_publisher.dead_letter(job.message, self._queue, error)
        return partial(self._report_given_up, job, error)

    def _report_given_up(self, job: HintJob, error: CodedError) -> None:
        self._metrics.count_refused(error)
        _log.error("gave up", **job.log_fields, code=error.code, detail=error.detail)

    async def _fail(self, hint: SweepStep, error: CodedError) -> None:
        try:
            await self._handler.record_failure(hint, error)
        except (CodedError, StorageAnswerError) as exc:
            # Its record cannot be changed (by this process, perhaps because it lacks a master key):
            # then only the dead letter reports the failure.
            _log.error("failure not recorded", project=hint.project, problem=type(exc).__name__)


def _waited_s(attempt: int) -> int:
    """The delays of all attempts before this one, added up."""
    more = max(0, attempt - len(RETRY_DELAYS_S))
    return sum(RETRY_DELAYS_S[:attempt]) + RETRY_DELAYS_S[-1] * more
