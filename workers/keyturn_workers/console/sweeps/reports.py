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
from keyturn_workers.console.model.rows import SweepView
from keyturn_workers.console.web.context import context_of

_AGAIN_AFTER_S: Final = 15.0
_MAX_KEPT: Final = 1000
_log: Final = logging.getLogger(__name__)


class Reports:
    """Asks once for each report, and not again for a while.

    Args:
        again_after_s: Seconds until the same report is asked for again.
    """

    def __init__(self, *, again_after_s: float = _AGAIN_AFTER_S) -> None:
        self._again_after_s = again_after_s
        self._asked: dict[tuple[str, ...], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, name: tuple[str, ...], ask: Callable[[], Awaitable[object]]) -> None:
        """Ask in the background, unless this was asked for lately."""
        now = monotonic()
        if now - self._asked.get(name, -self._again_after_s) < self._again_after_s:
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
            # The feeds show on each page whether control workers answer.
            _log.debug("a report was not read: %s", exc)


def want_sweep(request: Request, project: str, sweep_id: str, view: SweepView | None) -> None:
    """Ask for what the page of a sweep lacks: its record, its failures, its evidence."""
    reports, feeds = _reports_of(request), context_of(request).feeds
    if view is None or view.row.dry_run is None or view.row.is_running:
        reports.want(("sweep", project, sweep_id), lambda: feeds.request_sweep(project, sweep_id))
    if view is None:
        return
    row = view.row
    has_failures = row.counts is not None and row.counts.failed > 0
    if has_failures and not (view.failures_complete or view.failures_truncated):
        reports.want(
            ("failures", project, sweep_id), lambda: feeds.request_failures(project, sweep_id)
        )
    held = context_of(request).model.evidence(project).files
    if row.evidence is not None and not any(file.digest == row.evidence for file in held):
        reports.want(("evidence", project), lambda: feeds.request_evidence(project))


def _reports_of(request: Request) -> Reports:
    state = request.app.state
    if not hasattr(state, "sweep_reports"):
        state.sweep_reports = Reports()
    reports: Reports = state.sweep_reports
    return reports
