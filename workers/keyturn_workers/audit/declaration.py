"""Declares the stream of the audit trail for a command that writes to it (SPEC 15.3).

Workers declare it with all other queues. A command declares it only where it does not exist yet:
its bounds are the workers' settings, and the arguments of an existing queue cannot change. A
broker user that may not declare it also cannot delete it.
"""

from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from keyturn.errors import NotDeliveredError
from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors
from keyturn.topology import AUDIT_STREAM, EXCHANGE, Queue


async def declare_missing(broker: Broker, stream: Queue) -> None:
    """Declare the stream, unless it exists.

    Raises:
        NotDeliveredError: it does not exist, and the broker's user may not declare it.
        OSError, AMQPException: the broker is not reachable.
    """
    with normalize_connection_errors():
        async with await connect_to_broker(broker) as connection:
            channel = await connection.channel()
            try:
                await channel.declare_queue(AUDIT_STREAM, passive=True)
            except ChannelNotFoundEntity:
                channel = await connection.channel()
            else:
                return
            try:
                exchange = await channel.declare_exchange(
                    EXCHANGE, ExchangeType.TOPIC, durable=True
                )
                declared = await channel.declare_queue(
                    stream.name, durable=True, arguments=dict(stream.arguments)
                )
                for routing_key in stream.bindings:
                    await declared.bind(exchange, routing_key)
            except ChannelAccessRefused as exc:
                raise NotDeliveredError(
                    f"no worker has declared {AUDIT_STREAM}; start one"
                ) from exc
