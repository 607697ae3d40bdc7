"""Copies of one message at once, where one of their queues is missing (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

import aio_pika
from aio_pika import Message
from faststream.rabbit import Channel, RabbitBroker

from keyturn.crypto import SigningKey
from keyturn.messages import EVENT_BATCH_MAX, request_id
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn.topology import EXCHANGE, UPLOAD_QUEUE, retry_name
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.amqp.publisher import WorkerPublisher
from tests.unit.keyturn_workers.amqp.deliveries import STORED


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
    """At a real broker, whose confirmations take their time; in the order of their ends."""
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
    assert found == sent
    assert 1 + len(sent) // EVENT_BATCH_MAX <= messages <= 20
