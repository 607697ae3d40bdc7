"""Keep the storage's clock known in an idle process (SPEC 8.4).

A response is a reference for ten minutes, and an inspection proves something only if the clock
was known for two leases before. A sweep worker that was idle for longer could prove nothing for
two leases, exactly when a rotation waits for its proof.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError

INTERVAL_S: Final = 240.0
"""Well below ten minutes: one request may fail in between."""

_log = structlog.get_logger()


async def keep_clock_known(
    observe: Callable[[], Awaitable[None]], *, interval_s: float = INTERVAL_S
) -> None:
    """Observe the storage's time now, and then at each interval, until cancelled.

    Args:
        observe: Makes one request and observes the `Date` of its response.
        interval_s: The time between two requests.
    """
    while True:
        try:
            await observe()
        except (StorageUnavailableError, StorageAnswerError) as exc:
            _log.info("storage time not observed", problem=str(exc))
        await asyncio.sleep(interval_s)
