"""Events that the broker does not confirm for a while (SPEC 6.2).

A full queue is bound to every event, and rejects what is published to it. The streams take these
events all the same: an event that is not confirmed may have arrived, and is published again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn import topology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractChannel

    from tools.harness.deployment import Deployment

_FULL: dict[str, str | int] = {"x-max-length": 0, "x-overflow": "reject-publish"}
_QUEUE = "chaos.refuses-events"
_PAUSE_S = 0.5


async def refuse_events(deployment: Deployment, seconds: float) -> None:
    """Let no event be confirmed for so long."""
    try:
        await _until_done(deployment, _bind)
        await asyncio.sleep(seconds)
    finally:
        await _until_done(deployment, _delete)


async def _bind(channel: AbstractChannel) -> None:
    queue = await channel.declare_queue(_QUEUE, durable=True, arguments=dict(_FULL))
    for event in topology.EVENTS:
        await queue.bind(topology.EXCHANGE, event)


async def _delete(channel: AbstractChannel) -> None:
    await channel.queue_delete(_QUEUE)


async def _until_done(
    deployment: Deployment, act: Callable[[AbstractChannel], Awaitable[None]]
) -> None:
    """Do it as soon as the broker is there."""
    while True:
        try:
            async with await aio_pika.connect(deployment.amqp_url, timeout=5) as connection:
                await act(await connection.channel())
        except (AMQPException, OSError, TimeoutError, *CONNECTION_EXCEPTIONS):
            await asyncio.sleep(_PAUSE_S)
        else:
            return
