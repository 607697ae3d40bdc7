"""The middleware that settles a delivery (SPEC 6.2, 6.3, 11, 12).

A message is acknowledged only after its effect and its event are durable, or after the broker
confirmed its copy in a retry or dead-letter queue. In any other case it is redelivered.

| outcome | the message is |
| --- | --- |
| not admitted | a dead letter |
| too early | back in its retry queue, with the same note |
| served | acknowledged |
| `DeferError` | in a retry queue, without counting an attempt |
| a transient error, or a bug | in a retry queue, as one more attempt |
| a permanent error, or too many attempts | a dead letter |
| the broker did not confirm | served here repeatedly; in the end given back to its queue |
| any other failure | in a retry queue, without counting an attempt |
| often given back | in a retry queue, where the broker's count begins anew |
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPException
from faststream import BaseMiddleware, ContextRepo
from faststream.message import StreamMessage

from keyturn.errors import CodedError, KeyringRolledBackError, StorageUnavailableError
from keyturn.topology import ALL_DELAYS_S, PUBLISHER_HEADER
from keyturn_workers.core.authorization import Signer
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.failures import (
    RENEWED_AFTER,
    Retry,
    attempts,
    deliveries_before,
    hold_s,
)
from keyturn_workers.pipeline.amqp.outcomes import DeferError, ReturnedError
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from keyturn_workers.pipeline.amqp.routes import CallNext
from keyturn_workers.process.metrics import WAITING, WorkerMetrics
from keyturn_workers.process.wall_clock import utc_now

# Pauses before an unfinished delivery is served again: the first, and the longest.
_PAUSE_S: Final = 1.0
_PAUSE_MAX_S: Final = 30.0
# The broker did not confirm a message, or cannot be reached.
_NOT_CONFIRMED: Final = (NotConfirmedError, AMQPException, OSError)

Report = Callable[[], None]
"""Logs and counts the outcome of a message; called once it may be acknowledged."""

_log = structlog.get_logger()


class NotAdmittedError(Exception):
    """The message must not be served: the reason, and the signer if proven."""

    def __init__(self, error: CodedError, signer: Signer | None = None) -> None:
        super().__init__(error.code)
        self.error = error
        self.signer = signer


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """The objects that all deliveries of a process share.

    `now` gives the time for ages and retries; `ending` is set when the process is asked to end.
    """

    worker_publisher: WorkerPublisher
    metrics: WorkerMetrics
    now: Callable[[], datetime] = utc_now
    ending: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Job:
    """An admitted message. `publisher` is empty for the workers' own messages.

    `is_repeated` is true if it is served again, because the broker did not confirm its outcome.
    """

    redelivered: bool
    retry: Retry | None
    publisher: str
    is_repeated: bool = field(default=False, kw_only=True)

    @property
    def seen_before(self) -> bool:
        """True if an earlier delivery or attempt may have done part of the work.

        Only the broker and the workers decide this, never an unsigned header: otherwise anyone with
        write access to the broker could make an upload abort the multipart uploads at its key.
        """
        return self.is_repeated or self.redelivered or self.retry is not None

    @property
    def attempts(self) -> int:
        """The number of deliveries in a row that ended with the same transient error."""
        return 0 if self.retry is None or self.retry.code == WAITING else self.retry.attempt

    @property
    def log_fields(self) -> dict[str, Any]:
        """The fields that identify the message in logs."""
        return {}


JobT = TypeVar("JobT", bound=Job)
ResultT = TypeVar("ResultT")


class Settlement(BaseMiddleware[Any, Any], ABC, Generic[JobT, ResultT]):
    """Serves one delivery until it is settled.

    FastStream makes one for each delivery. A delivery that ends without an error may be
    acknowledged. A `ReturnedError` gives it back to its queue.
    """

    def __init__(
        self,
        queue: str,
        shared: DeliveryContext,
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(message, context=context)
        self._queue = queue
        self._message = message
        self._worker_publisher = shared.worker_publisher
        self._now = shared.now
        self._ending = shared.ending
        self._metrics = shared.metrics.queue(queue)
        self._delivery = self._metrics.delivery()
        self._done = set[str]()

    async def consume_scope(self, call_next: CallNext, msg: StreamMessage[Any]) -> None:
        """Call the handler, and settle what it returned or raised; raises if it is given back."""
        with self._delivery:
            report = await self._finish(call_next, msg)
            if report is None:
                raise ReturnedError
            try:
                report()
            except Exception:  # noqa: BLE001  # what it reports is durable
                with suppress(Exception):  # perhaps it is the log that failed
                    _log.exception("not reported", queue=self._queue)
            # `report` may hold an error, whose traceback holds this frame: a cycle that keeps the
            # message.
            del report

    async def _finish(self, call_next: CallNext, msg: StreamMessage[Any]) -> Report | None:
        """Serve a delivery until it may be acknowledged; return None to give it back.

        If the broker did not confirm, the delivery is kept, and served again as if redelivered.
        Given back, it would be redelivered at once, and the message would use up its deliveries
        while nothing can be published.
        """
        clock = asyncio.get_running_loop().time
        began_s = clock()
        until_s = began_s + hold_s(deliveries_before(self._message))
        pause_s, is_repeated = _PAUSE_S, False
        while True:
            try:
                return await self._consume_or_defer(call_next, msg, is_repeated=is_repeated)
            except Exception as exc:  # noqa: BLE001  # no error may lose a message
                self._log_unfinished()
                if not isinstance(exc, _NOT_CONFIRMED):
                    # Not even a copy can be published. Release the place; the broker ends it.
                    until_s = min(until_s, began_s + hold_s(0))
            if await self._is_ending_within(min(pause_s, until_s - clock())) or clock() >= until_s:
                return None
            pause_s, is_repeated = min(2 * pause_s, _PAUSE_MAX_S), True
            msg.clear_cache()  # what was admitted may be refused by now

    async def _consume_or_defer(
        self, call_next: CallNext, msg: StreamMessage[Any], *, is_repeated: bool
    ) -> Report:
        """Serve a delivery; on failure it waits in a retry queue, unless the broker is the cause.

        If failing messages kept their places, they would in time take those of all requests.

        Raises:
            Exception: the delivery can be neither settled nor copied.
        """
        wait_s = float(max(ALL_DELAYS_S))
        try:
            if deliveries_before(self._message) < RENEWED_AFTER:
                return await self._consume(call_next, msg, is_repeated=is_repeated)
            # Do not try to serve it: this message may be what crashes each worker.
        except _NOT_CONFIRMED:
            raise
        except DeferError as exc:
            wait_s = exc.wait_s
        except Exception:  # noqa: BLE001  # a bug of ours must not lose a message
            self._log_unfinished()
        # If the claim is false, the note does not verify once the message is admitted.
        claimed = self._message.headers.get(PUBLISHER_HEADER)
        publisher = claimed if isinstance(claimed, str) else ""
        await self._worker_publisher.defer(self._message, self._queue, wait_s, publisher=publisher)
        return self._metrics.count_deferred

    def _log_unfinished(self) -> None:
        with suppress(Exception):  # perhaps it is the log that failed, such as on a full disk
            _log.exception(
                "delivery not finished", queue=self._queue, message_id=self._message.message_id
            )

    async def _dead_letter(self, error: CodedError) -> None:
        """Make the message a dead letter, once for each code of a refusal.

        A request that is served again, because its event was not confirmed, may be refused with
        another code. The reader of an event must find a letter with the event's code.
        """
        letter = partial(self._worker_publisher.dead_letter, self._message, self._queue, error)
        await self._once(f"dead letter {error.code}", letter)

    async def _once(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        """Do something once, however often the delivery is served here."""
        if name not in self._done:
            await act()
            self._done.add(name)

    async def _is_ending_within(self, seconds: float) -> bool:
        """Wait this long at most; return True if the process is asked to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        return self._ending.is_set()

    async def _consume(
        self, call_next: CallNext, msg: StreamMessage[Any], *, is_repeated: bool
    ) -> Report:
        try:
            job = cast("JobT", await msg.decode())
        except NotAdmittedError as exc:
            return await self._reject(exc)
        job.is_repeated = is_repeated
        self._note_admitted(job)
        if job.retry is not None and job.retry.early_s(self._now()):
            # It was moved out of its retry queue early: no attempt, and the wait goes on.
            await self._worker_publisher.put_back(
                self._message, self._queue, job.retry, publisher=job.publisher
            )
            return self._metrics.count_deferred
        try:
            with self._metrics.stage("serve"):
                result: ResultT = await call_next(msg)
        except (DeferError, AMQPException, NotConfirmedError):
            raise  # deferred, or not confirmed by the broker
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not lose a message
            return await self._retry_or_give_up(job, _error_of(exc, job))
        return await self._complete(job, result)

    async def _retry_or_give_up(self, job: JobT, error: CodedError) -> Report:
        attempt = attempts(job.retry, error)
        delay_s = self._retry_delay_s(job, error, attempt)
        if delay_s is None:
            return await self._give_up(job, error)
        await self._worker_publisher.schedule_retry(
            self._message, self._queue, error, attempt, delay_s, publisher=job.publisher
        )
        return partial(self._report_retry, job, error, delay_s)

    def _report_retry(self, job: JobT, error: CodedError, delay_s: int) -> None:
        self._metrics.count_retry(error)
        log = _log.error if isinstance(error, KeyringRolledBackError) else _log.warning
        log(
            "retry scheduled",
            **job.log_fields,
            code=error.code,
            detail=error.detail,
            delay_s=delay_s,
        )

    @abstractmethod
    def _note_admitted(self, job: JobT) -> None:
        """Note the delivery's subject in its metrics."""

    @abstractmethod
    async def _reject(self, refusal: NotAdmittedError) -> Report:
        """Make a message that was not admitted a dead letter."""

    @abstractmethod
    async def _complete(self, job: JobT, result: ResultT) -> Report:
        """Publish the result, before the message is acknowledged."""

    @abstractmethod
    def _retry_delay_s(self, job: JobT, error: CodedError, attempt: int) -> int | None:
        """Seconds until the next attempt, or None if the error is final."""

    @abstractmethod
    async def _give_up(self, job: JobT, error: CodedError) -> Report:
        """Make a message that failed for good a dead letter."""


def _error_of(exc: Exception, job: Job) -> CodedError:
    """The error code for retrying after an exception. Call it in the `except` block."""
    if isinstance(exc, CodedError):
        return exc
    _log.exception("unexpected failure", **job.log_fields)
    return StorageUnavailableError(f"internal failure: {type(exc).__name__}")
