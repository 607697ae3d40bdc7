"""Reads a stream from its beginning, even right after the broker was killed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

_PREFETCH = 100
_PAUSE_S = 0.2


async def consume_stream(
    connection: AbstractConnection,
    name: str,
    take: Callable[[AbstractIncomingMessage], Awaitable[None]],
) -> None:
    """Consume it once it is available: a restarted broker accepts connections before that."""
    while True:
        # One channel each: the broker closes the channel on an error.
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_PREFETCH)
        try:
            stream = await channel.declare_queue(name, passive=True)
            await stream.consume(take, arguments={"x-stream-offset": "first"})
        except (ChannelNotFoundEntity, ChannelPreconditionFailed):
            # The stream's leader is down, or no replica runs yet.
            await asyncio.sleep(_PAUSE_S)
        else:
            return
