"""Dead-letter queues: locked, and read without removing a letter (SPEC 6.9, 12).

DeadLetterError
├── UnknownQueueError      no dead-letter queue has this name, or the broker does not have it
├── UnreadableQueueError   no available protocol can read a letter of the queue
└── LockedError            another process is reading the letters

Letters are received without acknowledgment, in batches, each by a consumer of its own: the prefetch
of one consumer is a number of 16 bits. Unacknowledged letters go back in their order. Five
properties of RabbitMQ decide how:

- Returned messages go to the end of the queue. So all letters are read, including those that the
  reader does not want; only messages that arrive meanwhile come before them.
- A channel returns its messages consumer by consumer, in the order of the consumers' names. So
  each name follows the one before. (A `basic.get` counts as a consumer with a name of its own.)
- A channel has at most 32 commands on their way to a quorum queue. It holds back the others, sends
  them later in another order, and forgets them if it is closed before. So there are fewer batches
  than that, and acknowledgments are passed on before any message is returned.
- The broker waits for a subscription. Afterward, the commands before it are done, and with the
  next method those that were held back are on their way.
- A quorum queue writes each returned message to its log again, and looks up the old one there. For
  very large batches it does so in no order, and opens a segment of the log for each message:
  65,535 messages took five minutes, batches of a few thousand take seconds.

RabbitMQ cannot convert every AMQP 1.0 message to 0-9-1. Instead of delivering such a *poison
message*, it closes the connection, and the letters held on it go back to the front of the queue.
Then the queue is read again over AMQP 1.0, where any letter can be shown, replayed and discarded.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelLockedResource, ConnectionInternalError

from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors
from keyturn.topology import DEAD_LOCK, DEAD_QUEUES
from keyturn_workers.reports.dead_letters.amqp1 import LINK_ERRORS, Link, open_link

LOCK_TIMEOUT_S: Final = 120.0
MAX_BATCHES: Final = 28
_LOCK_RETRY_S: Final = 0.1
_BATCH: Final = 128
_PREFETCH_MAX: Final = 65_535
_IDLE_S: Final = 5.0
_REQUEUED_PER_S: Final = 500
_POLL_S: Final = 0.02
# For the whole process: no two consumers of a channel have the same name.
_numbers: Final = itertools.count()

T = TypeVar("T")


class DeadLetterError(Exception):
    """Dead letters cannot be read; the text is one line for the operator."""


class UnknownQueueError(DeadLetterError):
    """No dead-letter queue has this name, or the broker does not have it."""


class UnreadableQueueError(DeadLetterError):
    """The broker cannot convert a letter to AMQP 0-9-1, and AMQP 1.0 is not available.

    `depth` is the number of letters in the queue.
    """

    def __init__(self, queue: str, depth: int) -> None:
        super().__init__(
            f"the {depth} letters of {queue} cannot be read: RabbitMQ cannot convert one of them "
            "to AMQP 0-9-1, and this address does not serve them over AMQP 1.0"
        )
        self.depth = depth


class LockedError(DeadLetterError):
    """Another process reads the letters, and did not finish in time."""


def dead_queue(name: str) -> str:
    """Return the dead-letter queue of this name, with or without `.dead`.

    Raises:
        UnknownQueueError: there is no such queue.
    """
    dead = f"{name.removesuffix('.dead')}.dead"
    if dead not in DEAD_QUEUES:
        raise UnknownQueueError(f"{name} is not one of {', '.join(DEAD_QUEUES)}")
    return dead


class UnconvertibleError(Exception):
    """A letter cost the reader its connection: its queue must be read over AMQP 1.0.

    `left` is the number of letters that go back to the queue.
    """

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


@dataclass
class Letters:
    """The dead letters, while no other reader has them; from `open_letters`.

    `channel` publishes, and reads over AMQP 0-9-1. The queues in `over_amqp1` are read over AMQP
    1.0. `lock_timeout_s` is how long locking may take.
    """

    broker: Broker
    channel: AbstractChannel
    lock_timeout_s: float = LOCK_TIMEOUT_S
    over_amqp1: set[str] = field(default_factory=set)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def browse(self, queue: str) -> "QueueBrowser | LinkBrowser":
        """Return a browser of a dead-letter queue.

        Raises:
            UnknownQueueError: the queue does not exist.
        """
        try:
            declared = await self.channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity as exc:
            raise UnknownQueueError(
                f"{queue} does not exist on the broker; start a worker"
            ) from exc
        if queue in self.over_amqp1:
            return LinkBrowser(self, declared)
        return QueueBrowser(self.channel, declared)

    async def reopen(self, queue: str, left: int) -> None:
        """Connect again, to read this queue over AMQP 1.0, once it has its letters back.

        Errors as `open_letters`.
        """
        self.over_amqp1.add(queue)
        self.channel = await _connect(self.broker, self.lock_timeout_s, self.stack)
        declared = await self.channel.declare_queue(queue, passive=True)
        await _until_ready(declared, left, left)


@asynccontextmanager
async def open_letters(
    broker: Broker, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> AsyncIterator[Letters]:
    """Yield the dead letters, and keep other readers away while the block runs.

    Raises:
        LockedError: another process reads the letters, and did not finish in time.
        AMQPException, OSError: the broker is unavailable.
    """
    with normalize_connection_errors():
        async with AsyncExitStack() as stack:
            channel = await _connect(broker, lock_timeout_s, stack)
            yield Letters(broker, channel, lock_timeout_s, stack=stack)


async def _connect(broker: Broker, lock_timeout_s: float, stack: AsyncExitStack) -> AbstractChannel:
    connection = await stack.enter_async_context(await connect_to_broker(broker))
    await stack.enter_async_context(exclusive(connection, lock_timeout_s))
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    stack.push_async_callback(channel.close)
    return channel


@asynccontextmanager
async def exclusive(
    connection: AbstractConnection, timeout_s: float = LOCK_TIMEOUT_S
) -> AsyncIterator[None]:
    """Lock the dead letters against workers, commands and consoles.

    While one process reads the letters, the queues look empty to others. The lock is an exclusive
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


async def read_letters(
    letters: Letters,
    queue: str,
    convert: Callable[[AbstractIncomingMessage, str], T | None],
    limit: int | None = None,
) -> tuple[list[T], int]:
    """Read the letters of a queue, oldest first, without removing any.

    `convert` returns what to keep of a letter, or None. At most `limit` letters are kept.

    Returns:
        The kept values, and the number of letters in the queue.

    Raises:
        UnknownQueueError: the queue does not exist.
        UnreadableQueueError: the queue can be read over neither protocol.
    """
    kept: list[T] = []

    def keep(message: AbstractIncomingMessage) -> None:
        if limit is None or len(kept) < limit:
            converted = convert(message, queue)
            if converted is not None:
                kept.append(converted)

    try:
        browser = await letters.browse(queue)
        async for _ in browser.batches(keep):
            pass
    except UnconvertibleError as exc:
        await letters.reopen(queue, exc.left)
        return await read_letters(letters, queue, convert, limit)
    await browser.requeue()
    return kept, browser.received


def batch_size(count: int) -> int:
    """Return how many of `count` messages one batch receives."""
    return min(max(_BATCH, -(-count // MAX_BATCHES)), _PREFETCH_MAX)


async def ready_count(queue: AbstractQueue) -> int:
    """Return how many of a queue's messages no consumer has."""
    declared = await queue.channel.declare_queue(queue.name, passive=True)
    return declared.declaration_result.message_count or 0


class QueueBrowser:
    """Receives the messages of one quorum queue, and returns them.

    One browser at a time may use a queue: to others it looks empty meanwhile. At the end, nothing
    else may be unacknowledged on `channel`. `received` counts the messages.
    """

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self._channel = channel
        self._queue = queue
        self._left = 0
        self._acknowledged = 0
        self.received = 0

    async def batches(
        self, convert: Callable[[AbstractIncomingMessage], T]
    ) -> AsyncIterator[list[T]]:
        """Yield all messages, oldest first, unacknowledged, in batches.

        Only as many as there are now: a message that is moved and comes back is not received twice.
        `convert` returns what to keep of a message. Bodies that it does not keep take no memory.

        Raises:
            UnconvertibleError: the broker cannot convert a message.
        """
        self._left = left = await ready_count(self._queue)
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
        errors: list[BaseException] = []
        is_complete = asyncio.Event()

        def lose(_: object, exc: BaseException | None) -> None:
            if isinstance(exc, ConnectionInternalError):
                exc = UnconvertibleError(self._left)
            errors.append(exc or ConnectionError("the connection was lost"))
            is_complete.set()

        async def take(message: AbstractIncomingMessage) -> None:
            try:
                received.append(convert(message))
            except Exception as exc:  # noqa: BLE001  # raised by the reader, not in a callback
                errors.append(exc)
            if errors or len(received) >= count:
                is_complete.set()

        self._channel.close_callbacks.add(lose)
        try:
            await self._channel.set_qos(count)
            tag = await self._queue.consume(take, consumer_tag=_next_name())
            try:
                await _until_idle(is_complete, received)
            finally:
                if not self._channel.is_closed:
                    await self._queue.cancel(tag)
        except ConnectionInternalError as exc:  # before aio-pika reports it closed
            raise UnconvertibleError(self._left) from exc
        finally:
            self._channel.close_callbacks.discard(lose)
        if errors:
            raise errors[0]
        return received

    async def ack(self, tags: Sequence[int]) -> None:
        """Acknowledge messages."""
        underlay = await self._channel.get_underlay_channel()
        for tag in tags:
            await underlay.basic_ack(tag)
            self._acknowledged += 1
            self._left -= 1

    async def requeue(self) -> None:
        """Return all unacknowledged messages, and wait until the queue shows them.

        The broker requeues messages only after it has replied, even to the close of the channel:
        the next reader could find the queue empty. The wait also ends if the count has not risen
        for as long as the broker may take with so many: a policy may have dropped some, or another
        consumer received them.
        """
        left = self.received - self._acknowledged
        expected = await ready_count(self._queue) + left
        if self._acknowledged:
            await self._flush()
        underlay = await self._channel.get_underlay_channel()
        await underlay.basic_nack(0, multiple=True, requeue=True)  # 0: everything
        await _until_ready(self._queue, expected, left)

    async def _flush(self) -> None:
        """Wait until the queue has all acknowledgments, so that they outlive the channel."""
        await self._channel.set_qos(1)
        tag = await self._queue.consume(_ignore, consumer_tag=_next_name())
        await self._queue.cancel(tag)
        await ready_count(self._queue)


class LinkBrowser:
    """As `QueueBrowser`, over AMQP 1.0: no letter can end it.

    Its link ends at the latest with `letters`, before another reader may lock them.
    """

    def __init__(self, letters: Letters, queue: AbstractQueue) -> None:
        self._letters = letters
        self._queue = queue
        self._stack = AsyncExitStack()
        self._link: Link | None = None
        self._left = 0
        self._acknowledged = 0
        self.received = 0

    async def batches(
        self, convert: Callable[[AbstractIncomingMessage], T]
    ) -> AsyncIterator[list[T]]:
        """As `QueueBrowser.batches`.

        Raises:
            UnreadableQueueError: AMQP 1.0 is not available.
        """
        self._left = left = await ready_count(self._queue)
        await self._letters.stack.enter_async_context(self._stack)
        with self._readable():
            self._link = await self._stack.enter_async_context(
                open_link(self._letters.broker, self._queue.name, left)
            )
        underlay = await self._letters.channel.get_underlay_channel()
        is_last = False
        while self.received < left and not is_last:
            batch = []
            for _ in range(min(_BATCH, left - self.received)):
                with self._readable():
                    try:
                        async with asyncio.timeout(_IDLE_S):
                            message = await self._link.receive(underlay)
                    except TimeoutError:  # letters have expired since they were counted
                        is_last = True
                        break
                batch.append(convert(message))
                self.received += 1
            yield batch

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except LINK_ERRORS as exc:
            raise UnreadableQueueError(self._queue.name, self._left) from exc

    async def ack(self, tags: Sequence[int]) -> None:
        """Acknowledge messages."""
        if self._link is not None:
            self._link.remove(tags)
            self._acknowledged += len(tags)

    async def requeue(self) -> None:
        """As `QueueBrowser.requeue`.

        Raises:
            UnreadableQueueError: the link was lost.
        """
        left = self.received - self._acknowledged
        expected = await ready_count(self._queue) + left
        if self._link is not None:
            with self._readable():
                await self._link.release()
        await self._stack.aclose()
        await _until_ready(self._queue, expected, left)


async def _until_ready(queue: AbstractQueue, expected: int, left: int) -> None:
    """Wait until the queue shows `expected` messages, or their number no longer rises."""
    loop = asyncio.get_running_loop()
    patience_s = _IDLE_S + left / _REQUEUED_PER_S
    highest, risen_s = 0, loop.time()
    while (ready := await ready_count(queue)) < expected:
        if ready > highest:
            highest, risen_s = ready, loop.time()
        elif loop.time() - risen_s > patience_s:
            return
        await asyncio.sleep(_POLL_S)


async def _ignore(message: AbstractIncomingMessage) -> None:
    """Leave it unacknowledged, to go back after the others: it arrived while they were read."""


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
