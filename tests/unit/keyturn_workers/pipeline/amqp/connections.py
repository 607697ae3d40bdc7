"""A broker whose connections and channels a test steers, on a clock of the test's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, create_autospec

import aiormq
from aio_pika.abc import AbstractQueue, AbstractRobustChannel
from aio_pika.exceptions import ChannelInvalidStateError

from tests.protocol.clock import Clock, Loop

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage
    from faststream.rabbit import RabbitBroker, RabbitRouter
    from faststream.rabbit.subscriber import RabbitSubscriber


class FakeConnection:
    """A connection with one channel on it.

    Attributes:
        opened: How many channels were requested.
        underlay: aiormq's channel, until the connection is lost.
        robust: aio-pika's channel, which is opened again after a loss.
        queue: The one queue.
        router: What a consumer included.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.underlay = _underlay()
        self.robust = create_autospec(AbstractRobustChannel, instance=True)
        self.robust.reopen_callbacks = _Callbacks()
        self.robust.get_underlay_channel = AsyncMock(side_effect=lambda: self.underlay)
        self.robust.get_queue = AsyncMock(side_effect=self._queue)
        self.queue = create_autospec(AbstractQueue, instance=True)
        self.queue.channel = self.robust
        self.queue.cancel = AsyncMock(side_effect=self._cancel)
        self.router: RabbitRouter | None = None

    @property
    def broker(self) -> RabbitBroker:
        """FastStream's broker on this connection."""
        return cast("RabbitBroker", self)

    async def connect(self) -> FakeConnection:
        return self

    async def channel(self, **_: object) -> Any:
        self.opened += 1
        await asyncio.sleep(0)
        return self.robust

    @property
    def subscriber(self) -> RabbitSubscriber:
        """The one subscriber."""
        assert self.router is not None
        (subscriber,) = self.router.subscribers
        return cast("RabbitSubscriber", subscriber)

    def include_router(self, router: RabbitRouter) -> None:
        self.router = router

    async def declare_queue(self, queue: Any) -> Any:
        """The queue, which the subscriber consumes by now."""
        assert not queue.declare
        self.underlay.consumers["tag"] = object()
        return self.queue

    def lose(self) -> None:
        """Lose the connection."""
        self.underlay.is_closed = True

    async def reopen(self, *, consuming: bool = True) -> None:
        """Open the channel again, as aio-pika does."""
        self.underlay = _underlay()
        if consuming:
            self.underlay.consumers["tag"] = object()
        for callback in self.robust.reopen_callbacks.added:
            await callback(self.robust)

    async def _queue(self, name: str, *, ensure: bool) -> Any:
        assert name == "queue"
        assert ensure
        return self.queue

    async def _cancel(self, tag: str) -> None:
        del self.underlay.consumers[tag]


class _Callbacks:
    """A collection of callbacks, as aio-pika's."""

    def __init__(self) -> None:
        self.added: list[Any] = []

    def add(self, callback: Any) -> None:
        self.added.append(callback)


def _underlay() -> Any:
    channel = create_autospec(aiormq.Channel, instance=True)
    channel.is_closed = False
    channel.consumers = {}
    return channel


@dataclass
class Delivered:
    """A delivery, and the tag that its channel gave it."""

    origin: BrokerChannel
    delivery_tag: int
    done_at: float | None = None
    was_given_back: bool = False

    @property
    def channel(self) -> BrokerChannel:
        if self.origin.is_closed:
            raise ChannelInvalidStateError
        return self.origin

    @property
    def message(self) -> AbstractIncomingMessage:
        return cast("AbstractIncomingMessage", self)


class BrokerChannel:
    """One channel. Frames wait while it is blocked, and the one that came last goes out first.

    Attributes:
        unsettled: The tags that were delivered, and not settled.
        frames: What it was told, such as `ack 3`, `ack ..3` for all up to it, and `nack 3`.
        refused: The frame that made the broker close it, if one did.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self.is_blocked = False
        self.unsettled: set[int] = set()
        self.acknowledged: set[int] = set()
        self.returned: set[int] = set()
        self.frames: list[str] = []
        self.refused = ""
        self._last = 0
        self._waiting: list[asyncio.Future[None]] = []

    def deliver(self) -> Delivered:
        self._last += 1
        self.unsettled.add(self._last)
        return Delivered(self, self._last)

    async def basic_ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        await self._sent()
        covered = self._covered(delivery_tag, multiple=multiple)
        self._settle(f"ack {'..' * multiple}{delivery_tag}", covered)
        self.acknowledged |= covered

    async def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        assert requeue
        await self._sent()
        covered = self._covered(delivery_tag, multiple=False)
        self._settle(f"nack {delivery_tag}", covered)
        self.returned |= covered

    def unblock(self) -> None:
        self.is_blocked = False
        for future in reversed(self._waiting):
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def close(self) -> None:
        """As aiormq ends a channel: what waits for it is canceled."""
        self.is_closed = True
        for future in self._waiting:
            future.cancel()

    async def _sent(self) -> None:
        if not self.is_closed and self.is_blocked:
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        if self.is_closed:
            raise ChannelInvalidStateError

    def _covered(self, named: int, *, multiple: bool) -> set[int]:
        if named not in self.unsettled:
            return set()
        return {tag for tag in self.unsettled if tag <= named} if multiple else {named}

    def _settle(self, frame: str, covered: set[int]) -> None:
        self.frames.append(frame)
        if not covered:
            self.refused = frame
            self.close()
            raise ChannelInvalidStateError
        self.unsettled -= covered


class ClockedLoop:
    """An event loop whose time passes only when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = Loop(self.clock)

    @property
    def now(self) -> float:
        return self.clock.seconds

    def run(self, action: Any = None, *arguments: Any) -> None:
        """Call something on the loop, and let every task come as far as it can."""
        if action is not None:
            self.loop.call_soon(action, *arguments)
        self.loop.run_until_idle()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, from one timer to the next."""
        until = self.now + seconds
        while (at := self.loop.next_timer()) is not None and at <= until:
            self.clock.seconds = max(self.now, at)
            self.run()
        self.clock.seconds = until
        self.run()

    def close(self) -> None:
        """End what still waits, and what begins because of that."""
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.run()
        self.loop.close()
