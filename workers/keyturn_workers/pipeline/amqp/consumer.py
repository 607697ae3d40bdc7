"""Consume a queue, with a graceful end and acknowledgments with few frames (SPEC 6.2).

FastStream lacks a check that the broker still has this process as a consumer, a graceful shutdown,
and acknowledgments with few frames.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from faststream import BaseMiddleware, ContextRepo
from faststream.message import StreamMessage
from faststream.rabbit import RabbitBroker

from keyturn_workers.pipeline.amqp.acks import Acks
from keyturn_workers.pipeline.amqp.publisher import OpenChannel
from keyturn_workers.pipeline.amqp.routes import CallNext, Route

if TYPE_CHECKING:
    from faststream.rabbit.subscriber import RabbitSubscriber

_CANCEL_TIMEOUT_S: Final = 5
_FLUSH_TIMEOUT_S: Final = 5
# Time for the handlers of deliveries that came just before the broker's response to begin.
_BEGIN_S: Final = 0.05

_log = structlog.get_logger()


class QueueConsumer:
    """Consumes one queue by its route, on a broker that others start and stop.

    With `one_at_a_time`, the prefetch is 1 until `widen`; `is_narrow` is true until then. `handled`
    counts the deliveries that were handled to their end.
    """

    def __init__(self, broker: RabbitBroker, route: Route, *, one_at_a_time: bool = False) -> None:
        self._broker = broker
        self._prefetch = route.prefetch
        self._acks = Acks(route.prefetch)
        self.handled = 0
        self.in_flight = 0
        self.is_narrow = one_at_a_time
        self._idle = asyncio.Event()
        self._idle.set()
        self._queue: AbstractQueue | None = None
        self._opened = OpenChannel()

        router = route.within(partial(Acknowledgment, self)).router(one_at_a_time=one_at_a_time)
        (subscriber,) = router.subscribers
        self._subscriber = cast("RabbitSubscriber", subscriber)
        broker.include_router(router)

    async def attach(self) -> None:
        """Follow the channel of the subscriber, which the broker has started.

        Raises:
            ChannelInvalidStateError: the connection was lost meanwhile.
        """
        # Returns the queue that the subscriber consumes; FastStream does not declare it again.
        self._queue = await self._broker.declare_queue(self._subscriber.queue)
        await self._opened.follow(self._queue.channel)

    async def widen(self) -> None:
        """Consume with the whole prefetch from now on; deliveries in flight go on."""
        queue, channel = self._queue, self._opened.channel
        if queue is None or channel is None:
            return
        narrow = list(channel.consumers)
        # The broker applies a prefetch only to new consumers.
        await queue.channel.set_qos(prefetch_count=self._prefetch)
        await queue.consume(self._subscriber.consume)  # type: ignore[arg-type]  # as FastStream
        for tag in narrow:
            await queue.cancel(tag)
        self.is_narrow = False

    async def handle(
        self,
        message: AbstractIncomingMessage,
        call_next: CallNext,
        msg: StreamMessage[Any],
    ) -> None:
        """Acknowledge a delivery that ends without an error, and give back any other."""
        self.in_flight += 1
        self._idle.clear()
        try:
            await call_next(msg)
        except Exception:
            self._acks.give_back(message)  # else it would keep its place in the prefetch for ever
            raise
        else:
            self._acks.done(message)
        finally:
            self.handled += 1
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    def is_active(self) -> bool:
        """True if the broker has this process as a consumer, as far as is known without I/O.

        A channel forgets a consumer that the broker cancels, for instance because its queue was
        deleted.
        """
        channel = self._opened.channel
        return channel is not None and not channel.is_closed and bool(channel.consumers)

    async def cancel(self) -> None:
        """Stop further deliveries; those under way are still handled.

        FastStream would cancel only after the last handler finished. Until then each acknowledgment
        would make room for a delivery that this process never handles and no other process gets:
        behind a large upload that takes its whole grace period, a full prefetch. If the broker does
        not respond, this returns after a few seconds.
        """
        queue, channel = self._queue, self._opened.channel
        if queue is None or channel is None or channel.is_closed or not channel.consumers:
            return
        # Never cancel these: aiormq would then close the channel, and end the handlers with it.
        requests = [asyncio.ensure_future(queue.cancel(tag)) for tag in channel.consumers]
        for request in requests:
            request.add_done_callback(_log_failure)
        await asyncio.wait(requests, timeout=_CANCEL_TIMEOUT_S)
        await asyncio.sleep(_BEGIN_S)

    async def wait_idle(self) -> None:
        """Wait until no delivery is being handled."""
        await self._idle.wait()

    async def flush(self) -> None:
        """Send the pending acknowledgments."""
        await self._acks.flush()


class Acknowledgment(BaseMiddleware[Any, Any]):
    """The outermost middleware of a delivery."""

    def __init__(
        self,
        consumer: QueueConsumer,
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(message, context=context)
        self._consumer = consumer
        self._message = message

    async def consume_scope(self, call_next: CallNext, msg: StreamMessage[Any]) -> None:
        """See `QueueConsumer.handle`."""
        await self._consumer.handle(self._message, call_next, msg)


class Finishable(Protocol):
    """A consumer that can be shut down gracefully."""

    async def cancel(self) -> None:
        """See `QueueConsumer`."""

    async def wait_idle(self) -> None:
        """See `QueueConsumer`."""

    async def flush(self) -> None:
        """See `QueueConsumer`."""


async def finish(consumers: Collection[Finishable], grace_s: float) -> None:
    """Cancel the consumers, and wait for all their handlers, at most `grace_s` seconds.

    Finished deliveries are acknowledged before this returns.
    """
    await asyncio.gather(*(consumer.cancel() for consumer in consumers))
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await asyncio.gather(*(consumer.wait_idle() for consumer in consumers))
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_TIMEOUT_S):
            await asyncio.gather(*(consumer.flush() for consumer in consumers))


def _log_failure(request: "asyncio.Future[Any]") -> None:
    # The process stops in any case; the broker redelivers.
    if not request.cancelled() and (error := request.exception()) is not None:
        _log.debug("consumer not canceled", error=type(error).__name__)
