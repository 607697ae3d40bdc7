"""Reading a stream from its beginning, also on a broker that was killed a moment ago."""

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
    """Consume it once it is up: a killed broker takes connections before its streams."""
    while True:
        # A channel each: the broker closes the channel on an error.
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_PREFETCH)
        try:
            stream = await channel.declare_queue(name, passive=True)
            await stream.consume(take, arguments={"x-stream-offset": "first"})
        except (ChannelNotFoundEntity, ChannelPreconditionFailed):
            # Its home is down, or it has no running replica yet.
            await asyncio.sleep(_PAUSE_S)
        else:
            return
