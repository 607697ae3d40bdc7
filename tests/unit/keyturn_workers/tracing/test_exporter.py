"""A receiver that is away is reported once, and once more when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from keyturn_workers.tracing.exporter import ReportingExporter
from tests.unit.keyturn_workers.tracing.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class _Scripted(SpanExporter):
    """Gives one outcome after the other."""

    def __init__(self, *outcomes: SpanExportResult | Exception) -> None:
        self._outcomes = list(outcomes)
        self.shutdowns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def shutdown(self) -> None:
        self.shutdowns += 1


def _two_spans() -> tuple[ReadableSpan, ...]:
    recorder = Recorder()
    for name in "ab":
        recorder.tracer.start_span(name).end()
    return recorder.spans


def test_one_line_when_it_is_away_and_one_when_it_is_back() -> None:
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    scripted = _Scripted(good, bad, bad, OSError("http://kim:secret@host"), good, good, bad)
    exporter = ReportingExporter(scripted, "host:4318")
    with structlog.testing.capture_logs() as logged:
        results = [exporter.export(_two_spans()) for _ in range(7)]
    assert results == [good, bad, bad, bad, good, good, bad]
    assert [(line["event"], line.get("dropped")) for line in logged] == [
        ("traces not exported", None),
        ("traces exported again", 6),
        ("traces not exported", None),
    ]
    assert "secret" not in str(logged)


def test_a_process_that_stops_does_not_wait_for_a_receiver_that_is_away() -> None:
    scripted = _Scripted(SpanExportResult.FAILURE)
    exporter = ReportingExporter(scripted, "host:4318")
    exporter.give_up()
    assert scripted.shutdowns == 0  # it is not known to be away
    exporter.export(_two_spans())
    exporter.give_up()
    exporter.shutdown()
    assert scripted.shutdowns == 1
