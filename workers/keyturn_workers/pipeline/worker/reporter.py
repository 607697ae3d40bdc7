"""Publish reports of this process on the stream `keyturn.workers` (SPEC 16.2).

A report is published every few seconds, and once more at the end. One that cannot be published is
lost, which does no harm: the next one says the same and more. Consoles see from the interval that
reports are missing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

import structlog

from keyturn.identifiers import format_time
from keyturn.messages.worker_reports import WorkerReported
from keyturn_workers.keys.audit.trail import AuditProcess
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.process.background import raise_if_canceled
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings

STOP_TIMEOUT_S: Final = 2.0
"""The longest wait for the last report at the end of a process."""

Publish = Callable[[WorkerReported], Awaitable[None]]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The facts in a process's reports; `process` is the process as in the audit trail.

    `is_clock_known` says if it knows the storage's clock well enough to prove (SPEC 8.4).
    """

    process: AuditProcess
    roles: frozenset[str]
    settings: WorkerSettings
    metrics: WorkerMetrics
    is_clock_known: Callable[[], bool]
    started_at: datetime

    def report(self, *, is_stopping: bool) -> WorkerReported:
        """Build a report of the present state."""
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
        """Let `run` report: the process has begun to consume."""
        self._begun.set()

    async def run(self) -> None:
        """Publish reports until `stop`, which publishes the last one."""
        await self._begun.wait()
        while not self._is_stopping:
            await self._report(is_stopping=False)
            raise_if_canceled()
            await asyncio.sleep(self._facts.settings.worker_report_interval_s)

    async def stop(self) -> None:
        """Publish the last report, if the broker takes it at once."""
        if not self._begun.is_set():
            return
        # A report after the last one would say that the process is still running.
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
