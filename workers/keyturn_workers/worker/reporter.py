"""Reports what this process does on the stream `keyturn.workers` (SPEC 16.2).

Every few seconds, and once more at its end. A report that cannot be published is lost, and disturbs
nothing: the next one says the same, and more. Consoles see from the interval that reports are
missing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

import structlog

from keyturn.identifiers import format_time
from keyturn.messages import WorkerReported
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.audit import AuditProcess
from keyturn_workers.background import raise_if_canceled
from keyturn_workers.settings import WorkerSettings
from keyturn_workers.worker.metrics import WorkerMetrics

STOP_TIMEOUT_S: Final = 2.0
"""How long the end of a process waits for its last report."""

Publish = Callable[[WorkerReported], Awaitable[None]]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What reports are made of.

    Attributes:
        process: Who this process is, as in the audit trail.
        roles: What it does.
        settings: How it was started.
        metrics: What it has done.
        is_clock_known: Whether it knows the storage's clock well enough to prove (SPEC 8.4).
        started_at: When it began.
    """

    process: AuditProcess
    roles: frozenset[str]
    settings: WorkerSettings
    metrics: WorkerMetrics
    is_clock_known: Callable[[], bool]
    started_at: datetime

    def report(self, *, is_stopping: bool) -> WorkerReported:
        """The report of this moment."""
        settings = self.settings
        return WorkerReported(
            at=format_time(datetime.now(UTC)),
            worker_id=self.process.id,
            roles=tuple(sorted(self.roles)),
            host=self.process.host,
            version=version("keyturn-workers"),
            started_at=format_time(self.started_at),
            interval_s=settings.worker_report_interval_s,
            is_stopping=is_stopping,
            lease_s=settings.lease_s,
            is_clock_known=self.is_clock_known(),
            active_master_key=settings.active_master_key,
            master_keys=tuple(settings.master_keys),
            event_keys=tuple(key.id for key in settings.event_key),
            intake_keys=tuple(settings.intake_keys),
            queues=self.metrics.report_queues(),
        )


class WorkerReporter:
    """Publishes the reports of one process, from `begin` to `stop`."""

    def __init__(self, facts: WorkerFacts, publish: Publish) -> None:
        self._facts = facts
        self._publish = publish
        self._begun = asyncio.Event()
        self._is_stopping = False
        self._is_failing = False

    def begin(self) -> None:
        """The process consumes: let `run` report."""
        self._begun.set()

    async def run(self) -> None:
        """Report until the last report, which `stop` publishes."""
        await self._begun.wait()
        while not self._is_stopping:
            await self._report(is_stopping=False)
            raise_if_canceled()
            await asyncio.sleep(self._facts.settings.worker_report_interval_s)

    async def stop(self) -> None:
        """Publish the last report, if the broker takes it at once."""
        if not self._begun.is_set():
            return
        # Another report after the last one would say that the process goes on.
        self._is_stopping = True
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._report(is_stopping=True)
        except TimeoutError:
            _log.warning("last worker report not published", problem="TimeoutError")

    async def _report(self, *, is_stopping: bool) -> None:
        try:
            await self._publish(self._facts.report(is_stopping=is_stopping))
        except NotConfirmedError as exc:
            if not self._is_failing:
                _log.warning("worker report not published", problem=str(exc))
            self._is_failing = True
        else:
            self._is_failing = False
