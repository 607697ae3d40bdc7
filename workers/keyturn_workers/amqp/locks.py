"""Locks that the broker holds: an exclusive queue belongs to one connection, and ends with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelLockedResource


@asynccontextmanager
async def locked(connection: AbstractConnection, name: str) -> AsyncIterator[bool]:
    """Hold a lock of the broker; gives False where another connection has it.

    It is an exclusive queue, so that it ends with its connection.
    """
    channel = await connection.channel()
    try:
        held = await channel.declare_queue(name, exclusive=True, durable=False)
    except ChannelLockedResource:
        yield False
        return
    try:
        yield True
    finally:
        if not channel.is_closed:
            await held.delete(if_unused=False, if_empty=False)
            await channel.close()
