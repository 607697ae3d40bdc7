"""Walks through the pages of a census, one after the other (SPEC 16.1).

It can be cancelled, and goes on where it stopped: also after a restart of the console, since the
model knows the pages from the console's own stream. Control workers that do not answer are asked
again after a pause.
"""

import asyncio
import logging
from datetime import timedelta
from typing import Final

from keyturn.errors import CodedError, PublisherError
from keyturn_workers.console.feeds.requester import StatusArguments, StatusRequester
from keyturn_workers.console.model import Model

_log = logging.getLogger(__name__)

KEYS_PER_PAGE: Final = 1000
RESUMABLE: Final = timedelta(days=1)
"""A census that stopped longer ago begins anew: it would say little about now."""
_PAUSE_S: Final = 5.0


class CensusDriver:
    """Reads one census at a time.

    Args:
        requester: Requests the pages.
        model: Takes them.
        pause_s: Seconds before a page that could not be read is asked for again.
    """

    def __init__(
        self, requester: StatusRequester, model: Model, *, pause_s: float = _PAUSE_S
    ) -> None:
        self._requester = requester
        self._model = model
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a census is under way."""
        return self._task is not None and not self._task.done()

    def start(self, actor: str | None) -> None:
        """Begin a census, or go on with the one that stopped; nothing if one is under way."""
        if self.is_running:
            return
        self._model.set_census_running(is_running=True)
        self._task = asyncio.create_task(self._walk(actor))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._model.set_census_running(is_running=False)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the census ended: %s", error)

    def cancel(self) -> None:
        """Stop; the pages that were read stay."""
        if self._task is not None:
            self._task.cancel()

    def resume_point(self) -> str | None:
        """Where a census that stopped goes on; None if one begins anew."""
        census = self._model.census()
        if census.ended_at is not None or census.as_of is None or census.is_truncated:
            return None
        return census.next if self._model.now() - census.as_of < RESUMABLE else None

    async def _walk(self, actor: str | None) -> None:
        after = self.resume_point()
        while True:
            arguments = StatusArguments("objects", after=after, limit=KEYS_PER_PAGE)
            try:
                report = await self._requester.request(arguments, actor=actor)
            except CodedError:
                raise
            except PublisherError:
                await asyncio.sleep(max(self._pause_s, self._requester.paused_s))
                continue
            if report.code is not None:  # the storage is away
                await asyncio.sleep(self._pause_s)
                continue
            if report.next is None:
                return
            after = report.next

    async def close(self) -> None:
        """Stop, and wait for it."""
        self.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
