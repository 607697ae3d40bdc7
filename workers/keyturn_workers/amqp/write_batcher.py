"""Frames of one channel, written together once a turn of the event loop (SPEC 6.2).

aiormq makes one write to the socket of each frame that it is given, and where it is asked to
wait for the socket, no other publish of the channel begins meanwhile. With many messages in
flight their frames come in bunches: here all of a turn are one write.
It must never change the order of frames, and never send one on a channel that the broker has
closed: that would cost the connection, and all that is in flight on it.
"""

import asyncio
from typing import Final
from weakref import ref

import aiormq
from aiormq.abc import ChannelFrame


class WriteBatcher:
    """The way out of one open channel, for frames whose order among themselves matters."""

    def __init__(self, channel: aiormq.Channel) -> None:
        self._queue: Final = channel.write_queue
        self._loop: Final = channel.loop
        # Not the channel itself, for whose sake this is kept.
        self._channel: Final = ref(channel)
        self._number: Final = channel.number
        self._open_channels: Final = channel.connection.channels
        self._pending: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    def add(self, frames: bytes) -> None:
        """Send whole frames at the end of this turn, in the order of the calls."""
        if not self._pending and self._writing is None:
            self._loop.call_soon(self._flush)
        self._pending.append(frames)

    def _flush(self) -> None:
        frame = self._taken()
        if not self._is_open():
            return
        try:
            self._queue.put_nowait(frame)
        except asyncio.QueueFull:
            self._writing = self._loop.create_task(self._write(frame))

    async def _write(self, frame: ChannelFrame) -> None:
        # What comes while this waits for a place follows in the same task: never before it.
        try:
            await self._queue.put(frame)
            while self._pending and self._is_open():
                await self._queue.put(self._taken())
        finally:
            self._pending.clear()
            self._writing = None

    def _is_open(self) -> bool:
        # The connection forgets a channel as it reads that the broker closed it, before the
        # channel itself knows. What is then pending comes again, or its publisher is told.
        return self._open_channels.get(self._number) is self._channel()

    def _taken(self) -> ChannelFrame:
        frames, self._pending = self._pending, []
        return ChannelFrame(payload=b"".join(frames), should_close=False)
