"""Events into the model: live ones first, then those of the past (SPEC 6.7, 16.2).

The live reader begins at the last event that the stream holds. A second reader then goes through
the last hour, and after that through the rest of the history, up to where the other began.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final

from keyturn.errors import EventsUnavailableError
from keyturn.identifiers import parse_time
from keyturn.messages import Event
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn.topology import EVENTS_STREAM
from keyturn_workers.console.feeds.broker_watch import BrokerWatch
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.pacing import Pacer
from keyturn_workers.console.feeds.stream_reader import (
    PAUSES_S,
    Handled,
    StreamReader,
    handle_safely,
    read_until,
)
from keyturn_workers.console.model import Model

FIRST_PART: Final = timedelta(hours=1)
SHARE: Final = 0.5
"""The share of the process's time that history may take."""
SILENCE_S: Final = 15.0
"""After this long without a record, while the broker is up, a part of the history is over."""
_CLOCK_SKEW: Final = timedelta(minutes=5)


class EventFolder:
    """Verifies the records of `keyturn.events` and folds them.

    Args:
        verifier: Checks signatures.
        model: Takes the events.
        noticed: Is called with each event that was just published.
        is_live: Whether it reads each record once, in order, so that a lower offset is that of a
            stream that was declared anew. The history is read in parts, and again after a loss.
    """

    def __init__(
        self,
        verifier: Verifier,
        model: Model,
        noticed: Callable[[Event], None] | None = None,
        *,
        is_live: bool = True,
    ) -> None:
        self._verifier = verifier
        self._model = model
        self._noticed = noticed
        self._is_live = is_live
        self._last = -1
        self.newest_at: datetime | None = None

    def __call__(self, record: StreamRecord) -> Handled:
        """Fold one record."""
        if self._is_live and record.offset < self._last:  # the stream was declared anew
            self._model.restart_events()
        self._last = record.offset
        event = next(iter(self._verifier.events(record)), None)
        if event is None:
            self._model.pass_event(record.offset)
            return Handled(None, self._verifier.refused)
        self._model.apply_event(event, record.offset)
        if self._noticed is not None:
            self._noticed(event)
        self.newest_at = parse_time(event.at)
        return Handled(self.newest_at, self._verifier.refused)


class HistoryReader:
    """Reads what was published before the live reader began.

    Args:
        connection: A connection of its own.
        live: The live reader.
        fold: Folds the records.
        state: Of the feed.
        broker: Whether the broker can be reached.
        length: How far back to read.
        now: The clock.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        live: StreamReader,
        fold: EventFolder,
        state: FeedState,
        broker: BrokerWatch,
        *,
        length: timedelta,
        now: Callable[[], datetime],
        silence_s: float = SILENCE_S,
    ) -> None:
        self._connection = connection
        self._live = live
        self._fold = fold
        self._state = state
        self._broker = broker
        self._length = length
        self._now = now
        self._silence_s = silence_s
        self._pacer = Pacer(SHARE)
        self._read_at = 0.0
        self._first: int | None = None

    async def run(self, newest_at: Callable[[], datetime | None]) -> None:
        """Read all of it, once.

        Args:
            newest_at: When the last event before the start was published; None if unknown.
        """
        await self._live.attached.wait()
        now, end = self._now(), self._live.target
        self._state.attached()
        parts = [FIRST_PART, self._length] if self._length > FIRST_PART else [self._length]
        for length in parts:
            if end is None or not length:
                break
            self._first = None
            newest = newest_at()
            if newest is None or newest > now - length - _CLOCK_SKEW:
                await self._read_part(now - length, end)
            end = end if self._first is None else self._first
            self._state.reached(now - length, None)
        self._state.reached(now - self._length, 1.0)
        self._state.caught_up()

    async def _read_part(self, start: datetime, end: int) -> None:
        attempt = 0
        while True:
            reading = asyncio.create_task(self._consume(start, end))
            try:
                await self._end_of(reading)
            except EventsUnavailableError as exc:
                self._state.failed(str(exc))
                await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
                attempt += 1
                continue
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            return

    async def _end_of(self, reading: "asyncio.Task[None]") -> None:
        """Wait until it has read all, or nothing more comes."""
        loop = asyncio.get_running_loop()
        self._read_at = loop.time()
        while not reading.done():
            await asyncio.wait({reading}, timeout=min(1.0, self._silence_s))
            quiet_since = max(self._read_at, self._broker.up_at)
            if self._broker.is_up.is_set() and loop.time() - quiet_since > self._silence_s:
                return
        reading.result()

    async def _consume(self, start: datetime, end: int) -> None:
        handled = Handled(None, 0)
        reading = read_until(
            self._connection, EVENTS_STREAM, start, end, note_problem=self._state.note_problem
        )
        async with aclosing(reading) as records:
            async for record in records:
                if self._first is None:
                    self._first = record.offset
                    self._state.attached()
                handled = handle_safely(self._fold, record, handled.refused)
                self._state.seen(handled.at, handled.refused)
                self._read_at = asyncio.get_running_loop().time()
                await self._pacer.breathe()
                self._show(record.offset, end)

    def _show(self, offset: int, end: int) -> None:
        first = self._first
        if first is None or offset % _SHOWN_EVERY:
            return
        progress = (offset - first + 1) / max(1, end - first)
        self._state.reached(self._state.behind, min(1.0, progress))


_SHOWN_EVERY: Final = 512
