"""Declaring the topology on the broker (SPEC 6.2): request queues before anything publishes."""

from aio_pika import ExchangeType, connect
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from contracts import topology
from contracts.publisher.link import named_losses


class TopologyError(Exception):
    """The broker holds one of ours with other arguments, or does not let us declare it."""


async def declare(amqp_url: str) -> None:
    """Declare the exchange and all queues, and bind them; nothing changes where they stand.

    Raises:
        TopologyError: one stands with other arguments.
        OSError, AMQPException: the broker is not reachable, or still bringing its queues back.
    """
    with named_losses():
        await _declare(amqp_url)


async def _declare(amqp_url: str) -> None:
    async with await connect(amqp_url) as connection:
        channel = await connection.channel()
        name = topology.EXCHANGE
        try:
            exchange = await channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)
            for queue in topology.queues():
                name = queue.name
                declared = await channel.declare_queue(
                    name, durable=True, arguments=dict(queue.arguments)
                )
                for routing_key in queue.bindings:
                    await declared.bind(exchange, routing_key)
        except (ChannelPreconditionFailed, ChannelAccessRefused) as exc:
            # The broker's text names the argument that differs.
            raise TopologyError(f"{name} cannot be declared: {exc}") from exc
