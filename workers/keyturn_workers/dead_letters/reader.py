"""Reading dead letters without removing them (SPEC 12).

Letters are consumed without acknowledgment, by one consumer a queue; the unprocessed ones go back
in their order (dead-letter queues have no delivery limit, see `keyturn.topology`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from keyturn_workers.dead_letters.errors import UnknownQueueError

_REQUEUE_TIMEOUT_S: Final = 5
_POLL_INTERVAL_S: Final = 0.02


class DeadLetterReader:
    """Reads dead letters on one channel, and returns the unprocessed ones to their queues."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self._read: dict[str, list[AbstractIncomingMessage]] = {}

    async def read(self, queue: str, limit: int) -> AsyncIterator[AbstractIncomingMessage]:
        """The letters of a dead-letter queue, oldest first, unacknowledged.

        At most as many as there are now: a letter that is replayed and dies again is not read
        twice.

        Raises:
            UnknownQueueError: the queue does not exist.
        """
        try:
            declared = await self.channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity as exc:
            raise UnknownQueueError(
                f"{queue} does not exist on the broker; start a worker"
            ) from exc
        count = declared.declaration_result.message_count or 0
        if not count:
            return
        # It imports FastStream, which takes a second.
        from keyturn_workers.amqp.dead_letters import receive_batch  # noqa: PLC0415

        # All of them before any is processed: for each acknowledged one the consumer would get
        # another.
        letters = [
            message async for message in receive_batch(self.channel, declared, min(limit, count))
        ]
        self._read.setdefault(queue, []).extend(letters)
        for message in letters:
            yield message

    async def requeue_all(self) -> None:
        """Return the unprocessed letters, and wait until the queues show them.

        The broker requeues letters only after it has replied, even to the close of the
        channel: the next command could find the queue empty. The wait is bounded, because
        another consumer may take the letters meanwhile.
        """
        unprocessed = {
            name: [message for message in messages if not message.processed]
            for name, messages in self._read.items()
        }
        last = max(
            (message for messages in unprocessed.values() for message in messages),
            key=lambda message: message.delivery_tag or 0,
            default=None,
        )
        if last is None:
            return
        await last.nack(multiple=True, requeue=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_REQUEUE_TIMEOUT_S):
                for name, messages in unprocessed.items():
                    await self._wait_until_queued(name, len(messages))

    async def _wait_until_queued(self, name: str, count: int) -> None:
        while True:
            declared = await self.channel.declare_queue(name, passive=True)
            if (declared.declaration_result.message_count or 0) >= count:
                return
            await asyncio.sleep(_POLL_INTERVAL_S)
