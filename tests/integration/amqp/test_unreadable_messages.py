"""AMQP 1.0 messages that RabbitMQ cannot deliver to a 0-9-1 client."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest
from aio_pika.exceptions import AMQPConnectionError

from keyturn_workers.reports.dead_letters.amqp1 import serves_amqp1
from tools.harness.amqp1 import HARMLESS, POISONS, open_sender

pytestmark = pytest.mark.servers
_QUEUE = "q"


async def test_whether_a_port_serves_amqp_1_0_is_known_from_its_answer(vhost_url: str) -> None:
    assert await serves_amqp1(vhost_url)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.close()

    async def speak_0_9_1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"AMQP\x00\x00\x09\x01")
        writer.close()

    for respond in (hang_up, speak_0_9_1):
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert not await serves_amqp1(f"amqp://u:p@127.0.0.1:{port}/")


async def _send(url: str, name: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    async with open_sender(url, f"/queues/{_QUEUE}") as sender:
        await sender.send(b"body", (POISONS | HARMLESS)[name])


@pytest.mark.parametrize("name", POISONS)
async def test_a_message_that_rabbitmq_cannot_convert_costs_its_reader_the_connection(
    vhost_url: str, name: str
) -> None:
    await _send(vhost_url, name)
    for _ in range(2):
        async with await aio_pika.connect(vhost_url) as connection:
            queue = await (await connection.channel()).get_queue(_QUEUE, ensure=False)
            with pytest.raises(AMQPConnectionError, match="INTERNAL_ERROR"):
                async with asyncio.timeout(30):
                    await queue.get()


@pytest.mark.parametrize("name", HARMLESS)
async def test_a_message_that_rabbitmq_converts_is_delivered(vhost_url: str, name: str) -> None:
    await _send(vhost_url, name)
    async with await aio_pika.connect(vhost_url) as connection:
        queue = await (await connection.channel()).get_queue(_QUEUE, ensure=False)
        message = await queue.get()
        assert message is not None
        assert message.body == b"body"
