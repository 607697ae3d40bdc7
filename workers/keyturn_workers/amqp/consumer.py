"""From the broker to a handler, and from a delivery to its settlement (SPEC 6.2, 11, 12).

`QueueConsumer` is a FastStream subscriber. It adds what FastStream does not have: whether the
broker has this process as a consumer, an end in order, and acknowledgments with few frames.

`MessageConsumer` takes each delivery to its end. A message is acknowledged only after its effect
and its event are durable, or after the broker confirmed its copy in a retry or dead-letter queue.
Whatever else happens, it is redelivered.

| what happened | what becomes of the message |
| --- | --- |
| it is not admitted | a dead letter |
| it came too early | back to its retry queue, with the same note |
| it was served | acknowledged |
| `DeferError` | to a retry queue, without counting an attempt |
| a transient error, or a bug | to a retry queue, as one more attempt |
| a permanent error, or too many attempts | a dead letter |
| the broker did not confirm | given back to its queue |
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Generic, TypeVar

import structlog
from aio_pika.abc import (
    AbstractIncomingMessage,
    AbstractQueue,
)
from aio_pika.exceptions import AMQPException
from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.message import RabbitMessage

from keyturn.errors import CodedError, KeyringRolledBackError, StorageUnavailableError
from keyturn_workers.amqp.acks import Acks
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.amqp.failures import Retry, attempts, utc_now
from keyturn_workers.amqp.publisher import OpenChannel, WorkerPublisher
from keyturn_workers.worker.authorization import Signer
from keyturn_workers.worker.metrics import WAITING, Delivery, WorkerMetrics

# While disconnected, publishing fails at once; without a pause this would spin.
_PAUSE_S: Final = 1
_CANCEL_TIMEOUT_S: Final = 5
_FLUSH_TIMEOUT_S: Final = 5
# Until the handlers of deliveries that came just before the broker's answer have begun.
_BEGIN_S: Final = 0.05


class Settlement(Enum):
    """What becomes of a delivery once its handler has ended."""

    DONE = auto()
    """Acknowledged: everything that it was for is durable."""
    RETURNED = auto()
    """Given back to its queue."""


Handle = Callable[[AbstractIncomingMessage], Awaitable[Settlement]]
Report = Callable[[], None]
"""Logs and counts what became of a message: called once it may be acknowledged."""

_log = structlog.get_logger()


class QueueConsumer:
    """Gives each delivery of one queue to a handler, and settles it as that says.

    A FastStream subscriber, which the broker starts and stops.

    Args:
        prefetch: How many deliveries are handled at once.
        handle: Must not raise. What it does not settle comes again once the channel is closed.
    """

    def __init__(self, broker: RabbitBroker, queue: str, prefetch: int, handle: Handle) -> None:
        self._broker = broker
        # The queue is declared by `declarations`, with all its arguments.
        self._declared = RabbitQueue(
            queue, queue_type=QueueType.QUORUM, durable=True, declare=False
        )
        self._handle = handle
        self._acks = Acks(prefetch)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._queue: AbstractQueue | None = None
        self._opened = OpenChannel()

        async def receive(message: RabbitMessage) -> None:
            await self._receive(message.raw_message)

        subscriber = broker.subscriber(
            self._declared,
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            no_reply=True,
        )
        subscriber(receive)

    async def attach(self) -> None:
        """Follow the channel of the subscriber, which the broker has started.

        Raises:
            ChannelInvalidStateError: the connection was lost meanwhile.
        """
        # FastStream gives the queue that its subscriber consumes; it declares none twice.
        self._queue = await self._broker.declare_queue(self._declared)
        await self._opened.follow(self._queue.channel)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        self._in_flight += 1
        self._idle.clear()
        try:
            if await self._handle(message) is Settlement.DONE:
                self._acks.done(message)
            else:
                self._acks.give_back(message)
        except Exception:
            self._acks.give_back(message)  # else it would keep its place in the prefetch for ever
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def is_active(self) -> bool:
        """Whether the broker has this process as a consumer of the queue, as it last said.

        A channel forgets a consumer that the broker cancels, for instance because its queue was
        deleted. Performs no I/O.
        """
        channel = self._opened.channel
        return channel is not None and not channel.is_closed and bool(channel.consumers)

    async def cancel(self) -> None:
        """Ask the broker for no further deliveries; those under way are still handled.

        FastStream would ask for this only after the last handler finished. Until then each
        acknowledgment would make room for a delivery that this process never handles and no other
        process gets: behind a large upload that takes its whole grace period, a full prefetch.
        Where the broker does not answer, this returns after a few seconds.
        """
        queue, channel = self._queue, self._opened.channel
        if queue is None or channel is None or channel.is_closed or not channel.consumers:
            return
        # Never canceled: aiormq would then close the channel, and end the handlers with it.
        requests = [asyncio.ensure_future(queue.cancel(tag)) for tag in channel.consumers]
        for request in requests:
            request.add_done_callback(_log_failure)
        await asyncio.wait(requests, timeout=_CANCEL_TIMEOUT_S)
        await asyncio.sleep(_BEGIN_S)

    async def wait_idle(self) -> None:
        """Wait until no delivery is being handled."""
        await self._idle.wait()

    async def flush(self) -> None:
        """Send the acknowledgments that wait for others."""
        await self._acks.flush()


async def finish(consumers: Collection[QueueConsumer], grace_s: float) -> None:
    """Cancel the consumers, and wait for the handlers of all of them, at most `grace_s` seconds.

    What is done then is acknowledged before this returns.
    """
    await asyncio.gather(*(consumer.cancel() for consumer in consumers))
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await asyncio.gather(*(consumer.wait_idle() for consumer in consumers))
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_TIMEOUT_S):
            await asyncio.gather(*(consumer.flush() for consumer in consumers))


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    # A signature is over bytes: nothing may parse a body before it is verified.
    return message


def _log_failure(request: "asyncio.Future[Any]") -> None:
    # The process stops in any case; the broker redelivers what it had sent here.
    if not request.cancelled() and (error := request.exception()) is not None:
        _log.debug("consumer not canceled", error=type(error).__name__)


class DeferError(Exception):
    """The message is to be redelivered after `wait_s` seconds without counting an attempt.

    The broker does the waiting: the worker may die meanwhile.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.0f} s")
        self.wait_s = wait_s


class NotAdmittedError(Exception):
    """The message must not be served: why, and who signed it, if that is proven."""

    def __init__(self, error: CodedError, signer: Signer | None = None) -> None:
        super().__init__(error.code)
        self.error = error
        self.signer = signer


@dataclass(frozen=True, slots=True)
class ConsumerContext:
    """What every consumer of a process uses. `now` gives the time of ages and retries."""

    worker_publisher: WorkerPublisher
    metrics: WorkerMetrics
    now: Callable[[], datetime] = utc_now


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted delivery. `publisher` is empty for the workers' own messages."""

    message: AbstractIncomingMessage
    retry: Retry | None
    publisher: str

    @property
    def seen_before(self) -> bool:
        """Whether an earlier delivery may have done part of it.

        Only the broker and the workers can say so, never an unsigned header: with one, anyone with
        write access to the broker could make an upload abort the multipart uploads at its key.
        """
        return bool(self.message.redelivered) or self.retry is not None

    @property
    def attempts(self) -> int:
        """The number of deliveries in a row that ended with the same transient error."""
        return 0 if self.retry is None or self.retry.code == WAITING else self.retry.attempt

    @property
    def log_fields(self) -> dict[str, Any]:
        """What identifies it in logs."""
        return {}


JobT = TypeVar("JobT", bound=Job)
ResultT = TypeVar("ResultT")


class MessageConsumer(ABC, Generic[JobT, ResultT]):
    """Consumes the deliveries of one queue."""

    def __init__(self, queue: str, context: ConsumerContext) -> None:
        self._queue = queue
        self._worker_publisher = context.worker_publisher
        self._now = context.now
        self._metrics = context.metrics.queue(queue)

    @property
    def in_flight(self) -> int:
        """Deliveries being served."""
        return self._metrics.in_flight

    async def __call__(self, message: AbstractIncomingMessage) -> Settlement:
        """Serve one delivery to its end; raises only if it is canceled."""
        with self._metrics.delivery() as delivery:
            try:
                report = await self._consume(message, delivery)
            except Exception:  # noqa: BLE001  # no error may lose a message
                # The broker did not confirm, so nothing is acknowledged: the message is
                # redelivered, from here or, after a lost connection, by the broker itself.
                with suppress(Exception):  # nor one of the log, such as a full disk
                    _log.exception(
                        "delivery not finished", queue=self._queue, message_id=message.message_id
                    )
                await asyncio.sleep(_PAUSE_S)
                return Settlement.RETURNED
            try:
                report()
            except Exception:  # noqa: BLE001  # what it reports is durable
                with suppress(Exception):  # it may be the log that failed
                    _log.exception("not reported", queue=self._queue)
            return Settlement.DONE

    async def _consume(self, message: AbstractIncomingMessage, delivery: Delivery) -> Report:
        try:
            job = await self._admit(message, delivery)
        except NotAdmittedError as exc:
            return await self._reject(message, exc)
        if job.retry is not None and job.retry.early_s(self._now()):
            # Moved out of its retry queue: this neither counts as an attempt nor ends the wait.
            await self._worker_publisher.put_back(
                message, self._queue, job.retry, publisher=job.publisher
            )
            return self._metrics.count_deferred
        try:
            with self._metrics.stage("serve"):
                result = await self._serve(job)
        except DeferError as exc:
            await self._worker_publisher.defer(
                message, self._queue, exc.wait_s, publisher=job.publisher
            )
            return self._metrics.count_deferred
        except (AMQPException, NotConfirmedError):
            raise  # what it publishes was not confirmed: the broker redelivers the message
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not lose a message
            return await self._retry_or_give_up(job, _error_of(exc, job))
        return await self._complete(job, result, delivery)

    async def _retry_or_give_up(self, job: JobT, error: CodedError) -> Report:
        attempt = attempts(job.retry, error)
        delay_s = self._retry_delay_s(job, error, attempt)
        if delay_s is None:
            return await self._give_up(job, error)
        await self._worker_publisher.schedule_retry(
            job.message, self._queue, error, attempt, delay_s, publisher=job.publisher
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
    async def _admit(self, message: AbstractIncomingMessage, delivery: Delivery) -> JobT:
        """Read and authorize a delivery.

        Raises:
            NotAdmittedError
        """

    @abstractmethod
    async def _reject(self, message: AbstractIncomingMessage, refusal: NotAdmittedError) -> Report:
        """Make what was not admitted a dead letter."""

    @abstractmethod
    async def _serve(self, job: JobT) -> ResultT:
        """Do what the message requests.

        Raises:
            DeferError
            CodedError: retried, or given up.
            NotConfirmedError, AMQPException: redelivered.
        """

    @abstractmethod
    async def _complete(self, job: JobT, result: ResultT, delivery: Delivery) -> Report:
        """Publish what was done, before the message is acknowledged."""

    @abstractmethod
    def _retry_delay_s(self, job: JobT, error: CodedError, attempt: int) -> int | None:
        """Seconds until the next attempt, or None if the error is final."""

    @abstractmethod
    async def _give_up(self, job: JobT, error: CodedError) -> Report:
        """Make what failed for good a dead letter."""


def _error_of(exc: Exception, job: Job) -> CodedError:
    """The error that an exception is retried as. To be called where it is handled."""
    if isinstance(exc, CodedError):
        return exc
    _log.exception("unexpected failure", **job.log_fields)
    return StorageUnavailableError(f"internal failure: {type(exc).__name__}")
