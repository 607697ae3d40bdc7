"""Deliveries without the layers that FastStream and aio-pika put around each one (SPEC 6.2).

A subscriber parses, scopes, wraps and decodes every message before its handler runs, in two
tasks, and a consumer here needs none of that: it takes the bytes, never raises, and
acknowledges by itself. What else a subscriber does stays theirs: its channel and prefetch,
coming back after a lost connection, and at a stop the wait for what is being handled.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

import aiormq
from aio_pika import IncomingMessage
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import MessageProcessError
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError
from faststream.rabbit.subscriber import RabbitSubscriber
from pamqp import commands, frame

from keyturn_workers.amqp.write_batcher import WriteBatcher


class Delivered(Protocol):
    """A message that was delivered: what a consumer needs of it."""

    @property
    def body(self) -> bytes:
        """Its body."""
        ...

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers; empty where there are none."""
        ...

    @property
    def routing_key(self) -> str | None:
        """The key by which it was published."""
        ...

    @property
    def message_id(self) -> str | None:
        """Its id, where it has one."""
        ...

    @property
    def redelivered(self) -> bool | None:
        """Whether the broker gave it out before."""
        ...

    async def ack(self) -> None:
        """Acknowledge it."""
        ...

    async def nack(self, *, requeue: bool = True) -> None:
        """Give it back."""
        ...


class Delivery:
    """A message as aiormq delivered it. Settled once, as aio-pika's own."""

    __slots__ = ("_message", "_out", "_settled", "body", "headers", "message_id")

    def __init__(self, message: DeliveredMessage, out: WriteBatcher) -> None:
        self._message = message
        self._out = out
        self._settled = False
        properties = message.header.properties
        self.body: Final = message.body
        self.headers: Final[dict[str, Any]] = properties.headers or {}
        self.message_id: Final[str | None] = properties.message_id

    @property
    def routing_key(self) -> str | None:
        """The key by which it was published."""
        return self._message.routing_key

    @property
    def redelivered(self) -> bool | None:
        """Whether the broker gave it out before."""
        return self._message.redelivered

    async def ack(self) -> None:
        """Acknowledge it: with the other frames of this turn, not waiting for the socket.

        Raises:
            ChannelInvalidStateError: its channel is closed, so that it comes again.
        """
        ack = commands.Basic.Ack(delivery_tag=self._settle())
        self._out.add(frame.marshal(ack, self._message.channel.number))

    async def nack(self, *, requeue: bool = True) -> None:
        """Give it back, or let the broker drop it; errors as `ack`."""
        nack = commands.Basic.Nack(delivery_tag=self._settle(), requeue=requeue)
        self._out.add(frame.marshal(nack, self._message.channel.number))

    def _settle(self) -> int:
        tag = self._message.delivery_tag
        if self._settled:
            raise MessageProcessError("Message already processed", self)
        if tag is None or self._message.channel.is_closed:
            raise ChannelInvalidStateError("the channel of this delivery is closed")
        self._settled = True
        return tag

    def whole(self) -> AbstractIncomingMessage:
        """See `whole`."""
        return IncomingMessage(self._message)


def whole(message: Delivered) -> AbstractIncomingMessage:
    """The message with all its properties, for a copy of it. Not to be settled by this one."""
    if isinstance(message, Delivery):
        return message.whole()
    if isinstance(message, AbstractIncomingMessage):
        return message
    raise TypeError("not a delivery")


_Consume = Callable[[Delivered], Awaitable[None]]


def consume_directly(subscriber: RabbitSubscriber, consume: _Consume) -> None:
    """Let a subscriber that has not started give its deliveries to `consume` as they come."""

    async def handle(message: Delivered) -> None:
        # As FastStream's own: what is still delivered after a stop goes back to its queue.
        if not subscriber.running:
            return
        # The lock is made anew at each start; a stop waits until nobody holds it.
        with subscriber.lock:
            await consume(message)

    async def straight(out: WriteBatcher, message: DeliveredMessage) -> None:
        await handle(Delivery(message, out))

    async def take(message: AbstractIncomingMessage) -> None:
        # The first delivery of each channel that was opened, and what came before it was
        # served: from now on aiormq gives them here at once.
        with suppress(ChannelInvalidStateError):
            channel = getattr(message, "channel", None)
            tag = message.consumer_tag
            if isinstance(channel, aiormq.Channel) and tag is not None:
                before = channel.consumers.get(tag)
                if before is not None and getattr(before, "func", None) is not straight:
                    # Nothing but the channel holds it, so that both go with their connection.
                    ours = partial(straight, WriteBatcher(channel))
                    channel.consumers[tag] = ours
        await handle(message)

    # `start` hands this method to the queue. Where a release hands another, or keeps its
    # consumers elsewhere, all is served the same way, but slower: a test sees that.
    subscriber.consume = take  # type: ignore[method-assign,assignment]
