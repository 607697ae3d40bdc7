"""Declare the whole topology on the broker, before anything publishes (SPEC 6.2)."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from keyturn import topology
from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors


class TopologyError(Exception):
    """A queue or exchange exists with other arguments, or may not be declared."""


async def declare(
    broker: Broker, publishers: Collection[str] = (), audit: topology.Queue | None = None
) -> None:
    """Declare exchanges, queues and streams, one for each publisher. Existing ones do not change.

    `audit` is the stream of the audit trail; None for the default bounds.

    Raises:
        TopologyError: a queue or exchange exists with other arguments.
        OSError, AMQPException: the broker is not reachable, or still restoring its queues.
    """
    with normalize_connection_errors():
        async with await connect_to_broker(broker) as connection:
            declarer = _Declarer(await connection.channel())
            with declarer.topology_errors():
                # First: once a request is accepted, its publisher must be able to read the answer.
                await declarer.declare_streams(publishers)
                await declarer.declare_queues((*topology.queues(), audit or topology.audit_queue()))
                await declarer.bind_notifications()


async def declare_streams(broker: Broker, publishers: Collection[str]) -> None:
    """Declare the streams of further publishers; errors as `declare`."""
    with normalize_connection_errors():
        async with await connect_to_broker(broker) as connection:
            declarer = _Declarer(await connection.channel())
            with declarer.topology_errors():
                await declarer.declare_streams(publishers)


class _Declarer:
    """Declares on one channel, and remembers the last name for error messages."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._name = topology.EXCHANGE

    @contextmanager
    def topology_errors(self) -> Iterator[None]:
        try:
            yield
        except (ChannelPreconditionFailed, ChannelAccessRefused) as exc:
            # The broker's message names the argument that differs.
            raise TopologyError(f"{self._name} cannot be declared: {exc}") from exc

    async def declare_queues(self, queues: Iterable[topology.Queue]) -> None:
        exchange = await self._exchange()
        for queue in queues:
            declared = await self._queue(queue)
            for routing_key in queue.bindings:
                await declared.bind(exchange, routing_key)

    async def declare_streams(self, publishers: Collection[str]) -> None:
        """Declare each publisher's stream, which the broker itself fills (SPEC 6.8)."""
        exchange = await self._exchange()
        self._name = topology.PUBLISHER_EVENTS_EXCHANGE
        by_publisher = await self._channel.declare_exchange(
            self._name, ExchangeType.HEADERS, durable=True, internal=True
        )
        for publisher in sorted(publishers):
            declared = await self._queue(topology.publisher_queue(publisher))
            await declared.bind(by_publisher, arguments=dict(topology.publisher_binding(publisher)))
        # Last, and one binding for each event, never `#`: requests must not enter.
        for event in topology.PUBLISHER_EVENTS:
            await by_publisher.bind(exchange, event)

    async def bind_notifications(self) -> None:
        """Bind the queue of notifications, for any routing key that a server uses."""
        self._name = topology.NOTIFICATIONS
        exchange = await self._channel.declare_exchange(
            self._name, ExchangeType.FANOUT, durable=True
        )
        queue = await self._channel.get_queue(self._name, ensure=False)
        await queue.bind(exchange)

    async def _exchange(self) -> AbstractExchange:
        self._name = topology.EXCHANGE
        return await self._channel.declare_exchange(self._name, ExchangeType.TOPIC, durable=True)

    async def _queue(self, queue: topology.Queue) -> AbstractQueue:
        self._name = queue.name
        return await self._channel.declare_queue(
            queue.name, durable=True, arguments=dict(queue.arguments)
        )
