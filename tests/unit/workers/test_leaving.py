"""What a worker's block leaves running is ended with it, the client library's calling too."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from workers.runtime import _leaving_nothing_behind


async def test_a_connection_that_is_just_being_made_again_ends() -> None:
    """aio-pika takes a cancellation in the midst of an attempt for one more that failed."""
    called = asyncio.Event()
    before = asyncio.all_tasks()

    def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        kept.append(writer)

    kept: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with _leaving_nothing_behind():
        url = f"amqp://guest:guest@127.0.0.1:{port}/?reconnect_interval=1"
        connecting = asyncio.create_task(aio_pika.connect_robust(url))
        await asyncio.wait_for(called.wait(), 10)
    assert connecting.cancelled()
    assert asyncio.all_tasks() == before
    for writer in kept:
        writer.close()
    silent.close()


async def test_what_ran_before_runs_on() -> None:
    """And what the block raised is raised."""
    forever = asyncio.Event()
    outside = asyncio.create_task(forever.wait())
    inside: list[asyncio.Task[bool]] = []

    async def fail() -> None:
        async with _leaving_nothing_behind():
            inside.append(asyncio.create_task(forever.wait()))
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await fail()
    assert inside[0].cancelled()
    assert not outside.done()
    forever.set()
    await outside
