"""A queue's consumer at a real broker: each delivery is handled, a stop loses none (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import aio_pika
import aiormq
import pytest
from faststream.rabbit import RabbitBroker

from keyturn_workers.pipeline.amqp.consumer import finish
from keyturn_workers.pipeline.amqp.outcomes import ReturnedError
from keyturn_workers.pipeline.amqp.supervisor import ConsumerSupervisor
from tests.support.routes import undecoded
from tools.harness.amqp1 import POISONS, open_sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aio_pika.abc import AbstractIncomingMessage

    from tests.integration.publisher.side import Network

_PREFETCH = 4
_QUEUE = "consumed"
_DEAD = f"{_QUEUE}.dead"


@dataclass
class Handler:
    """Notes its deliveries, and is done with each once `gate` is open; with quick ones at once."""

    messages: list[AbstractIncomingMessage] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_settled: Callable[[AbstractIncomingMessage], object] = lambda _: True

    async def serve(self, message: AbstractIncomingMessage) -> None:
        async with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()
        if message.body != b"quick":
            await self.gate.wait()
        if not self.is_settled(message):
            raise ReturnedError

    async def has_received(self, count: int) -> None:
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: len(self.messages) >= count)


@dataclass
class Scene:
    """A queue, a publisher, and the queue's supervised consumer."""

    channel: aio_pika.abc.AbstractChannel
    consumer: ConsumerSupervisor
    handler: Handler
    grace_s: float = 20

    async def stop(self) -> None:
        """End as a worker does."""
        await finish([self.consumer], self.grace_s)
        await self.consumer.close()

    async def send(self, *bodies: bytes, **properties: Any) -> None:
        for body in bodies:
            message = aio_pika.Message(body, **properties)
            await self.channel.default_exchange.publish(message, _QUEUE)

    async def ready_count(self, queue: str = _QUEUE) -> int:
        """Messages that no consumer has."""
        declared = await self.channel.declare_queue(queue, passive=True)
        count = declared.declaration_result.message_count
        assert count is not None
        return count

    async def is_wide(self) -> None:
        """Wait until the consumer has its whole prefetch."""
        async with asyncio.timeout(20):
            while (made := self.consumer._consumer) is None or made.is_narrow:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # it has no event

    async def is_active(self, expected: bool) -> None:
        async with asyncio.timeout(20):
            while self.consumer.is_active() is not expected:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.002)  # a reconnection may take no longer than that


async def declare(channel: aio_pika.abc.AbstractChannel) -> None:
    await channel.declare_queue(_DEAD, durable=True)
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": _DEAD,
    }
    await channel.declare_queue(_QUEUE, durable=True, arguments=arguments)


def supervisor(url: str, handler: Handler) -> ConsumerSupervisor:
    new_broker = partial(RabbitBroker, url, apply_types=False, graceful_timeout=None, logger=None)
    return ConsumerSupervisor(new_broker, undecoded(_QUEUE, _PREFETCH, handler.serve))


@asynccontextmanager
async def consuming(
    url: str,
    *,
    behind: str = "",
    grace_s: float = 20,
    backlog: int = 0,
) -> AsyncIterator[Scene]:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await declare(channel)
        handler = Handler()
        consumer = supervisor(behind or url, handler)
        scene = Scene(channel, consumer, handler, grace_s)
        await scene.send(*([b"x"] * backlog))
        await scene.consumer.start()
        try:
            yield scene
        finally:
            handler.gate.set()
            await scene.stop()


async def test_a_delivery_is_handed_over_as_it_was_sent(vhost_url: str) -> None:
    sent: dict[str, Any] = {"headers": {"a": "b"}, "message_id": "m", "content_type": "text/x"}
    async with consuming(vhost_url) as scene:
        await scene.send(b"{not json", b"\xff", **sent, priority=3, type="t")
        await scene.handler.has_received(2)
        assert [message.body for message in scene.handler.messages] == [b"{not json", b"\xff"]
        for message in scene.handler.messages:
            assert (message.headers["a"], message.message_id) == ("b", "m")
            assert (message.routing_key, message.redelivered) == (_QUEUE, False)
            assert (message.content_type, message.type) == ("text/x", "t")


async def test_a_delivery_without_an_id_has_none(vhost_url: str) -> None:
    async with consuming(vhost_url) as scene:
        await scene.channel.default_exchange.publish(aio_pika.Message(b"", reply_to="x"), _QUEUE)
        await scene.handler.has_received(1)
        assert scene.handler.messages[0].reply_to == "x"


async def test_a_delivery_is_freed_without_the_garbage_collector(vhost_url: str) -> None:
    """The collector runs rarely, and counts objects rather than bytes: a cycle keeps the body."""
    async with consuming(vhost_url) as scene:
        gc.disable()
        try:
            await scene.send(*([b"quick"] * 3 * _PREFETCH), message_id="freed")
            await scene.handler.has_received(3 * _PREFETCH)
            scene.handler.messages.clear()
            await scene.send(b"last")  # the tasks of the others have ended once it is handled
            await scene.handler.has_received(1)
            kept = [each for each in gc.get_objects() if type(each) is aio_pika.IncomingMessage]
            assert not [message for message in kept if message.message_id == "freed"]
        finally:
            gc.enable()


async def test_the_prefetch_bounds_the_deliveries_in_flight(vhost_url: str) -> None:
    async with consuming(vhost_url) as scene:
        await scene.send(*([b"x"] * 20))
        await scene.handler.has_received(_PREFETCH)
        assert await scene.ready_count() == 20 - _PREFETCH
        scene.handler.gate.set()
        await scene.handler.has_received(20)


async def test_a_backlog_at_the_start_is_handled_completely(vhost_url: str) -> None:
    """FastStream drops what arrives before its subscriber is running: nothing may be lost."""
    for _ in range(10):
        async with consuming(vhost_url, backlog=3 * _PREFETCH) as scene:
            scene.handler.gate.set()
            await scene.handler.has_received(3 * _PREFETCH)
        async with consuming(vhost_url) as scene:
            assert await scene.ready_count() == 0


async def test_a_stop_waits_for_handlers_and_their_acknowledgments_arrive(vhost_url: str) -> None:
    async with consuming(vhost_url) as scene:
        await scene.send(*([b"x"] * _PREFETCH))
        await scene.handler.has_received(_PREFETCH)
        stopping = asyncio.create_task(scene.stop())
        # It would be over long before that if it did not wait.
        assert not (await asyncio.wait({stopping}, timeout=1.5))[0]
        scene.handler.gate.set()
        await stopping
        assert await scene.ready_count() == 0


async def test_a_stop_cuts_what_outlasts_the_grace_and_it_is_redelivered(vhost_url: str) -> None:
    async with consuming(vhost_url, grace_s=0.5) as scene:
        await scene.send(b"x")
        await scene.handler.has_received(1)
        async with asyncio.timeout(5):
            await scene.stop()
        async with asyncio.timeout(20):
            while await scene.ready_count() != 1:  # noqa: ASYNC110  # the broker has no event
                await asyncio.sleep(0.05)


async def test_a_slow_delivery_keeps_no_other_from_being_acknowledged(vhost_url: str) -> None:
    """More than the prefetch comes while it lasts, and it alone comes again."""
    async with consuming(vhost_url, grace_s=0.5) as scene:
        await scene.send(b"slow", *([b"quick"] * 20))
        await scene.handler.has_received(21)
        await scene.stop()
        async with asyncio.timeout(20):
            while await scene.ready_count() != 1:  # noqa: ASYNC110  # the broker has no event
                await asyncio.sleep(0.05)


async def test_a_canceled_consumer_gets_no_more_and_finishes_what_it_has(vhost_url: str) -> None:
    """One handler is slow: its process must not keep the rest from the other consumers."""
    async with consuming(vhost_url) as scene:
        await scene.send(*([b"x"] * 20))
        await scene.handler.has_received(_PREFETCH)
        assert scene.consumer.is_active()
        await scene.consumer.cancel()
        assert not scene.consumer.is_active()
        scene.handler.gate.set()
        await scene.stop()
        assert len(scene.handler.messages) == _PREFETCH
        assert await scene.ready_count() == 20 - _PREFETCH


async def test_what_arrives_while_the_consumer_is_canceled_is_handled(vhost_url: str) -> None:
    """The broker may send until it answers: dropped, such a delivery would wait for the end."""
    for _ in range(5):
        async with consuming(vhost_url) as scene:
            scene.handler.gate.set()
            await scene.send(*([b"x"] * 40))
            await scene.consumer.cancel()
            received = len(scene.handler.messages)
            await scene.stop()
            assert len(scene.handler.messages) == received
            assert await scene.ready_count() == 40 - received
            await (await scene.channel.get_queue(_QUEUE)).purge()


async def test_one_that_never_started_has_nothing_to_cancel(vhost_url: str) -> None:
    consumer = supervisor(vhost_url, Handler())
    await consumer.cancel()
    assert not consumer.is_active()


async def test_what_is_given_back_comes_again(vhost_url: str) -> None:
    async with consuming(vhost_url) as scene:
        scene.handler.is_settled = lambda message: message.redelivered
        scene.handler.gate.set()
        await scene.send(b"first", b"second")
        await scene.handler.has_received(4)
        await scene.stop()
        assert await scene.ready_count() == 0
    assert sorted(m.body for m in scene.handler.messages) == [b"first"] * 2 + [b"second"] * 2


async def test_after_a_lost_connection_all_comes_again(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with consuming(vhost_url, behind=url) as scene:
        for times in (1, 2, 3):
            await scene.send(*([b"x"] * _PREFETCH))
            await scene.handler.has_received((2 * times - 1) * _PREFETCH)
            relay.cut()
            await scene.is_active(expected=False)
            scene.handler.gate.set()
            await scene.handler.has_received(2 * times * _PREFETCH)
            await scene.is_active(expected=True)
            scene.handler.gate.clear()
        scene.handler.gate.set()
        await scene.stop()
        assert await scene.ready_count() == 0


async def test_after_a_connection_that_lasted_as_many_come_again_at_once(
    vhost_url: str, network: tuple[Network, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of the broker is no reason to handle one long upload after the other."""
    monkeypatch.setattr("keyturn_workers.pipeline.amqp.supervisor._SOON_S", 0)
    relay, url = network
    async with consuming(vhost_url, behind=url) as scene:
        await scene.send(*([b"x"] * _PREFETCH))
        await scene.handler.has_received(_PREFETCH)
        relay.cut()
        await scene.handler.has_received(2 * _PREFETCH)


async def _poison(url: str) -> None:
    async with open_sender(url, f"/queues/{_QUEUE}") as sender:
        await sender.send(b"poison", POISONS["uuid"])


async def test_poison_costs_a_message_that_is_being_handled_one_delivery(vhost_url: str) -> None:
    """It is then handled alone: without prefetch, no other can end its connection."""
    async with consuming(vhost_url) as scene:
        await scene.send(b"a", b"b", b"c")
        await scene.handler.has_received(3)
        await _poison(vhost_url)
        for handled in range(3):
            await scene.handler.has_received(4 + handled)
            await asyncio.sleep(0.2)  # as long as a few losses
            assert len(scene.handler.messages) == 4 + handled
            scene.handler.gate.set()
            scene.handler.gate.clear()
        again = scene.handler.messages[3:]
        assert sorted(message.body for message in again) == [b"a", b"b", b"c"]
        assert [message.headers["x-delivery-count"] for message in again] == [1, 1, 1]


@pytest.mark.parametrize("how", ["idle", "busy"])
async def test_after_poison_as_many_are_handled_at_once_as_before(vhost_url: str, how: str) -> None:
    """Once as many were handled one at a time, or nothing is left."""
    async with consuming(vhost_url) as scene:
        await _poison(vhost_url)
        async with asyncio.timeout(60):
            while await scene.ready_count(_DEAD) != 1:  # noqa: ASYNC110  # the broker has no event
                await asyncio.sleep(0.05)
        if how == "idle":
            await scene.is_wide()
        else:
            await scene.send(*([b"quick"] * _PREFETCH))
            await scene.handler.has_received(_PREFETCH)
        before = len(scene.handler.messages)
        await scene.send(*([b"x"] * 20))
        await scene.handler.has_received(before + _PREFETCH)
        await scene.is_wide()
        in_hand = 20 - await scene.ready_count()
        # Deliveries in flight when the prefetch grew stay in flight beside it.
        assert in_hand == _PREFETCH + (how == "busy")


async def test_a_consumer_that_the_broker_cancels_is_inactive_until_its_queue_is_back(
    vhost_url: str,
) -> None:
    async with consuming(vhost_url) as scene:
        assert scene.consumer.is_active()
        await scene.channel.queue_delete(_QUEUE)
        await scene.is_active(expected=False)
        await declare(scene.channel)
        await scene.is_active(expected=True)
        scene.handler.gate.set()
        await scene.send(b"x")
        await scene.handler.has_received(1)


async def test_a_channel_that_the_broker_closes_is_opened_again(vhost_url: str) -> None:
    async with consuming(vhost_url) as scene:
        await scene.send(b"x")
        await scene.handler.has_received(1)
        message = scene.handler.messages[0]
        assert isinstance(message, aio_pika.IncomingMessage)
        await message.channel.basic_ack(delivery_tag=4711)  # unknown: an error of the channel
        await scene.handler.has_received(2)
        await scene.is_active(expected=True)
        scene.handler.gate.set()
        await scene.stop()
        assert await scene.ready_count() == 0


async def test_a_broker_that_does_not_answer_delays_a_cancellation_only_briefly(
    vhost_url: str,
    network: tuple[Network, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And cuts nothing short: aiormq closes the channel of a request that is canceled."""
    monkeypatch.setattr("keyturn_workers.pipeline.amqp.consumer._CANCEL_TIMEOUT_S", 0.2)
    relay, url = network
    async with consuming(vhost_url, behind=url) as scene:
        await scene.send(b"x")
        await scene.handler.has_received(1)
        relay.silence()
        async with asyncio.timeout(5):
            await scene.consumer.cancel()
        relay.restore()
        await scene.is_active(expected=False)
        scene.handler.gate.set()
        await scene.stop()
        assert await scene.ready_count() == 0


async def test_where_acknowledging_fails_all_comes_again_on_another_channel(
    vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not acknowledged, and cannot be, must not stay with this process."""
    acknowledge, failures = aiormq.Channel.basic_ack, [ValueError()]

    async def fail_once(channel: aiormq.Channel, *args: Any, **more: Any) -> None:
        if failures:
            raise failures.pop()
        await acknowledge(channel, *args, **more)

    monkeypatch.setattr(aiormq.Channel, "basic_ack", fail_once)
    async with consuming(vhost_url) as scene:
        scene.handler.gate.set()
        await scene.send(b"x")
        await scene.handler.has_received(2)
        await scene.send(b"y")
        await scene.handler.has_received(3)
        await scene.is_active(expected=True)
