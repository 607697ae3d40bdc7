"""Lets what is more urgent go first while a report is read (SPEC 16.1).

A page may take a thousand requests to the storage. A rotation that comes meanwhile shares the
process, its CPU and the storage with them. So a report is read in small batches, and between two
of them waits until the process has nothing else in hand, though never for long.
"""

import asyncio
from collections.abc import Callable
from typing import Final

BATCH: Final = 8
"""Reads of one report at once."""
_MAX_WAIT_S: Final = 0.25
_LOOK_S: Final = 0.005


class Pace:
    """Waits between the batches of a report.

    Args:
        others: How many other requests the process has in hand.
        max_wait_s: The longest wait for them, before each batch.
    """

    def __init__(self, others: Callable[[], int], max_wait_s: float = _MAX_WAIT_S) -> None:
        self._others = others
        self._max_wait_s = max_wait_s

    async def next_batch(self) -> None:
        """Return once the next batch may begin."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._max_wait_s
        while self._others() > 0 and loop.time() < until:  # noqa: ASYNC110  # a count has no event
            await asyncio.sleep(_LOOK_S)
