"""The consumer of one queue: a FastStream subscriber, and what that lacks (SPEC 6.2, 11).

FastStream consumes, bounds the deliveries in flight by the prefetch of a channel, consumes again
after a lost connection, and waits for its handlers at shutdown. It does not say whether the broker
has this process as a consumer, and it cancels its consumer only after the last handler finished.
`QueueConsumer` does both by what aio-pika and aiormq make public: the queue, its channel, and that
channel's consumers.
"""

import asyncio
from collections.abc import Awaitable, Callable
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

Handle = Callable[[AbstractIncomingMessage], Awaitable[None]]

_log = structlog.get_logger()


class QueueConsumer:
    """Gives each delivery of one queue to `handle`, which acknowledges it."""

    def __init__(self, broker: RabbitBroker, queue: str, prefetch: int, handle: Handle) -> None:
        """Add a subscriber to the broker, which starts it and stops it.

        `prefetch` bounds the deliveries that are handled at once. `handle` must acknowledge or
        give back each delivery itself, and must not raise.
        """
        # The queue is declared by `declarations`, with all its arguments.
        self._queue = RabbitQueue(queue, queue_type=QueueType.QUORUM, durable=True, declare=False)
        self._broker = broker
        self._consumed: AbstractQueue | None = None
        self._channel: aiormq.Channel | None = None

        async def receive(message: RabbitMessage) -> None:
            await handle(message.raw_message)

        subscriber = broker.subscriber(
            self._queue,
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            no_reply=True,
        )
        subscriber(receive)

    async def attach(self) -> None:
        """Follow the channel of the subscriber, once the broker has started it.

        Raises:
            ChannelInvalidStateError: the connection was lost meanwhile.
        """
        # FastStream gives the queue that its subscriber consumes; it declares none twice.
        self._consumed = await self._broker.declare_queue(self._queue)
        channel = self._consumed.channel
        if not isinstance(channel, AbstractRobustChannel):
            raise TypeError("a channel that is not opened again after a lost connection")
        channel.reopen_callbacks.add(self._follow)
        await self._follow(channel)

    async def _follow(self, channel: AbstractChannel | None) -> None:
        opened = None if channel is None else await channel.get_underlay_channel()
        self._channel = opened if isinstance(opened, aiormq.Channel) else None

    def is_active(self) -> bool:
        """Whether the broker has this process as a consumer of the queue, as it last said.

        A channel forgets a consumer that the broker cancels, for instance because its queue was
        deleted. Performs no I/O.
        """
        channel = self._channel
        return channel is not None and not channel.is_closed and bool(channel.consumers)

    async def cancel(self) -> None:
        """Ask the broker for no further deliveries; those under way are handled as ever.

        FastStream would ask for this only after the last handler finished. Until then each
        acknowledgment would make room for a delivery that this process never handles and no other
        process gets: behind a large upload that takes its whole grace period, a full prefetch.
        Where the broker does not answer, this returns after a few seconds.
        """
        queue, channel = self._consumed, self._channel
        if queue is None or channel is None or channel.is_closed or not channel.consumers:
            return
        # Never cancelled: aiormq would then close the channel, and end the handlers with it.
        requests = [asyncio.ensure_future(queue.cancel(tag)) for tag in channel.consumers]
        for request in requests:
            request.add_done_callback(_log_failure)
        await asyncio.wait(requests, timeout=_CANCEL_TIMEOUT_S)


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    # A signature is over bytes: nothing may parse a body before it is verified.
    return message


def _log_failure(request: "asyncio.Future[Any]") -> None:
    # The process stops in any case; the broker redelivers what it had sent here.
    if not request.cancelled() and (error := request.exception()) is not None:
        _log.debug("consumer not canceled", error=type(error).__name__)
