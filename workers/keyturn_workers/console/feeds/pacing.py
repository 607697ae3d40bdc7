"""Lets pages be served while many messages are folded: work in slices of a few milliseconds.

Reading a record and folding it never waits while records are at hand, so that without this the
event loop would be blocked for as long as a stream has records.
"""

import asyncio
import time
from typing import Final

SLICE_S: Final = 0.005


class Pacer:
    """Pauses after each slice of work.

    Args:
        share: The share of the time that the work may take; 1 for all that is left.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._pause = (1 - share) / share
        self._began = time.perf_counter()

    async def breathe(self) -> None:
        """To be called after each message: pauses if the slice is over."""
        spent = time.perf_counter() - self._began
        if spent < SLICE_S:
            return
        await asyncio.sleep(min(spent, 10 * SLICE_S) * self._pause)
        self._began = time.perf_counter()

    def waited(self) -> None:
        """To be called after a wait for a message: the slice begins anew."""
        self._began = time.perf_counter()
