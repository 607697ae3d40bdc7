"""Acknowledge settled deliveries with few frames (SPEC 6.2).

AMQP acknowledges one delivery, or every delivery up to a tag. So where all deliveries up to a tag
are settled, one frame acknowledges them; a delivery settled behind one that is still being served
waits a little, and is then acknowledged singly.

RabbitMQ looks for the tag that a frame names among the unsettled: a tag that is already settled
closes the channel, and acknowledges nothing. And a frame that waits for room in the client
library's queue can be overtaken by a later frame. Therefore one task for each channel writes all
of its frames, each after the previous one has reached the socket.

No frame may ever cover a delivery that is still being served, that was given back, or that came
on another channel.
"""

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import Final

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelInvalidStateError
from aiormq.abc import AbstractChannel

_HOLD_S: Final = 0.01

_log = structlog.get_logger()


class Acks:
    """Acknowledges and gives back the deliveries of one consumer, which has a channel of its own.

    Args:
        prefetch: The broker's limit of unacknowledged deliveries. Once half of it is settled but
            not acknowledged, no acknowledgment waits.
        hold_s: How long a settled delivery waits at most for earlier ones.
    """

    def __init__(self, prefetch: int, *, hold_s: float = _HOLD_S) -> None:
        self._prefetch = prefetch
        self._hold_s = hold_s
        self._current: ChannelAcks | None = None

    def done(self, message: AbstractIncomingMessage) -> None:
        """Acknowledge a delivery soon. If its channel is lost, the broker redelivers it."""
        if (acks := self._of(message)) is not None and message.delivery_tag:
            acks.done(message.delivery_tag)

    def give_back(self, message: AbstractIncomingMessage) -> None:
        """Let the broker redeliver a delivery; it may come to this process again."""
        if (acks := self._of(message)) is not None and message.delivery_tag:
            acks.give_back(message.delivery_tag)

    async def flush(self) -> None:
        """Send pending frames at once; returns once they are sent, or their channel is lost."""
        if self._current is not None:
            await self._current.flush()

    def _of(self, message: AbstractIncomingMessage) -> "ChannelAcks | None":
        try:
            channel = message.channel
        except ChannelInvalidStateError:
            return None  # the channel is closed, and its tags mean nothing on the next
        if self._current is None or self._current.channel is not channel:
            self._current = ChannelAcks(channel, self._prefetch, self._hold_s)
        return self._current


class ChannelAcks:
    """The state of one channel's deliveries, by their tags, which count from 1.

    A tag without a state here is being served. The prefetch bounds the memory used.
    """

    def __init__(self, channel: AbstractChannel, prefetch: int, hold_s: float) -> None:
        self.channel = channel
        self._prefetch = prefetch
        self._hold_s = hold_s
        self._through = 0  # everything up to this tag is settled with the broker
        self._ready: dict[int, float] = {}  # done, not acknowledged: when each must be
        self._back = deque[int]()  # to be given back
        self._gone = _Intervals()  # settled singly, beyond `_through`
        self._is_draining = False
        self._is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def done(self, tag: int) -> None:
        """See `Acks.done`."""
        if self._is_lost:
            return
        self._ready[tag] = asyncio.get_running_loop().time() + self._hold_s
        if self._timer is None or tag == self._through + 1 or self._is_crowded:
            self._begin()

    def give_back(self, tag: int) -> None:
        """See `Acks.give_back`."""
        if not self._is_lost:
            self._back.append(tag)
            self._begin()

    async def flush(self) -> None:
        """See `Acks.flush`."""
        self._is_draining = True
        try:
            while self._ready or self._back:
                await asyncio.wait({self._begin()})
        finally:
            self._is_draining = False

    @property
    def _is_crowded(self) -> bool:
        return 2 * len(self._ready) >= self._prefetch

    def _begin(self) -> asyncio.Task[None]:
        self._end_timer()
        if self._writer is None or self._writer.done():
            # The task begins after the next steps of all handlers that one batch woke up.
            loop = asyncio.get_running_loop()
            self._writer = loop.create_task(self._write(), context=Context())
        return self._writer

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _write(self) -> None:
        try:
            while await self._write_next():
                pass
        except (Exception, asyncio.CancelledError) as exc:
            # The broker redelivers. aiormq cancels tasks that wait for a lost channel.
            self._is_lost = True
            self._ready.clear()
            self._back.clear()
            if self.channel.is_closed:
                _log.debug("deliveries lost with their channel", problem=type(exc).__name__)
            else:
                # The deliveries would stay unsettled for as long as the channel is open.
                _log.warning("acknowledgments failed", problem=type(exc).__name__)
                self._closing = asyncio.create_task(self._close())
            if isinstance(exc, asyncio.CancelledError):
                raise

    async def _close(self) -> None:
        with suppress(Exception):
            await self.channel.close()

    async def _write_next(self) -> bool:
        """Write one frame; False if there is none to write now."""
        if self._back:
            await self.channel.basic_nack(self._back[0], requeue=True)
            self._through = self._gone.add(self._back.popleft(), self._through)
        elif prefix := self._prefix():
            await self.channel.basic_ack(prefix[-1], multiple=len(prefix) > 1)
            for tag in prefix:
                del self._ready[tag]
            self._through = self._gone.drop(prefix[-1])
        elif self._ready:
            tag, at = next(iter(self._ready.items()))
            loop = asyncio.get_running_loop()
            if loop.time() < at and not self._is_crowded and not self._is_draining:
                self._timer = loop.call_at(at, self._begin, context=Context())
                return False
            await self.channel.basic_ack(tag)
            del self._ready[tag]
            self._through = self._gone.add(tag, self._through)
        else:
            return False
        return True

    def _prefix(self) -> list[int]:
        """The ready tags, in order, up to the first that is still being served."""
        prefix = list[int]()
        tag = self._through + 1
        while True:
            if tag in self._ready:
                prefix.append(tag)
                tag += 1
            elif (beyond := self._gone.beyond(tag)) != tag:
                tag = beyond
            else:
                return prefix


class _Intervals:
    """A set of tags as intervals `[begin, end)` that do not touch, indexed by both ends."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._begins: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, tag: int, through: int) -> int:
        """Add a tag, then `drop`."""
        begin = self._begins.pop(tag, tag)
        end = self._ends.pop(tag + 1, tag + 1)
        self._ends[begin], self._begins[end] = end, begin
        return self.drop(through)

    def beyond(self, tag: int) -> int:
        """The first tag beyond the interval that begins at `tag`; `tag` if there is none."""
        return self._ends.get(tag, tag)

    def drop(self, through: int) -> int:
        """Forget the tags up to `through`; return the tag up to which everything is settled."""
        for begin in [each for each in self._ends if each <= through + 1]:
            end = self._ends.pop(begin)
            del self._begins[end]
            through = max(through, end - 1)
        return through
