"""The consumers of a worker: one for each queue (SPEC 6.2, 11).

| class | consumes by | for |
| --- | --- | --- |
| `SubscriberConsumer` | a FastStream subscriber | every queue but one |
| `DirectConsumer` | aio-pika's `queue.consume` | the queue of uploads: it costs less (ADR 0006) |

Both bound the deliveries in flight by the prefetch of a channel, and consume again after a lost
connection. `QueueConsumer` adds what neither library has: whether the broker has this process as
a consumer, and an end in order.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Final

import aiormq
import structlog
from aio_pika.abc import (
    AbstractChannel,
    AbstractIncomingMessage,
    AbstractQueue,
    AbstractRobustChannel,
)
from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.message import RabbitMessage

_CANCEL_TIMEOUT_S: Final = 5
# Until the handlers of deliveries that came just before the broker's answer have begun.
_BEGIN_S: Final = 0.05

Handle = Callable[[AbstractIncomingMessage], Awaitable[None]]

_log = structlog.get_logger()


class QueueConsumer(ABC):
    """Gives each delivery of one queue to a handler, which acknowledges it.

    Args:
        handle: Must acknowledge or give back each delivery itself, and must not raise.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._queue: AbstractQueue | None = None
        self._channel: aiormq.Channel | None = None

    @abstractmethod
    async def _consume(self) -> AbstractQueue:
        """Begin to consume, or return the queue that is consumed already."""

    async def attach(self) -> None:
        """Consume from now on, once the broker is connected.

        Raises:
            ChannelInvalidStateError: the connection was lost meanwhile.
        """
        self._queue = await self._consume()
        channel = self._queue.channel
        if not isinstance(channel, AbstractRobustChannel):
            raise TypeError("a channel that is not opened again after a lost connection")
        channel.reopen_callbacks.add(self._follow)
        await self._follow(channel)

    async def _follow(self, channel: AbstractChannel | None) -> None:
        opened = None if channel is None else await channel.get_underlay_channel()
        self._channel = opened if isinstance(opened, aiormq.Channel) else None

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        self._in_flight += 1
        self._idle.clear()
        try:
            await self._handle(message)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def is_active(self) -> bool:
        """Whether the broker has this process as a consumer of the queue, as it last said.

        A channel forgets a consumer that the broker cancels, for instance because its queue was
        deleted. Performs no I/O.
        """
        channel = self._channel
        return channel is not None and not channel.is_closed and bool(channel.consumers)

    async def cancel(self) -> None:
        """Ask the broker for no further deliveries; those under way are still handled.

        FastStream would ask for this only after the last handler finished. Until then each
        acknowledgment would make room for a delivery that this process never handles and no other
        process gets: behind a large upload that takes its whole grace period, a full prefetch.
        Where the broker does not answer, this returns after a few seconds.
        """
        queue, channel = self._queue, self._channel
        if queue is None or channel is None or channel.is_closed or not channel.consumers:
            return
        # Never cancelled: aiormq would then close the channel, and end the handlers with it.
        requests = [asyncio.ensure_future(queue.cancel(tag)) for tag in channel.consumers]
        for request in requests:
            request.add_done_callback(_log_failure)
        await asyncio.wait(requests, timeout=_CANCEL_TIMEOUT_S)
        await asyncio.sleep(_BEGIN_S)

    async def wait_idle(self) -> None:
        """Wait until no delivery is being handled."""
        await self._idle.wait()


async def finish(consumers: Collection[QueueConsumer], grace_s: float) -> None:
    """Cancel the consumers, and wait for the handlers of all of them, at most `grace_s` seconds."""
    await asyncio.gather(*(consumer.cancel() for consumer in consumers))
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await asyncio.gather(*(consumer.wait_idle() for consumer in consumers))


class SubscriberConsumer(QueueConsumer):
    """A FastStream subscriber, which the broker starts and stops.

    `prefetch` bounds the deliveries that are handled at once.
    """

    def __init__(self, broker: RabbitBroker, queue: str, prefetch: int, handle: Handle) -> None:
        super().__init__(handle)
        self._broker = broker
        # The queue is declared by `declarations`, with all its arguments.
        self._declared = RabbitQueue(
            queue, queue_type=QueueType.QUORUM, durable=True, declare=False
        )

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

    async def _consume(self) -> AbstractQueue:
        # FastStream gives the queue that its subscriber consumes; it declares none twice.
        return await self._broker.declare_queue(self._declared)


class DirectConsumer(QueueConsumer):
    """Consumes through aio-pika, on the broker's connection, without a FastStream subscriber.

    FastStream would enter contexts and middlewares for each message that do nothing here.
    """

    def __init__(self, broker: RabbitBroker, queue: str, prefetch: int, handle: Handle) -> None:
        super().__init__(handle)
        self._broker = broker
        self._name = queue
        self._prefetch = prefetch

    async def _consume(self) -> AbstractQueue:
        connection = await self._broker.connect()
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await channel.get_queue(self._name, ensure=True)  # declares nothing: passive
        await queue.consume(self._receive)
        return queue


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    # A signature is over bytes: nothing may parse a body before it is verified.
    return message


def _log_failure(request: "asyncio.Future[Any]") -> None:
    # The process stops in any case; the broker redelivers what it had sent here.
    if not request.cancelled() and (error := request.exception()) is not None:
        _log.debug("consumer not canceled", error=type(error).__name__)
