"""Reading dead letters without removing them (SPEC 12).

Letters are consumed without acknowledgment; the unprocessed ones go back in their order
(dead-letter queues have no delivery limit, see `keyturn.topology`).
"""

from collections.abc import AsyncIterator

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from keyturn_workers.amqp.queue_browser import QueueBrowser, requeue_all
from keyturn_workers.dead_letters.errors import UnknownQueueError


async def browse(channel: AbstractChannel, queue: str) -> QueueBrowser:
    """A browser of a dead-letter queue.

    Raises:
        UnknownQueueError: the queue does not exist.
    """
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity as exc:
        raise UnknownQueueError(f"{queue} does not exist on the broker; start a worker") from exc
    return QueueBrowser(channel, declared)


class DeadLetterReader:
    """Reads whole letters on one channel, and returns the unprocessed ones to their queues."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self._read: list[tuple[QueueBrowser, list[AbstractIncomingMessage]]] = []

    async def read(self, queue: str, limit: int) -> AsyncIterator[AbstractIncomingMessage]:
        """The letters of a dead-letter queue, oldest first, unacknowledged.

        All of them are received, so that they keep their order; of those beyond the limit nothing
        is kept. A letter that is replayed and dies again is not read twice.

        Raises:
            UnknownQueueError: the queue does not exist.
        """
        browser = await browse(self.channel, queue)
        letters: list[AbstractIncomingMessage] = []
        self._read.append((browser, letters))

        def keep(message: AbstractIncomingMessage) -> None:
            if len(letters) < limit:
                letters.append(message)

        async for _ in browser.batches(keep):
            pass
        for message in letters:
            yield message

    async def requeue_all(self) -> None:
        """Return the unprocessed letters, and wait until the queues show them."""
        await requeue_all(
            self.channel,
            [
                (browser, browser.received - sum(1 for message in letters if message.processed))
                for browser, letters in self._read
            ],
        )
