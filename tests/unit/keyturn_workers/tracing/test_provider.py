"""What describes a process in traces, and the bound of its end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from keyturn_workers.tracing.exporter import ReportingExporter
from keyturn_workers.tracing.provider import resource_of, running_provider, stop
from tools.harness.otlp_receiver import otlp_receiver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


def test_the_resource_names_service_version_and_deployment() -> None:
    attributes = resource_of("keyturn-gateway", "production").attributes
    assert attributes["service.name"] == "keyturn-gateway"
    assert attributes["keyturn.deployment"] == "production"
    assert attributes["service.version"]
    other = resource_of("keyturn-gateway", "production").attributes
    assert attributes["service.instance.id"] != other["service.instance.id"]


def test_opentelemetrys_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "files")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=storage")
    attributes = resource_of("keyturn-gateway", "production").attributes
    assert attributes["service.name"] == "files"
    assert attributes["service.version"] == "7"
    assert attributes["team"] == "storage"


def test_spans_arrive_when_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        with running_provider("keyturn-gateway", "test") as running:
            running.provider.get_tracer("test").start_span("one").end()
        (span,) = received.spans
    assert (span.service, span.name) == ("keyturn-gateway", "one")


@pytest.mark.parametrize(("ratio", "recorded"), [("0", 0), ("1", 20)])
def test_the_environment_decides_which_deliveries_are_recorded(
    monkeypatch: pytest.MonkeyPatch, ratio: str, recorded: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    with otlp_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        with running_provider("keyturn-worker", "test") as running:
            for _ in range(20):
                if (trace_id := running.sampling.choose()) is not None:
                    running.sampling.begin(trace_id, "process", SpanKind.CONSUMER).end()
        assert len(received.spans) == recorded


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
        "traces left behind: the receiver does not answer",
        "traces not exported",
    ]
