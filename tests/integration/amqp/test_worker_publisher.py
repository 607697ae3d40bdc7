"""Copies of one message at once, where one of their queues is missing (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aio_pika
from aio_pika import Message
from faststream.rabbit import Channel, RabbitBroker

from keyturn.crypto import SigningKey
from keyturn.topology import UPLOAD_QUEUE, retry_name
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.amqp.publisher import WorkerPublisher


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
