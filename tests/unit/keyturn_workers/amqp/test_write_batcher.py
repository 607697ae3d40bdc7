"""Frames leave in the order in which they were given, however full the way out is (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from keyturn_workers.amqp.write_batcher import WriteBatcher

if TYPE_CHECKING:
    import aiormq
    from aiormq.abc import ChannelFrame

    Queue = asyncio.Queue[ChannelFrame]


@dataclass(eq=False)
class FakeConnection:
    """The channels that the broker has open, by number."""

    channels: dict[int, object] = field(default_factory=dict)


@dataclass(eq=False)
class FakeChannel:
    """What of a channel is used here."""

    write_queue: Queue
    connection: FakeConnection = field(default_factory=FakeConnection)
    number: int = 7
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def __post_init__(self) -> None:
        self.connection.channels[self.number] = self

    def way_out(self) -> WriteBatcher:
        return WriteBatcher(cast("aiormq.Channel", self))


async def test_frames_of_one_turn_are_one_write() -> None:
    channel = FakeChannel(asyncio.Queue(10))
    out, queue = channel.way_out(), channel.write_queue
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
    channel = FakeChannel(asyncio.Queue(1))
    out, queue = channel.way_out(), channel.write_queue
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


async def test_nothing_is_sent_on_a_channel_that_was_closed() -> None:
    channel = FakeChannel(asyncio.Queue(1))
    out, queue = channel.way_out(), channel.write_queue
    out.add(b"a")
    channel.connection.channels.clear()
    await asyncio.sleep(0)
    assert queue.empty()
    # Another one may have taken its number.
    channel.connection.channels[channel.number] = object()
    out.add(b"b")
    await asyncio.sleep(0)
    assert queue.empty()


async def test_what_waits_for_its_place_is_not_sent_once_the_channel_was_closed() -> None:
    channel = FakeChannel(asyncio.Queue(1))
    out, queue = channel.way_out(), channel.write_queue
    for letter in (b"a", b"b", b"c"):
        out.add(letter)
        await asyncio.sleep(0)
    channel.connection.channels.clear()
    assert [(await queue.get()).payload for _ in range(2)] == [b"a", b"b"]
    await asyncio.sleep(0)
    assert queue.empty()
