"""Frames leave in the order in which they were given, however full the way out is (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from workers.broker.gathered import Gathered

if TYPE_CHECKING:
    import aiormq
    from aiormq.abc import ChannelFrame

    Queue = asyncio.Queue[ChannelFrame]


def way_out(places: int) -> tuple[Gathered, Queue]:
    queue: Queue = asyncio.Queue(places)
    channel = SimpleNamespace(write_queue=queue, loop=asyncio.get_running_loop())
    return Gathered(cast("aiormq.Channel", channel)), queue


async def test_frames_of_one_turn_are_one_write() -> None:
    out, queue = way_out(10)
    for letter in (b"a", b"b", b"c"):
        out.add(letter)
    assert queue.empty()
    await asyncio.sleep(0)
    assert (queue.qsize(), queue.get_nowait().payload) == (1, b"abc")
    out.add(b"d")
    await asyncio.sleep(0)
    frame = queue.get_nowait()
    assert (frame.payload, frame.should_close, frame.drain_future) == (b"d", False, None)


async def test_what_comes_while_the_way_is_full_follows_in_order() -> None:
    out, queue = way_out(1)
    seen = b""
    for letter in b"abcdefgh":
        out.add(bytes([letter]))
        await asyncio.sleep(0)
    assert queue.full()
    async with asyncio.timeout(10):
        while len(seen) < 8:
            seen += (await queue.get()).payload
            out.add(b"")  # nothing is ever sent ahead of what waits
    assert seen == b"abcdefgh"
    out.add(b"i")
    async with asyncio.timeout(10):
        while not seen.endswith(b"i"):
            seen += (await queue.get()).payload
