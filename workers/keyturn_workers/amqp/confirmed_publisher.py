"""Publishes to one exchange, many messages at once, each confirmed by the broker (SPEC 6.2).

`Exchange.publish` of aio-pika holds its channel's lock until the socket has taken a message, so
that messages leave one after the other. aiormq's `basic_publish` with `wait=False` gives the lock
back as soon as a message is in its write queue, and returns on the broker's confirmation as well.
"""

import asyncio
from typing import TYPE_CHECKING

import aiormq
from aiormq.exceptions import ChannelInvalidStateError
from faststream.rabbit import RabbitBroker
from pamqp import commands

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel


class ConfirmedPublisher:
    """Publishes to one exchange on a channel of its own, opened when it is first used."""

    def __init__(self, broker: RabbitBroker, exchange: str, *, timeout_s: float) -> None:
        self._broker = broker
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._opening = asyncio.Lock()
        self._channel: AbstractChannel | None = None

    async def publish(
        self, routing_key: str, body: bytes, properties: commands.Basic.Properties
    ) -> None:
        """Publish, mandatory; returns once the broker confirmed the message.

        `properties` gets a message id of its own.

        Raises:
            DeliveryError, PublishError: the broker refused the message, or no queue takes it.
            ChannelInvalidStateError, AMQPConnectionError: there is no connection, or it was
                lost meanwhile.
            TimeoutError: the broker did not confirm in time.
        """
        channel = self._channel or await self._open()
        if channel.is_closed:
            # While the connection is being made again, `get_underlay_channel` would wait for it.
            raise ChannelInvalidStateError("the channel of events is closed")
        opened = await channel.get_underlay_channel()
        if not isinstance(opened, aiormq.Channel):
            raise TypeError("not a channel of aiormq")
        await opened.basic_publish(
            body,
            exchange=self._exchange,
            routing_key=routing_key,
            properties=properties,
            mandatory=True,
            timeout=self._timeout_s,
            wait=False,
        )

    async def _open(self) -> "AbstractChannel":
        async with self._opening:
            if self._channel is None:
                connection = await self._broker.connect()
                self._channel = await connection.channel(on_return_raises=True)
            return self._channel
