"""A worker's publishers: in order, each message confirmed, none by mistake (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.exceptions import AMQPException, DeliveryError, PublishError
from aiormq.exceptions import ChannelInvalidStateError
from faststream.rabbit import Channel, RabbitBroker
from pamqp import commands

from keyturn.crypto import SigningKey
from keyturn.messages import EVENT_BATCH_MAX, request_id
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn.topology import EXCHANGE, UPLOAD_QUEUE, retry_name
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.publisher import ConfirmedPublisher, WorkerPublisher
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import STORED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractQueue

    from tests.integration.publisher.side import Network


# Events on their own channel.


_EXCHANGE = "published"
_KEY = "event.published"


@asynccontextmanager
async def publishing(
    url: str, *, behind: str = "", timeout_s: float = 20, **arguments: Any
) -> AsyncIterator[tuple[ConfirmedPublisher, AbstractQueue]]:
    """A publisher at `behind`, or `url`, and the queue behind its exchange."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(_EXCHANGE, "topic", durable=True)
        queue = await channel.declare_queue("events", durable=True, arguments=arguments)
        await queue.bind(exchange, _KEY)
        broker = RabbitBroker(
            behind or url,
            default_channel=Channel(on_return_raises=True),
            logger=None,
            reconnect_interval=0.1,
        )
        try:
            yield ConfirmedPublisher(broker, _EXCHANGE, timeout_s=timeout_s), queue
        finally:
            await broker.stop()


def properties(number: int = 0) -> commands.Basic.Properties:
    return commands.Basic.Properties(
        content_type="application/json",
        headers={"keyturn-signature": f"s{number}"},
        delivery_mode=2,
        correlation_id=f"c{number}",
    )


async def test_many_at_once_arrive_in_order_with_all_properties(vhost_url: str) -> None:
    async with publishing(vhost_url) as (publisher, queue):
        bodies = [b"x" * (number * 40) for number in range(200)]
        publishes = (publisher.publish(_KEY, body, properties(n)) for n, body in enumerate(bodies))
        await asyncio.gather(*publishes)
        ids = set()
        for number, body in enumerate(bodies):
            message = await queue.get(no_ack=True)
            assert message.body == body
            assert (message.headers, message.correlation_id) == (
                {"keyturn-signature": f"s{number}"},
                f"c{number}",
            )
            assert (message.content_type, message.routing_key) == ("application/json", _KEY)
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            ids.add(message.message_id)
        assert len(ids) == len(bodies)


@pytest.mark.parametrize("size_bytes", [0, 131_064, 131_065, 400_000])
async def test_a_body_of_any_number_of_frames_arrives_unchanged(
    vhost_url: str, size_bytes: int
) -> None:
    body = bytes(size_bytes - 1) + b"." if size_bytes else b""
    async with publishing(vhost_url) as (publisher, queue):
        await publisher.publish(_KEY, body, properties())
        assert (await queue.get(no_ack=True)).body == body


async def test_an_unroutable_message_is_an_error_for_it_alone(vhost_url: str) -> None:
    async with publishing(vhost_url) as (publisher, queue):
        keys = [_KEY, "event.unrouted", _KEY, "event.unrouted", _KEY]
        outcomes = await asyncio.gather(
            *(publisher.publish(key, key.encode(), properties()) for key in keys),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes] == [
            type(None),
            PublishError,
            type(None),
            PublishError,
            type(None),
        ]
        await publisher.publish(_KEY, b"after", properties())
        assert [(await queue.get(no_ack=True)).body for _ in range(4)] == [
            *([_KEY.encode()] * 3),
            b"after",
        ]


async def test_a_message_that_the_broker_rejects_is_an_error(vhost_url: str) -> None:
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with publishing(vhost_url, **full) as (publisher, queue):
        await publisher.publish(_KEY, b"fits", properties())
        with pytest.raises(DeliveryError):
            await publisher.publish(_KEY, b"does not", properties())
        assert (await queue.get(no_ack=True)).body == b"fits"
        await publisher.publish(_KEY, b"fits again", properties())


async def test_a_missing_confirmation_is_a_timeout_and_a_late_one_confirms_nothing_else(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with publishing(vhost_url, behind=url, timeout_s=0.3) as (publisher, queue):
        await publisher.publish(_KEY, b"first", properties())
        relay.silence()
        with pytest.raises(TimeoutError):
            await publisher.publish(_KEY, b"unconfirmed", properties())
        relay.restore()
        with pytest.raises(PublishError):
            await publisher.publish("event.unrouted", b"", properties())
        await publisher.publish(_KEY, b"next", properties())
        bodies = [(await queue.get(no_ack=True)).body for _ in range(3)]
        assert bodies == [b"first", b"unconfirmed", b"next"]


async def test_a_lost_connection_fails_what_waits_and_the_next_one_publishes(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with publishing(vhost_url, behind=url) as (publisher, _):
        await publisher.publish(_KEY, b"before", properties())
        relay.silence()
        waiting = [
            asyncio.create_task(publisher.publish(_KEY, b"?", properties())) for _ in range(20)
        ]
        await relay.waiting.wait()
        relay.cut()
        relay.restore()
        lost = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(
            isinstance(each, (AMQPException, OSError, ChannelInvalidStateError)) for each in lost
        ), lost
        async with asyncio.timeout(20):
            while True:
                try:
                    await publisher.publish(_KEY, b"after", properties())
                    break
                except (AMQPException, OSError, ChannelInvalidStateError):
                    await asyncio.sleep(0.05)
        # The new channel counts its confirmations from one.
        with pytest.raises(PublishError):
            await publisher.publish("event.unrouted", b"", properties())
        await publisher.publish(_KEY, b"after", properties())


# Copies of one message at once, and events in batches.


async def test_each_copy_gets_the_outcome_of_its_own_queue(vhost_url: str) -> None:
    """A false confirmation would make a worker acknowledge a delivery whose copy is nowhere."""
    broker = RabbitBroker(vhost_url, default_channel=Channel(on_return_raises=True), logger=None)
    await broker.connect()
    await broker.start()
    publisher = WorkerPublisher(broker, "test", [SigningKey.from_seed(bytes(32))])
    copy = cast("Any", Message(b"{}", message_id="one"))
    async with await aio_pika.connect(vhost_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(retry_name(UPLOAD_QUEUE, 5), durable=True)
        try:
            for _ in range(20):
                outcomes = await asyncio.gather(
                    publisher.defer(copy, "missing", 5),
                    publisher.defer(copy, UPLOAD_QUEUE, 5),
                    return_exceptions=True,
                )
                assert [type(each) for each in outcomes] == [NotConfirmedError, type(None)]
        finally:
            await broker.stop()


async def test_events_that_end_together_are_fewer_messages_and_all_there(vhost_url: str) -> None:
    """At a real broker, whose confirmations take their time; batches may overtake each other."""
    broker = RabbitBroker(vhost_url, logger=None)
    key = SigningKey.from_seed(bytes(32))
    verifier = Verifier("test", [key.verify_key()])
    publisher = WorkerPublisher(broker, "test", [key])
    sent = [str(uuid.UUID(int=number, version=4)) for number in range(500)]
    async with await aio_pika.connect(vhost_url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
        queue = await channel.declare_queue("events", durable=True)
        await queue.bind(exchange, "upload.stored")
        await broker.connect()
        try:
            await asyncio.gather(
                *(
                    publisher.publish_event(
                        STORED.model_copy(update={"upload_id": upload_id, "publisher": "api"})
                    )
                    for upload_id in sent
                )
            )
        finally:
            await broker.stop()
        found, messages = list[str](), 0
        while (message := await queue.get(fail=False, no_ack=True)) is not None:
            messages += 1
            assert message.headers["keyturn-publisher"] == "api"
            signature = str(message.headers["keyturn-signature"])
            record = StreamRecord(0, message.body, signature, key.id)
            found += [request_id(event) for event in verifier.events(record)]
    assert sorted(found) == sent
    assert 1 + len(sent) // EVENT_BATCH_MAX <= messages <= 20
