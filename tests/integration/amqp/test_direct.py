"""Deliveries straight from aiormq's channel, in the life of FastStream's subscriber (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aio_pika
import aiormq
import pytest
from aio_pika.exceptions import MessageProcessError
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.subscriber import RabbitSubscriber
from pamqp import commands, frame

from keyturn_workers.amqp import consume_directly, is_registered
from keyturn_workers.amqp.direct import Delivered, Delivery, whole
from keyturn_workers.amqp.write_batcher import WriteBatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from faststream.rabbit.message import RabbitMessage

    from tests.integration.publisher.side import Network

_PREFETCH = 4


@dataclass
class Taken:
    """What a consumer was given; each is acknowledged once `gate` is open."""

    messages: list[Delivered] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    settle: Callable[[Delivered], Awaitable[None]] | None = None

    async def __call__(self, message: Delivered) -> None:
        async with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()
        await self.gate.wait()
        await (self.settle(message) if self.settle else message.ack())

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: len(self.messages) >= count)


@dataclass
class Scene:
    """A queue, a publisher of its own, and a broker of FastStream whose subscriber takes it."""

    channel: aio_pika.abc.AbstractChannel
    broker: RabbitBroker
    subscriber: RabbitSubscriber
    taken: Taken

    async def send(self, *bodies: bytes, **properties: Any) -> None:
        for body in bodies:
            message = aio_pika.Message(body, **properties)
            await self.channel.default_exchange.publish(message, "taken")

    async def left(self) -> int:
        declared = await self.channel.declare_queue("taken", passive=True)
        count = declared.declaration_result.message_count
        assert count is not None
        return count


@asynccontextmanager
async def taking(url: str, *, behind: str = "", grace_s: float = 20) -> AsyncIterator[Scene]:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("taken", durable=True, arguments={"x-queue-type": "quorum"})
        broker = RabbitBroker(
            behind or url, apply_types=False, graceful_timeout=grace_s, logger=None,
            reconnect_interval=0.1,
        )  # fmt: skip
        subscriber = broker.subscriber(
            RabbitQueue("taken", declare=False),
            channel=Channel(prefetch_count=_PREFETCH),
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
        )

        async def unused(message: RabbitMessage) -> None:
            raise AssertionError(message)

        subscriber(unused)
        taken = Taken()
        consume_directly(subscriber, taken)
        await broker.start()
        try:
            yield Scene(channel, broker, subscriber, taken)
        finally:
            taken.gate.set()
            await broker.stop()


async def test_after_the_first_delivery_no_layer_stands_between(
    vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: RabbitSubscriber, msg: object) -> None:
        raise AssertionError(self, msg)

    monkeypatch.setattr(RabbitSubscriber, "process_message", never)
    async with taking(vhost_url) as scene:
        scene.taken.gate.set()
        await scene.send(b"0")
        await scene.taken.until(1)
        await scene.send(*(str(number).encode() for number in range(1, 30)))
        await scene.taken.until(30)
        assert [int(message.body) for message in scene.taken.messages] == list(range(30))
        assert all(isinstance(each, Delivery) for each in scene.taken.messages[1:])
        assert is_registered(scene.subscriber)


async def test_a_delivery_tells_what_was_sent(vhost_url: str) -> None:
    sent: dict[str, Any] = {"headers": {"a": "b"}, "message_id": "m", "content_type": "text/x"}
    async with taking(vhost_url) as scene:
        await scene.send(b"first", b"second", **sent, priority=3, type="t")
        await scene.taken.until(2)
        for message in scene.taken.messages:
            assert (message.headers["a"], message.message_id) == ("b", "m")
            assert (message.routing_key, message.redelivered) == ("taken", False)
            copied = whole(message)
            assert (copied.body, copied.content_type, copied.type) == (
                message.body,
                "text/x",
                "t",
            )
    with pytest.raises(TypeError, match="not a delivery"):
        whole(object())  # type: ignore[arg-type]


async def test_no_more_are_given_out_than_are_asked_for(vhost_url: str) -> None:
    async with taking(vhost_url) as scene:
        await scene.send(*([b"x"] * 20))
        await scene.taken.until(_PREFETCH)
        assert await scene.left() == 20 - _PREFETCH
        scene.taken.gate.set()
        await scene.taken.until(20)


async def test_a_stop_waits_for_what_is_handled_and_its_acknowledgement_arrives(
    vhost_url: str,
) -> None:
    async with taking(vhost_url) as scene:
        await scene.send(*([b"x"] * _PREFETCH))
        await scene.taken.until(_PREFETCH)
        stopping = asyncio.create_task(scene.broker.stop())
        # It would be over long before that if it did not wait.
        assert not (await asyncio.wait({stopping}, timeout=1.5))[0]
        scene.taken.gate.set()
        await stopping
        assert await scene.left() == 0


async def test_what_is_given_back_comes_again_and_nothing_is_settled_twice(vhost_url: str) -> None:
    async def settle(message: Delivered) -> None:
        again = bool(message.redelivered)
        await (message.ack() if again else message.nack(requeue=True))
        with pytest.raises(MessageProcessError):
            await message.ack()

    async with taking(vhost_url) as scene:
        scene.taken.settle = settle
        scene.taken.gate.set()
        await scene.send(b"first", b"second")
        await scene.taken.until(4)
        await scene.broker.stop()
        assert await scene.left() == 0
    assert sorted(m.body for m in scene.taken.messages) == [b"first"] * 2 + [b"second"] * 2


async def test_after_a_lost_connection_all_comes_again_and_as_directly(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with taking(vhost_url, behind=url) as scene:
        await scene.send(*([b"x"] * _PREFETCH))
        await scene.taken.until(_PREFETCH)
        relay.cut()
        scene.taken.gate.set()
        await scene.taken.until(2 * _PREFETCH)
        await scene.send(b"y", b"z")
        await scene.taken.until(2 * _PREFETCH + 2)
        assert isinstance(scene.taken.messages[-1], Delivery)
        assert is_registered(scene.subscriber)
        await scene.broker.stop()
        assert await scene.left() == 0


async def test_an_acknowledgement_too_late_for_its_channel_costs_no_connection(
    vhost_url: str,
) -> None:
    connection = await aiormq.connect(vhost_url)
    channel = await connection.channel()
    assert isinstance(channel, aiormq.Channel)
    out = WriteBatcher(channel)
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
        await channel.basic_get("no such queue")
    assert channel.number not in connection.channels
    out.add(frame.marshal(commands.Basic.Ack(delivery_tag=1), channel.number))
    another = await connection.channel()
    assert (await another.queue_declare("after")).queue == "after"
    await connection.close()
