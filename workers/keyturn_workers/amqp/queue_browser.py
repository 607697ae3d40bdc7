"""Reading a queue's messages without removing them, however many there are (SPEC 6.9, 12).

Messages are received without acknowledgment, in batches, each by a consumer of its own: the
prefetch of one consumer is a number of 16 bits. Whatever the reader does not acknowledge goes back
in its order. Five things of RabbitMQ decide how:

- What is returned goes to the end of the queue. So all messages are read, also those that the
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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

MAX_BATCHES: Final = 28
_BATCH: Final = 2048
_PREFETCH_MAX: Final = 65_535
_IDLE_S: Final = 5.0
_REQUEUE_TIMEOUT_S: Final = 30.0
_REQUEUED_PER_S: Final = 2000
_POLL_S: Final = 0.02
# Of the whole process: no two consumers of a channel have one name.
_numbers: Final = itertools.count()

T = TypeVar("T")


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
        left = await self.ready_count()
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

    async def flush(self) -> None:
        """Wait until the queue has all acknowledgments, so that they outlive the channel."""
        await self._channel.set_qos(1)
        tag = await self._queue.consume(_ignore, consumer_tag=_next_name())
        await self._queue.cancel(tag)
        await ready_count(self._queue)

    async def requeue(self, left: int) -> None:
        """Return everything that is not acknowledged; see `requeue_all`."""
        await requeue_all(self._channel, ((self, left),))

    async def ready_count(self) -> int:
        """How many messages no consumer has."""
        return await ready_count(self._queue)


async def requeue_all(
    channel: AbstractChannel, browsers: Sequence[tuple[QueueBrowser, int]]
) -> None:
    """Return everything on a channel that is not acknowledged, and wait until its queues show it.

    The broker requeues messages only after it has replied, even to the close of the channel: the
    next reader could find the queue empty. The wait is bounded, because another consumer may
    receive the messages meanwhile.

    Args:
        channel: The channel of the browsers.
        browsers: All that received anything on the channel; of each, how many messages it has not
            acknowledged.
    """
    expected = [await browser.ready_count() + left for browser, left in browsers]
    for browser, left in browsers:
        if left < browser.received:
            await browser.flush()
    underlay = await channel.get_underlay_channel()
    await underlay.basic_nack(0, multiple=True, requeue=True)  # 0: everything
    timeout_s = _REQUEUE_TIMEOUT_S + sum(left for _, left in browsers) / _REQUEUED_PER_S
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for (browser, _), count in zip(browsers, expected, strict=True):
                while await browser.ready_count() < count:  # noqa: ASYNC110  # no event says so
                    await asyncio.sleep(_POLL_S)


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
