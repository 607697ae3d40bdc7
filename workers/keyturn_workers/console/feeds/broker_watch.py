"""Whether the broker can be reached, for all feeds at once (SPEC 16.2).

A lost connection is noticed within a second or two: the connection that watches is one of its own,
on which nothing is published and nothing is delivered.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from keyturn.errors import PublisherError
from keyturn.publisher.connection import BrokerConnection
from keyturn_workers.console.feeds.feed_state import FeedState

INTERVAL_S: Final = 1.0


class BrokerWatch:
    """Connects again and again, and lets the feeds know.

    Args:
        connection: A connection of its own.
        states: The feeds that need the broker.
        interval_s: Seconds between looks.

    Attributes:
        is_up: Is set while the broker can be reached.
        up_at: When it was first reached since the last loss, by the event loop's clock.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        states: Iterable[FeedState],
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._connection = connection
        self._states = tuple(states)
        self._interval_s = interval_s
        self.is_up = asyncio.Event()
        self.up_at = 0.0

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            try:
                await self._connection.connect()
            except PublisherError as exc:
                self._note(str(exc))
            else:
                self._note(None)
            await asyncio.sleep(self._interval_s)

    def _note(self, problem: str | None) -> None:
        if problem is not None:
            self.is_up.clear()
        elif not self.is_up.is_set():
            self.up_at = asyncio.get_running_loop().time()
            self.is_up.set()
        for state in self._states:
            state.broker(problem)
