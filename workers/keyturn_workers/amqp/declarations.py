"""Declaring the topology on the broker (SPEC 6.2): request queues before anything publishes."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from aio_pika import ExchangeType, connect
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from keyturn import topology
from keyturn.publisher.connection import normalize_connection_errors


class TopologyError(Exception):
    """The broker holds one of ours with other arguments, or does not let us declare it."""


async def declare(amqp_url: str, publishers: Collection[str] = ()) -> None:
    """Declare exchanges, queues and the publishers' streams; what exists stays as it is.

    Raises:
        TopologyError: one exists with other arguments.
        OSError, AMQPException: the broker is not reachable, or still bringing its queues back.
    """
    with normalize_connection_errors():
        async with await connect(amqp_url) as connection:
            declaring = _Declaring(await connection.channel())
            with declaring.one_error():
                await declaring.queues()
                await declaring.streams(publishers)


async def declare_streams(amqp_url: str, publishers: Collection[str]) -> None:
    """Declare the streams of further publishers; errors as `declare`."""
    with normalize_connection_errors():
        async with await connect(amqp_url) as connection:
            declaring = _Declaring(await connection.channel())
            with declaring.one_error():
                await declaring.streams(publishers)


class _Declaring:
    """Declares on one channel, and knows what it was at."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._name = topology.EXCHANGE

    @contextmanager
    def one_error(self) -> Iterator[None]:
        try:
            yield
        except (ChannelPreconditionFailed, ChannelAccessRefused) as exc:
            # The broker's text names the argument that differs.
            raise TopologyError(f"{self._name} cannot be declared: {exc}") from exc

    async def queues(self) -> None:
        exchange = await self._exchange()
        for queue in topology.queues():
            declared = await self._queue(queue)
            for routing_key in queue.bindings:
                await declared.bind(exchange, routing_key)

    async def streams(self, publishers: Collection[str]) -> None:
        """Each publisher's stream, fed by the broker itself (SPEC 6.8)."""
        exchange = await self._exchange()
        self._name = topology.PUBLISHER_EVENTS_EXCHANGE
        by_publisher = await self._channel.declare_exchange(
            self._name, ExchangeType.HEADERS, durable=True, internal=True
        )
        for publisher in sorted(publishers):
            declared = await self._queue(topology.publisher_queue(publisher))
            await declared.bind(by_publisher, arguments=dict(topology.publisher_binding(publisher)))
        # Last, and one binding for each event, never `#`: requests must not get in.
        for event in topology.EVENTS:
            await by_publisher.bind(exchange, event)

    async def _exchange(self) -> AbstractExchange:
        self._name = topology.EXCHANGE
        return await self._channel.declare_exchange(self._name, ExchangeType.TOPIC, durable=True)

    async def _queue(self, queue: topology.Queue) -> AbstractQueue:
        self._name = queue.name
        return await self._channel.declare_queue(
            queue.name, durable=True, arguments=dict(queue.arguments)
        )
