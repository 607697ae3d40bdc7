"""Reports that a page needs while it is looked at (SPEC 16.1).

A page shows what the console knows, and never waits for a control worker. What is missing is asked
for in the background; the page refreshes itself when it arrives.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from starlette.requests import Request

from keyturn.errors import CodedError, PublisherError

_AGAIN_AFTER_S: Final = 15.0
_MAX_KEPT: Final = 1000
MAX_UNDER_WAY: Final = 50
"""Reports at once. A page that needs another one asks at its next refresh."""
_log: Final = logging.getLogger(__name__)


class Reports:
    """Asks once for each report, and not again for a while.

    Args:
        again_after_s: Seconds until the same report is asked for again.
        clock: Seconds that pass.
    """

    def __init__(
        self,
        *,
        again_after_s: float = _AGAIN_AFTER_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._again_after_s = again_after_s
        self._clock = clock
        self._asked: dict[tuple[str, ...], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, name: tuple[str, ...], ask: Callable[[], Awaitable[object]]) -> None:
        """Ask in the background, unless this was asked for lately, or too much is asked for."""
        # An address can name any sweep, so a person could have any number of them asked for.
        if len(self._tasks) >= MAX_UNDER_WAY:
            return
        now = self._clock()
        asked_at = self._asked.get(name)
        if asked_at is not None and now - asked_at < self._again_after_s:
            return
        self._asked.pop(name, None)
        self._asked[name] = now
        while len(self._asked) > _MAX_KEPT:
            del self._asked[next(iter(self._asked))]
        task = asyncio.create_task(self._ask(ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            await ask()
        except (CodedError, PublisherError) as exc:
            # The page of queues shows whether control workers answer.
            _log.debug("a report was not read: %s", exc)

    async def settled(self) -> None:
        """Wait until nothing is being asked for."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def reports_of(request: Request) -> Reports:
    """The reports that the application's pages ask for."""
    reports: Reports = request.app.state.reports
    return reports
