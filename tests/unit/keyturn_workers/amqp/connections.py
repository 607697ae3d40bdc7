"""A broker of FastStream with one robust channel, which can be lost and opened again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, create_autospec

import aiormq
from aio_pika.abc import AbstractQueue, AbstractRobustChannel

if TYPE_CHECKING:
    from collections.abc import Callable

    from faststream.rabbit import RabbitBroker


class FakeConnection:
    """A connection with one channel on it.

    Attributes:
        opened: How many channels were requested.
        underlay: aiormq's channel, until the connection is lost.
        robust: aio-pika's channel, which is opened again after a loss.
        queue: The one queue; it hands its consumer what `deliver` is given.
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
        self.subscriptions: list[tuple[Any, dict[str, Any]]] = []
        self._deliver: Callable[[Any], Any] | None = None

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

    def subscriber(self, queue: Any, **options: Any) -> Callable[[Callable[[Any], Any]], None]:
        self.subscriptions.append((queue, options))

        def subscribe(handle: Callable[[Any], Any]) -> None:
            self._deliver = handle

        return subscribe

    async def declare_queue(self, queue: Any) -> Any:
        """The queue, which the subscriber consumes by now."""
        assert not queue.declare
        self.underlay.consumers["tag"] = self._deliver
        return self.queue

    async def deliver(self, message: object) -> None:
        """Hand a message to the consumer."""
        assert self._deliver is not None
        await self._deliver(SimpleNamespace(raw_message=message))

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
