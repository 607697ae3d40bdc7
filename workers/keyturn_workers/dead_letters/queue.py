"""Dead-letter queues: locked, and read without removing a letter (SPEC 6.9, 12).

DeadLetterError
├── UnknownQueueError   no dead-letter queue has this name, or the broker does not have it
└── LockedError         another process is reading the letters

Letters are received without acknowledgment, in batches, each by a consumer of its own: the prefetch
of one consumer is a number of 16 bits. Whatever is not acknowledged goes back in its order. Five
things of RabbitMQ decide how:

- What is returned goes to the end of the queue. So all letters are read, also those that the
  reader does not want; only what arrives meanwhile comes before them.
- A channel returns its messages consumer by consumer, in the order of the consumers' names. So
  each name follows the one before. (A `basic.get` counts as a consumer with a name of its own.)
- A channel has at most 32 commands on their way to a quorum queue. It holds back the others, sends
  them later in another order, and forgets them if it is closed before. So there are fewer batches
  than that, and acknowledgments are passed on before anything is returned.
- To subscribe is a command that the broker waits for. Afterward, the commands before it are done,
  and with the next method those that were held back are on their way.
- A quorum queue writes each returned message to its log again, and looks up the old one there. Of
  very large batches it does that in no order, and opens a segment of the log for each message:
  65,535 messages took five minutes, batches of a few thousand take seconds.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelLockedResource

from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors
from keyturn.topology import DEAD_LOCK, DEAD_QUEUES

LOCK_TIMEOUT_S: Final = 120.0
MAX_BATCHES: Final = 28
_LOCK_RETRY_S: Final = 0.1
_BATCH: Final = 128
_PREFETCH_MAX: Final = 65_535
_IDLE_S: Final = 5.0
_REQUEUED_PER_S: Final = 500
_POLL_S: Final = 0.02
# Of the whole process: no two consumers of a channel have one name.
_numbers: Final = itertools.count()

T = TypeVar("T")


class DeadLetterError(Exception):
    """Dead letters cannot be read; the text is one line for the operator."""


class UnknownQueueError(DeadLetterError):
    """No dead-letter queue has this name, or the broker does not have it."""


class LockedError(DeadLetterError):
    """Another process reads the letters, and did not end in time."""


def dead_queue(name: str) -> str:
    """The dead-letter queue of this name, with or without `.dead`.

    Raises:
        UnknownQueueError: there is no such queue.
    """
    dead = f"{name.removesuffix('.dead')}.dead"
    if dead not in DEAD_QUEUES:
        raise UnknownQueueError(f"{name} is not one of {', '.join(DEAD_QUEUES)}")
    return dead


@asynccontextmanager
async def open_letters(
    broker: Broker, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> AsyncIterator[AbstractChannel]:
    """A channel of a connection that keeps other readers away while the block runs.

    Raises:
        LockedError: another process reads the letters, and did not end in time.
        AMQPException, OSError: the broker is away.
    """
    with normalize_connection_errors():
        async with (
            await connect_to_broker(broker) as connection,
            exclusive(connection, lock_timeout_s),
        ):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            async with channel:
                yield channel


@asynccontextmanager
async def exclusive(
    connection: AbstractConnection, timeout_s: float = LOCK_TIMEOUT_S
) -> AsyncIterator[None]:
    """Lock the dead letters against workers, commands and consoles.

    While one reads the letters, the queues look empty to the others. The lock is an exclusive
    queue, which ends with its connection.

    Raises:
        LockedError: the lock was not free in time.
    """
    for _ in range(max(1, round(timeout_s / _LOCK_RETRY_S))):
        channel = await connection.channel()
        try:
            held = await channel.declare_queue(DEAD_LOCK, exclusive=True, durable=False)
        except ChannelLockedResource:
            await asyncio.sleep(_LOCK_RETRY_S)
            continue
        try:
            yield
        finally:
            if not channel.is_closed:
                await held.delete(if_unused=False, if_empty=False)
                await channel.close()
        return
    raise LockedError(
        "a worker, a console or another command is reading the dead letters; try again later"
    )


async def browse(channel: AbstractChannel, queue: str) -> "QueueBrowser":
    """A browser of a dead-letter queue.

    Raises:
        UnknownQueueError: the queue does not exist.
    """
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity as exc:
        raise UnknownQueueError(f"{queue} does not exist on the broker; start a worker") from exc
    return QueueBrowser(channel, declared)


async def read_letters(
    channel: AbstractChannel,
    queue: str,
    convert: Callable[[AbstractIncomingMessage, str], T | None],
    limit: int | None = None,
) -> tuple[list[T], int]:
    """Read the letters of a queue, oldest first, without removing any.

    Args:
        channel: From `open_letters`.
        queue: The dead-letter queue.
        convert: What to keep of a letter of this queue; nothing if it returns None.
        limit: Of how many letters something is kept at most.

    Returns:
        What is kept, and how many letters the queue holds.

    Raises:
        UnknownQueueError: the queue does not exist.
    """
    kept: list[T] = []

    def keep(message: AbstractIncomingMessage) -> None:
        if limit is None or len(kept) < limit:
            converted = convert(message, queue)
            if converted is not None:
                kept.append(converted)

    browser = await browse(channel, queue)
    async for _ in browser.batches(keep):
        pass
    await browser.requeue(browser.received)
    return kept, browser.received


def batch_size(count: int) -> int:
    """How many of `count` messages one batch receives."""
    return min(max(_BATCH, -(-count // MAX_BATCHES)), _PREFETCH_MAX)


async def ready_count(queue: AbstractQueue) -> int:
    """How many of a queue's messages no consumer has."""
    declared = await queue.channel.declare_queue(queue.name, passive=True)
    return declared.declaration_result.message_count or 0


class QueueBrowser:
    """Receives the messages of one quorum queue, and returns them.

    One browser at a time may use a queue: to others it looks empty meanwhile.

    Args:
        channel: Nothing else may be unacknowledged on it at the end.
        queue: The declared queue.

    Attributes:
        received: How many messages it received.
    """

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self._channel = channel
        self._queue = queue
        self.received = 0

    async def batches(
        self, convert: Callable[[AbstractIncomingMessage], T]
    ) -> AsyncIterator[list[T]]:
        """All messages, oldest first, unacknowledged, in batches.

        As many as there are now: a message that is moved and comes back is not received twice.

        Args:
            convert: What to keep of a message. Bodies that it does not keep take no memory.
        """
        left = await ready_count(self._queue)
        size = batch_size(left)
        while left > 0:
            count = min(size, left)
            batch = await self._receive(count, convert)
            left -= len(batch)
            self.received += len(batch)
            yield batch
            if len(batch) < count:
                return  # other consumers received some meanwhile

    async def _receive(
        self, count: int, convert: Callable[[AbstractIncomingMessage], T]
    ) -> list[T]:
        received: list[T] = []
        errors: list[Exception] = []
        is_complete = asyncio.Event()

        async def take(message: AbstractIncomingMessage) -> None:
            try:
                received.append(convert(message))
            except Exception as exc:  # noqa: BLE001  # raised by the reader, not in a callback
                errors.append(exc)
            if errors or len(received) >= count:
                is_complete.set()

        await self._channel.set_qos(count)
        tag = await self._queue.consume(take, consumer_tag=_next_name())
        try:
            await _until_idle(is_complete, received)
        finally:
            await self._queue.cancel(tag)
        if errors:
            raise errors[0]
        return received

    async def requeue(self, left: int) -> None:
        """Return everything that is not acknowledged, and wait until the queue shows it.

        The broker requeues messages only after it has replied, even to the close of the channel:
        the next reader could find the queue empty. The wait ends as well where the count no longer
        rises, for as long as the broker may take with so many: a policy may have dropped some, or
        another consumer received them.

        Args:
            left: How many messages are not acknowledged.
        """
        expected = await ready_count(self._queue) + left
        if left < self.received:
            await self._flush()
        underlay = await self._channel.get_underlay_channel()
        await underlay.basic_nack(0, multiple=True, requeue=True)  # 0: everything
        loop = asyncio.get_running_loop()
        patience_s = _IDLE_S + left / _REQUEUED_PER_S
        highest, risen_s = 0, loop.time()
        while (ready := await ready_count(self._queue)) < expected:
            if ready > highest:
                highest, risen_s = ready, loop.time()
            elif loop.time() - risen_s > patience_s:
                return
            await asyncio.sleep(_POLL_S)

    async def _flush(self) -> None:
        """Wait until the queue has all acknowledgments, so that they outlive the channel."""
        await self._channel.set_qos(1)
        tag = await self._queue.consume(_ignore, consumer_tag=_next_name())
        await self._queue.cancel(tag)
        await ready_count(self._queue)


async def _ignore(message: AbstractIncomingMessage) -> None:
    """Leave it unacknowledged, to go back after the others: it came while they were read."""


def _next_name() -> str:
    return f"browser-{next(_numbers):09}"


async def _until_idle(is_complete: asyncio.Event, received: list[T]) -> None:
    """Wait until a batch is complete, or nothing has arrived for a while."""
    while True:
        before = len(received)
        try:
            async with asyncio.timeout(_IDLE_S):
                await is_complete.wait()
        except TimeoutError:
            if len(received) > before:
                continue
        return
