"""What leaves the process: allowed attributes, a bounded number of spans, within a bounded time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, StatusCode, TraceFlags, TraceState

from keyturn_workers.pipeline.tracing.export import (
    MAX_SPANS,
    ReportingExporter,
    running_provider,
    stop,
)
from tests.unit.keyturn_workers.pipeline.tracing.recorder import SPAN_ID, TRACE_ID, Recorder
from tools.harness.otlp_receiver import otlp_receiver

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest
    from opentelemetry.sdk.trace import ReadableSpan


def test_what_is_not_on_the_list_is_not_sent_whoever_records_it() -> None:
    recorder = Recorder()
    state = TraceState([("vendor", "secret-state")])
    sender = SpanContext(
        TRACE_ID, SPAN_ID, is_remote=True, trace_flags=TraceFlags(1), trace_state=state
    )
    unsafe = {
        "http.url": "http://host/secret?X-Amz-Signature=secret",
        "http.target": "/secret",
        "url.full": "http://secret",
        "url.path": "/secret",
        "url.query": "token=secret",
        "http.host": "secret-host",
        "server.address": "secret-host",
        "client.address": "secret",
        "user_agent.original": "secret",
        "http.request.header.authorization": "Bearer secret",
        "exception.message": "secret",
        "db.statement": "secret",
    }
    span = recorder.provider.get_tracer("an instrumentation").start_span(
        "GET", links=[Link(sender, {"note": "secret"})], attributes=unsafe
    )
    span.set_attribute("http.method", "GET")
    span.set_attribute("http.status_code", 500)
    span.record_exception(ValueError("secret"))
    span.set_status(StatusCode.ERROR, "secret")
    span.end()
    assert recorder.attributes("GET") == {
        "http.request.method": "GET",
        "http.response.status_code": 500,
    }
    sent = recorder.span("GET")
    assert (sent.events, sent.status.status_code) == ((), StatusCode.ERROR)
    (link,) = sent.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)
    assert not link.attributes
    assert not link.context.trace_state
    assert "secret" not in sent.to_json()


def test_of_a_trace_a_bounded_number_of_spans_is_sent_and_its_root() -> None:
    recorder = Recorder()
    tracer = recorder.provider.get_tracer("keyturn-workers")
    for more in (0, 7):
        with tracer.start_as_current_span(f"root {more}"):
            for _ in range(MAX_SPANS + more):
                tracer.start_span("child").end()
    assert recorder.names.count("child") == 2 * MAX_SPANS
    assert "keyturn.spans_omitted" not in recorder.attributes("root 0")
    assert recorder.attributes("root 7")["keyturn.spans_omitted"] == 7


def test_a_span_that_ends_after_its_root_is_sent() -> None:
    recorder = Recorder()
    tracer = recorder.provider.get_tracer("keyturn")
    with tracer.start_as_current_span("root"):
        late = tracer.start_span("late")
    late.end()
    assert recorder.names == ["root", "late"]


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
        recorder.provider.get_tracer("test").start_span(name).end()
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


def test_spans_arrive_when_the_process_ends_and_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=storage")
        for name in ("keyturn-gateway", "files"):
            with running_provider("keyturn-gateway", "production", "host") as provider:
                provider.get_tracer("test").start_span(name).end()
            # OpenTelemetry's own variables win.
            monkeypatch.setenv("OTEL_SERVICE_NAME", "files")
    first, second = received.spans
    assert (first.service, first.name) == ("keyturn-gateway", "keyturn-gateway")
    assert second.service == "files"
    assert first.resource["keyturn.deployment"] == "production"
    assert (first.resource["service.version"], first.resource["team"]) == ("7", "storage")
    assert first.resource["service.instance.id"] != second.resource["service.instance.id"]


class _Hanging(SpanExporter):
    """A receiver that takes a request and never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        self.released.wait(20)
        return SpanExportResult.FAILURE


def test_the_end_is_bounded() -> None:
    hanging = _Hanging()
    exporter = ReportingExporter(hanging, "host")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.get_tracer("test").start_span("one").end()
    with structlog.testing.capture_logs() as logged:
        began = time.monotonic()
        stop(provider, exporter, timeout_s=0.2)
        took_s = time.monotonic() - began
        hanging.released.set()
        # Wait, or its log line would show up in another test.
        for thread in threading.enumerate():
            if thread.name == "tracing-stop":
                thread.join(10)
    assert took_s < 5
    assert [line["event"] for line in logged] == [
        "remaining traces not sent: the receiver does not respond",
        "traces not exported",
    ]
