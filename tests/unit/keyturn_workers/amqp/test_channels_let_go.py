"""What is kept of a channel that deliveries came by: nothing, once it is lost (SPEC 6.2).

A worker that lives long loses many connections, and aiormq never clears a lost one's channels.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiormq

from keyturn_workers.amqp import consume_directly

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from faststream.rabbit.subscriber import RabbitSubscriber

    from keyturn_workers.amqp.direct import Delivered

_TAG = "tag"


@dataclass
class FakeSubscriber:
    """What of FastStream's is used here; one that does not run hands nothing on."""

    running: bool = False
    consume: Callable[[Any], Awaitable[None]] | None = None


def _channel() -> aiormq.Channel:
    """A channel of a connection of its own, without a broker."""
    channel = aiormq.Channel.__new__(aiormq.Channel)
    channel.loop = asyncio.get_running_loop()
    channel.consumers = {_TAG: _aio_pikas}
    channel.number = 1
    channel.write_queue = asyncio.Queue()
    channel.connection = cast("Any", SimpleNamespace(channels={1: channel}))
    return channel


async def _aio_pikas(message: object) -> None:
    raise AssertionError(message)


async def _never(message: Delivered) -> None:
    raise AssertionError(message)


async def test_no_channel_outlives_its_connection() -> None:
    subscriber = FakeSubscriber()
    consume_directly(cast("RabbitSubscriber", subscriber), _never)
    lost: list[weakref.ref[aiormq.Channel]] = []
    for _ in range(5):
        channel = _channel()
        assert subscriber.consume is not None
        for _ in range(2):  # two came before the first was looked at
            await subscriber.consume(SimpleNamespace(channel=channel, consumer_tag=_TAG))
        assert channel.consumers[_TAG] is not _aio_pikas
        lost.append(weakref.ref(channel))
        del channel
    gc.collect()
    assert [channel() for channel in lost] == [None] * 5


async def test_one_channel_has_one_way_out() -> None:
    """A second one could send an acknowledgement before what was given to the first."""
    subscriber = FakeSubscriber()
    consume_directly(cast("RabbitSubscriber", subscriber), _never)
    channel = _channel()
    assert subscriber.consume is not None
    await subscriber.consume(SimpleNamespace(channel=channel, consumer_tag=_TAG))
    first = channel.consumers[_TAG]
    await subscriber.consume(SimpleNamespace(channel=channel, consumer_tag=_TAG))
    assert channel.consumers[_TAG] is first
