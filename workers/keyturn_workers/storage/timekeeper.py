"""Keeps what a process knows of the storage's clock from being forgotten (SPEC 8.4).

What answers said is believed for ten minutes, and a look proves only where it was known for two
leases before. A sweep worker that was idle for longer would prove nothing for two leases, just
when a rotation waits for its proof.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError

INTERVAL_S: Final = 240.0
"""Well below the ten minutes: one request may fail in between."""

_log = structlog.get_logger()


async def keep_clock_known(
    ask: Callable[[], Awaitable[None]], *, interval_s: float = INTERVAL_S
) -> None:
    """Ask for the storage's time, at once and then again and again, for ever.

    Args:
        ask: One request whose answer's `Date` the process takes in.
        interval_s: Seconds from one to the next.
    """
    while True:
        try:
            await ask()
        except (StorageUnavailableError, StorageAnswerError) as exc:
            _log.info("the storage's time was not learnt", problem=str(exc))
        await asyncio.sleep(interval_s)
