"""Publishes to one exchange, many messages at once, each confirmed by the broker (SPEC 6.2).

`Exchange.publish` of aio-pika holds its channel's lock until the socket has taken a message, so
that messages are sent one after the other. aiormq's `basic_publish` with `wait=False` gives the
lock back as soon as a message is in its write queue, and returns on the broker's confirmation as
well.
"""

import asyncio

import aiormq
from aio_pika.abc import AbstractChannel, AbstractRobustChannel
from aiormq.exceptions import ChannelInvalidStateError
from faststream.rabbit import RabbitBroker
from pamqp import commands


class ConfirmedPublisher:
    """Publishes to one exchange on a separate channel, opened when it is first used.

    Args:
        broker: The connection.
        exchange: Where to publish.
        timeout_s: How long the broker's confirmation may take.
        is_mandatory: Whether a message that no queue takes is an error.
    """

    def __init__(
        self, broker: RabbitBroker, exchange: str, *, timeout_s: float, is_mandatory: bool = True
    ) -> None:
        self._broker = broker
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._is_mandatory = is_mandatory
        self._opening = asyncio.Lock()
        self._channel: aiormq.Channel | None = None
        self._is_open = False

    async def publish(
        self, routing_key: str, body: bytes, properties: commands.Basic.Properties
    ) -> None:
        """Publish; returns once the broker confirmed the message.

        `properties` gets a new message id.

        Raises:
            DeliveryError, PublishError: the broker refused the message, or no queue takes it
                although it is mandatory.
            ChannelInvalidStateError, AMQPConnectionError: there is no connection, or it was
                lost meanwhile.
            TimeoutError: the broker did not confirm in time.
        """
        if not self._is_open:
            await self._open()
        channel = self._channel
        if channel is None or channel.is_closed:
            # aio-pika opens it again; waiting for that would delay the redelivery.
            raise ChannelInvalidStateError("the channel of events is closed")
        await channel.basic_publish(
            body,
            exchange=self._exchange,
            routing_key=routing_key,
            properties=properties,
            mandatory=self._is_mandatory,
            timeout=self._timeout_s,
            wait=False,
        )

    async def _open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            connection = await self._broker.connect()
            channel = await connection.channel(on_return_raises=True)
            if not isinstance(channel, AbstractRobustChannel):
                raise TypeError("a channel that is not opened again after a lost connection")
            channel.reopen_callbacks.add(self._follow)
            await self._follow(channel)
            self._is_open = True

    async def _follow(self, channel: AbstractChannel | None) -> None:
        opened = None if channel is None else await channel.get_underlay_channel()
        self._channel = opened if isinstance(opened, aiormq.Channel) else None
