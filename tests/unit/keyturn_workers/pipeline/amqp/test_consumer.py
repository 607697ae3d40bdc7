"""A consumer knows what it handles, whether it still consumes, and how to end (SPEC 6.2, 11)."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import create_autospec

import pytest
from aio_pika.abc import AbstractChannel
from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, TestRabbitBroker

from keyturn_workers.pipeline.amqp import consumer
from keyturn_workers.pipeline.amqp.consumer import Acknowledgment, QueueConsumer, finish
from keyturn_workers.pipeline.amqp.outcomes import ReturnedError
from tests.support.routes import deliver, undecoded
from tests.unit.keyturn_workers.pipeline.amqp.connections import FakeConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractIncomingMessage

    Begin = Callable[..., Awaitable[asyncio.Task[bool]]]


class Handler:
    """Handles deliveries once `gate` is open."""

    def __init__(self) -> None:
        self.ended: list[AbstractIncomingMessage] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.route = undecoded("queue", 8, self.serve)

    async def serve(self, message: AbstractIncomingMessage) -> None:
        await self.gate.wait()
        self.ended.append(message)
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_BEGIN_S", 0)
    monkeypatch.setattr(consumer, "_CANCEL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(consumer, "_FLUSH_TIMEOUT_S", 0.01)


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def consuming(connection: FakeConnection, handler: Handler) -> QueueConsumer:
    made = QueueConsumer(connection.broker, handler.route)
    assert not made.is_active()
    await made.attach()
    return made


@pytest.fixture
def begin(connection: FakeConnection, consuming: QueueConsumer, handler: Handler) -> Begin:
    """Hand a message to the consumer."""
    route = handler.route.within(partial(Acknowledgment, consuming))

    async def begin(tag: int = 1) -> asyncio.Task[bool]:
        message = SimpleNamespace(channel=connection.underlay, delivery_tag=tag)
        task = asyncio.create_task(deliver(route, message))
        await asyncio.sleep(0)
        return task

    return begin


async def test_deliveries_are_bounded_by_the_prefetch_and_acknowledged_by_nobody_else(
    connection: FakeConnection, consuming: QueueConsumer
) -> None:
    assert consuming.is_active()
    subscriber = connection.subscriber
    assert subscriber.queue.name == "queue"
    assert subscriber.channel is not None
    assert subscriber.channel.prefetch_count == 8
    assert subscriber.ack_policy is AckPolicy.MANUAL


async def test_a_consumer_that_the_broker_canceled_is_not_active(
    connection: FakeConnection, consuming: QueueConsumer
) -> None:
    """As it does when the queue is deleted."""
    connection.underlay.consumers.clear()
    assert not consuming.is_active()


async def test_a_consumer_is_active_again_after_a_lost_connection(
    connection: FakeConnection, consuming: QueueConsumer
) -> None:
    connection.lose()
    assert not consuming.is_active()
    await connection.reopen(consuming=False)
    assert not consuming.is_active()
    await connection.reopen()
    assert consuming.is_active()


async def test_a_channel_that_stays_lost_is_refused(
    connection: FakeConnection, handler: Handler
) -> None:
    connection.queue.channel = create_autospec(AbstractChannel, instance=True)
    with pytest.raises(TypeError):
        await QueueConsumer(connection.broker, handler.route).attach()


async def test_an_end_in_order_waits_for_what_is_being_handled(
    connection: FakeConnection, consuming: QueueConsumer, handler: Handler, begin: Begin
) -> None:
    deliveries = [await begin(number) for number in (1, 2)]
    ending = asyncio.create_task(finish([consuming], grace_s=5))
    await asyncio.wait([ending], timeout=0.05)
    connection.queue.cancel.assert_awaited_once_with("tag")
    assert not ending.done()
    assert not consuming.is_active()
    handler.gate.set()
    await ending
    assert [message.delivery_tag for message in handler.ended] == [1, 2]
    connection.underlay.basic_ack.assert_awaited_once_with(2, multiple=True)
    await asyncio.gather(*deliveries)


async def test_the_grace_period_ends_the_wait(
    connection: FakeConnection, consuming: QueueConsumer, handler: Handler, begin: Begin
) -> None:
    """What is done by then is acknowledged, behind one that is not."""
    slow, gate = await begin(1), handler.gate
    handler.gate = asyncio.Event()
    handler.gate.set()
    await (await begin(2))
    await finish([consuming], grace_s=0.02)
    connection.underlay.basic_ack.assert_awaited_once_with(2)
    gate.set()
    await slow


async def test_a_broker_that_takes_nothing_does_not_hold_up_the_end(
    connection: FakeConnection, consuming: QueueConsumer, handler: Handler, begin: Begin
) -> None:
    connection.underlay.basic_ack.side_effect = asyncio.Event().wait
    handler.gate.set()
    await (await begin())
    async with asyncio.timeout(5):
        await finish([consuming], grace_s=5)


async def test_what_its_handler_returns_is_given_back(
    connection: FakeConnection, consuming: QueueConsumer, handler: Handler, begin: Begin
) -> None:
    handler.gate.set()
    handler.error = ReturnedError()
    await (await begin())
    await consuming.flush()
    connection.underlay.basic_nack.assert_awaited_once_with(1, requeue=True)
    connection.underlay.basic_ack.assert_not_awaited()


async def test_what_its_handler_fails_at_is_given_back(
    connection: FakeConnection, consuming: QueueConsumer, handler: Handler, begin: Begin
) -> None:
    """It must not do that. But else the delivery would keep its place in the prefetch for ever."""
    handler.gate.set()
    handler.error = OSError()
    with pytest.raises(OSError, match=r"^$"):
        await (await begin())
    await consuming.flush()
    connection.underlay.basic_nack.assert_awaited_once_with(1, requeue=True)


async def test_a_handler_that_is_canceled_is_no_longer_waited_for(
    connection: FakeConnection, consuming: QueueConsumer, begin: Begin
) -> None:
    delivery = await begin()
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivery
    async with asyncio.timeout(5):
        await consuming.wait_idle()
    await consuming.flush()
    connection.underlay.basic_ack.assert_not_awaited()
    connection.underlay.basic_nack.assert_not_awaited()


async def test_a_broker_that_does_not_answer_does_not_hold_up_the_end(
    connection: FakeConnection, consuming: QueueConsumer
) -> None:
    """Nor is the request to it canceled: aiormq would close the channel of the handlers."""
    request: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def never(_: str) -> None:
        await request

    connection.queue.cancel.side_effect = never
    async with asyncio.timeout(5):
        await consuming.cancel()
    assert not request.cancelled()
    request.set_result(None)


async def test_a_refused_cancellation_is_no_error(
    connection: FakeConnection, consuming: QueueConsumer
) -> None:
    connection.queue.cancel.side_effect = ConnectionError
    await consuming.cancel()
    connection.lose()
    await consuming.cancel()
    assert connection.queue.cancel.await_count == 1


async def test_a_consumer_that_never_attached_ends_at_once(
    connection: FakeConnection, handler: Handler
) -> None:
    await finish([QueueConsumer(connection.broker, handler.route)], grace_s=5)
    connection.queue.cancel.assert_not_awaited()


async def test_a_subscriber_hands_on_each_body_as_it_came(handler: Handler) -> None:
    """A signature is over bytes: nothing may parse a body before it is verified."""
    broker = RabbitBroker(apply_types=False)
    QueueConsumer(broker, handler.route)
    handler.gate.set()
    async with TestRabbitBroker(broker) as tested:
        await tested.publish(b"{not json", "queue", content_type="application/json")
    (message,) = handler.ended
    assert message.body == b"{not json"


async def test_no_message_makes_a_worker_publish_where_its_sender_says(handler: Handler) -> None:
    """A reply would be an unsigned message to any queue that a sender names."""
    broker, replies = RabbitBroker(apply_types=False), list[object]()
    QueueConsumer(broker, handler.route)
    broker.subscriber("elsewhere")(replies.append)
    handler.gate.set()
    async with TestRabbitBroker(broker) as tested:
        await tested.publish(b"a reply", "elsewhere")
        assert len(replies) == 1
        await tested.publish(b"body", "queue", reply_to="elsewhere", correlation_id="1")
    assert len(handler.ended) == len(replies) == 1
