"""Events on a channel of their own: in order, confirmed each, and never counted wrongly (SPEC 6.2).

The announcer uses what aiormq shows of a channel. Each test here fails where a release of
aiormq counts, confirms, returns or closes in another way.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from aio_pika.exceptions import AMQPException, DeliveryError, PublishError
from aiormq.exceptions import ChannelInvalidStateError
from faststream.rabbit import Channel, RabbitBroker
from pamqp import commands

from keyturn_workers.amqp.confirmed_publisher import ConfirmedPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractQueue

    from tests.integration.publisher.side import Network

_EXCHANGE = "announced"
_KEY = "event.told"


@asynccontextmanager
async def announcing(
    url: str, *, behind: str = "", timeout_s: float = 20, **arguments: Any
) -> AsyncIterator[tuple[ConfirmedPublisher, AbstractQueue]]:
    """An announcer at `behind`, or `url`, and the queue behind its exchange."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(_EXCHANGE, "topic", durable=True)
        queue = await channel.declare_queue("told", durable=True, arguments=arguments)
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


def said(number: int = 0) -> commands.Basic.Properties:
    return commands.Basic.Properties(
        content_type="application/json",
        headers={"keyturn-signature": f"s{number}"},
        delivery_mode=2,
        correlation_id=f"c{number}",
    )


async def test_many_at_once_stand_in_order_with_all_that_was_said(vhost_url: str) -> None:
    async with announcing(vhost_url) as (announcer, queue):
        bodies = [b"x" * (number * 40) for number in range(200)]
        told = (announcer.publish(_KEY, body, said(n)) for n, body in enumerate(bodies))
        await asyncio.gather(*told)
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
async def test_a_body_of_any_number_of_frames_stands_as_it_was(
    vhost_url: str, size_bytes: int
) -> None:
    body = bytes(size_bytes - 1) + b"." if size_bytes else b""
    async with announcing(vhost_url) as (announcer, queue):
        await announcer.publish(_KEY, body, said())
        assert (await queue.get(no_ack=True)).body == body


async def test_what_no_queue_takes_is_an_error_for_it_alone(vhost_url: str) -> None:
    async with announcing(vhost_url) as (announcer, queue):
        keys = [_KEY, "event.unheard", _KEY, "event.unheard", _KEY]
        told = await asyncio.gather(
            *(announcer.publish(key, key.encode(), said()) for key in keys), return_exceptions=True
        )
        assert [type(each) for each in told] == [
            type(None),
            PublishError,
            type(None),
            PublishError,
            type(None),
        ]
        await announcer.publish(_KEY, b"after", said())
        assert [(await queue.get(no_ack=True)).body for _ in range(4)] == [
            *([_KEY.encode()] * 3),
            b"after",
        ]


async def test_what_the_broker_refuses_is_an_error(vhost_url: str) -> None:
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with announcing(vhost_url, **full) as (announcer, queue):
        await announcer.publish(_KEY, b"fits", said())
        with pytest.raises(DeliveryError):
            await announcer.publish(_KEY, b"does not", said())
        assert (await queue.get(no_ack=True)).body == b"fits"
        await announcer.publish(_KEY, b"fits again", said())


async def test_no_confirmation_is_an_error_in_time_and_a_late_one_belongs_to_nobody(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with announcing(vhost_url, behind=url, timeout_s=0.3) as (announcer, queue):
        await announcer.publish(_KEY, b"first", said())
        relay.silence()
        with pytest.raises(TimeoutError):
            await announcer.publish(_KEY, b"unheard of", said())
        relay.restore()
        with pytest.raises(PublishError):
            await announcer.publish("event.unheard", b"", said())
        await announcer.publish(_KEY, b"next", said())
        stood = [(await queue.get(no_ack=True)).body for _ in range(3)]
        assert stood == [b"first", b"unheard of", b"next"]


async def test_a_lost_connection_fails_what_waits_and_another_one_serves(
    vhost_url: str, network: tuple[Network, str]
) -> None:
    relay, url = network
    async with announcing(vhost_url, behind=url) as (announcer, _):
        await announcer.publish(_KEY, b"before", said())
        relay.silence()
        waiting = [asyncio.create_task(announcer.publish(_KEY, b"?", said())) for _ in range(20)]
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
                    await announcer.publish(_KEY, b"after", said())
                    break
                except (AMQPException, OSError, ChannelInvalidStateError):
                    await asyncio.sleep(0.05)
        # Counting began anew with the new channel.
        with pytest.raises(PublishError):
            await announcer.publish("event.unheard", b"", said())
        await announcer.publish(_KEY, b"after", said())
