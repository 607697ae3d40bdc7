"""A queue is consumed on one connection after another, until its process ends (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn_workers.pipeline.amqp.consumer import Acknowledgment
from keyturn_workers.pipeline.amqp.supervisor import ConsumerSupervisor
from tests.support.routes import deliver, undecoded
from tests.unit.keyturn_workers.pipeline.amqp.connections import (
    ClockedLoop,
    Delivered,
    FakeConnection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faststream.rabbit import RabbitBroker


class Connection(FakeConnection):
    """A connection that takes some time to open and to close."""

    def __init__(
        self, on_close: list[Callable[..., None]], opens_s: float, closes_s: float
    ) -> None:
        super().__init__()
        self.on_close = on_close
        self.opens_s = opens_s
        self.closes_s = closes_s
        self.has_started = False
        self.is_closed = False

    async def connect(self) -> Connection:
        await asyncio.sleep(self.opens_s)
        return self

    async def start(self) -> None:
        self.has_started = True

    async def close(self) -> None:
        await asyncio.sleep(self.closes_s)
        self.is_closed = True

    def lose(self) -> None:
        super().lose()
        for callback in self.on_close:
            callback()

    @property
    def prefetch(self) -> int:
        channel = self.subscriber.channel
        assert channel is not None
        assert channel.prefetch_count is not None
        return channel.prefetch_count


class World:
    """A supervisor, its connections, and a handler that handles once `gate` is open."""

    def __init__(self) -> None:
        self.time = ClockedLoop()
        self.connections: list[Connection] = []
        self.opens_s = self.closes_s = 0.0
        self.gate = asyncio.Event()
        self.route = undecoded("queue", 4, self._serve)
        self.supervisor = ConsumerSupervisor(self._connection, self.route)

    def _connection(self, *, on_close: list[Callable[..., None]]) -> RabbitBroker:
        self.connections.append(Connection(on_close, self.opens_s, self.closes_s))
        return cast("RabbitBroker", self.connections[-1])

    async def _serve(self, _: object) -> None:
        await self.gate.wait()

    def deliver(self, message: object) -> asyncio.Task[Any]:
        """Hand a message to the consumer."""
        consumer = self.supervisor._consumer
        assert consumer is not None
        return self.begin(deliver(self.route.within(partial(Acknowledgment, consumer)), message))

    def begin(self, work: Any) -> asyncio.Task[Any]:
        """Begin something, and let it come as far as it can."""
        task = self.time.loop.create_task(work)
        self.time.run()
        return task


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.gate.set()
    made.time.close()


@pytest.mark.parametrize(
    ("opens_s", "lasts_s", "closes_s", "prefetch"),
    [(0, 9, 0, 1), (0, 11, 0, 4), (12, 1, 0, 1), (0, 6, 4.9, 1)],
)
def test_a_connection_is_lost_soon_by_the_time_that_it_consumed(
    world: World, opens_s: float, lasts_s: float, closes_s: float, prefetch: int
) -> None:
    """To connect and to close may take long, at a broker that poison keeps busy."""
    world.opens_s, world.closes_s = opens_s, closes_s
    world.begin(world.supervisor.start())
    world.time.pass_time(opens_s + lasts_s)
    world.time.run(world.connections[0].lose)
    world.time.pass_time(closes_s + 0.1)
    assert [each.prefetch for each in world.connections] == [4, prefetch]


def test_a_process_that_ends_takes_on_nothing_once_it_could_take_on_more(world: World) -> None:
    world.begin(world.supervisor.start())
    world.time.run(world.connections[0].lose)
    world.time.pass_time(0.1)
    narrow = world.connections[1]
    assert narrow.prefetch == 1
    world.deliver(Delivered(narrow.underlay, 1))
    world.begin(world.supervisor.cancel())
    world.gate.set()
    world.time.pass_time(5)
    narrow.queue.consume.assert_not_awaited()
    assert not narrow.underlay.consumers


def test_a_process_that_ends_while_it_connects_does_not_consume(world: World) -> None:
    world.opens_s = 3
    world.begin(world.supervisor.start())
    world.begin(world.supervisor.cancel())
    world.time.pass_time(5)
    (only,) = world.connections
    assert (only.has_started, only.is_closed) == (False, True)


def test_a_connection_is_closed_however_often_that_is_requested(world: World) -> None:
    world.closes_s = 2
    world.begin(world.supervisor.start())
    closing = [world.begin(world.supervisor.close()) for _ in range(2)]
    world.time.pass_time(1)
    assert not any(task.done() for task in closing)
    world.time.pass_time(2)
    assert all(task.done() for task in closing)
    assert world.connections[0].is_closed
