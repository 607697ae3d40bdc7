"""Locks on the broker: an exclusive queue belongs to one connection, and ends with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelLockedResource


@asynccontextmanager
async def broker_lock(connection: AbstractConnection, name: str) -> AsyncIterator[bool]:
    """Hold a lock while the block runs; yields False if another connection holds it."""
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
