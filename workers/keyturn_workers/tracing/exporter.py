"""Sends spans, and says in one line when the receiver is away, and in one when it is back.

The SDK would log each failed batch. What cannot be sent is dropped: a worker never waits for it.
"""

import threading
from collections.abc import Sequence

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_log = structlog.get_logger()


class ReportingExporter(SpanExporter):
    """Hands spans to another exporter, and reports its failures once.

    Args:
        exporter: Sends them.
        receiver: Where to, for the log line: host and port.
    """

    def __init__(self, exporter: SpanExporter, receiver: str) -> None:
        self._exporter = exporter
        self._receiver = receiver
        self._is_failing = False
        self._dropped = 0
        self._shutting_down = threading.Lock()
        self._is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; never raises."""
        try:
            result = self._exporter.export(spans)
        except Exception as exc:  # noqa: BLE001  # a process goes on without its traces
            self._report_failure(len(spans), problem=type(exc).__name__)
            return SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._report_success()
        else:
            self._report_failure(len(spans))
        return result

    def _report_failure(self, spans: int, **problem: str) -> None:
        self._dropped += spans
        if not self._is_failing:
            self._is_failing = True
            _log.warning("traces not exported", receiver=self._receiver, **problem)

    def _report_success(self) -> None:
        if self._is_failing:
            _log.info("traces exported again", receiver=self._receiver, dropped=self._dropped)
        self._is_failing = False
        self._dropped = 0

    def give_up(self) -> None:
        """Let an attempt under way end, if the receiver is away: the process stops."""
        if self._is_failing:
            self.shutdown()

    def shutdown(self) -> None:
        """Stop sending."""
        with self._shutting_down:
            if not self._is_shut_down:
                self._is_shut_down = True
                self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is buffered here."""
        return self._exporter.force_flush(timeout_millis)
