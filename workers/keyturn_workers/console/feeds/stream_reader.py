"""Reads one stream for ever, from a place that depends on where it ends (SPEC 6.2, 16.2).

A stream that does not exist yet, may not be read, or is away is tried again. A reader that needs to
know when it has read all that was there at its start asks for the last offset first.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn.errors import EventsUnavailableError
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_stream import (
    Start,
    StreamRecord,
    follow,
    ignore_problem,
    last_offset,
)
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.pacing import Pacer

_log = logging.getLogger(__name__)

PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
SILENCE_S: Final = 3.0
"""A stream that delivers nothing for this long has nothing more before its end."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of a record: its time if it is signed, and how many were refused so far."""

    at: datetime | None
    refused: int


def handle_safely(
    handle: Callable[[StreamRecord], Handled], record: StreamRecord, refused: int
) -> Handled:
    """What became of a record; one that a bug of ours cannot take is passed over.

    Otherwise a single signed message would end the console at each of its starts.

    Args:
        handle: Takes the record.
        record: The record.
        refused: How many were refused before.
    """
    try:
        return handle(record)
    except Exception:  # noqa: BLE001  # see above
        _log.exception("passed over a message that cannot be taken, at offset %d", record.offset)
        return Handled(None, refused)


class StreamReader:
    """Reads one stream.

    Args:
        connection: A connection of its own: a message that cannot be decoded breaks it.
        stream: The stream's name.
        start: Where to begin, given the offset of the last message (None: it is empty).
        handle: Takes each record.
        state: Of the feed.
        pacer: Lets others have their turn.

    Attributes:
        offset: The offset that was read last; -1 before the first.
        target: The last offset at the start.
        attached: Is set once the stream could be read.
        caught_up: Is set once all was read that was there at the start.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        stream: str,
        start: Callable[[int | None], Start],
        handle: Callable[[StreamRecord], Handled],
        state: FeedState,
        *,
        pacer: Pacer | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._start = start
        self._handle = handle
        self._state = state
        self._pacer = pacer or Pacer()
        self._silence_s = silence_s
        self._read_at = 0.0
        self.offset = -1
        self.target: int | None = None
        self.attached = asyncio.Event()
        self.caught_up = asyncio.Event()

    async def run(self) -> None:
        """Read for ever."""
        attempt = 0
        while True:
            try:
                self.target = await last_offset(self._connection, self._stream)
                self._state.attached()
                self._read_at = asyncio.get_running_loop().time()
                self.attached.set()
                attempt = 0
                await self._read(self._start(self.target))
            except EventsUnavailableError as exc:
                self._state.failed(str(exc))
                await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
                attempt += 1

    async def _read(self, start: Start) -> None:
        handled = Handled(None, 0)
        following = follow(
            self._connection, start, self._stream, note_problem=self._state.note_problem
        )
        async with aclosing(following) as records:
            async for record in records:
                self.offset = record.offset
                handled = handle_safely(self._handle, record, handled.refused)
                self._state.seen(handled.at, handled.refused)
                self._read_at = asyncio.get_running_loop().time()
                await self._pacer.breathe()

    async def watch(self, interval_s: float = 1.0) -> None:
        """Note for ever whether it has caught up, and let the model have the newest times."""
        while True:
            await asyncio.sleep(interval_s)
            if not self.caught_up.is_set() and self._has_caught_up():
                self.caught_up.set()
                self._state.caught_up()
            self._state.publish()

    def _has_caught_up(self) -> bool:
        if not self.attached.is_set():
            return False
        if self.target is None or self.offset >= self.target:
            return True
        silence_s = asyncio.get_running_loop().time() - self._read_at
        return self._state.is_connected and silence_s > self._silence_s


async def read_until(
    connection: BrokerConnection,
    stream: str,
    start: Start,
    end: int,
    *,
    note_problem: Callable[[str | None], None] = ignore_problem,
) -> AsyncGenerator[StreamRecord, None]:
    """The records of a stream from `start` on, before the offset `end`.

    Args:
        connection: The broker.
        stream: The stream's name.
        start: Where to begin.
        end: The offset before which it ends.
        note_problem: As of `follow`.

    Raises:
        EventsUnavailableError: the stream cannot be read at the first attempt.
    """
    following = follow(connection, start, stream, note_problem=note_problem)
    async with aclosing(following) as records:
        async for record in records:
            if record.offset >= end:
                return
            yield record
            if record.offset + 1 >= end:
                return
