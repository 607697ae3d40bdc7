"""Lets pages be served while many messages are folded: work in slices of a few milliseconds.

Reading a record and folding it never waits while records are at hand, so that without this the
event loop would be blocked for as long as a stream has records.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

SLICE_S: Final = 0.005


class Pacer:
    """Pauses after each slice of work.

    Args:
        share: The share of the time that the work may take; 1 for all that is left.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, share: float = 1.0, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._pauses_per_s = (1 - share) / share
        self._clock = clock
        self._began = clock()

    async def breathe(self) -> None:
        """To be called after each message: pauses if the slice is over."""
        spent_s = self._clock() - self._began
        if spent_s < SLICE_S:
            return
        await asyncio.sleep(self.pause_s(spent_s))
        self._began = self._clock()

    def pause_s(self, spent_s: float) -> float:
        """How long to pause after so much work; a wait for a message is no work."""
        return min(spent_s, 10 * SLICE_S) * self._pauses_per_s
