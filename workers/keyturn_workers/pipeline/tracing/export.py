"""Export traces: only allowed attributes, and a limited number of spans.

Instrumentations record URLs, hosts and error texts, which contain names, signatures and tokens. So
`SafeSpanProcessor` is the only way out: an attribute that is not on its list is never sent,
whichever instrumentation recorded it (SPEC 13).
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, Status

STOP_TIMEOUT_S: Final = 5.0
# A page of a sweep makes thousands of requests to the storage.
MAX_SPANS: Final = 256
_PREFIXES: Final = ("keyturn.", "messaging.")
# An instrumentation's `server.address` is the `Host` that a client chose.
_OWN_PREFIXES: Final = (*_PREFIXES, "server.")
_OWN_SCOPES: Final = ("keyturn", "keyturn-workers")
_ALLOWED: Final = {
    name: name
    for name in (
        "error.type",
        "http.request.body.size",
        "http.request.method",
        "http.response.body.size",
        "http.response.status_code",
        "http.route",
        "rpc.method",
        "rpc.system.name",
        "url.scheme",
    )
} | {
    # The instrumentations' names.
    "http.method": "http.request.method",
    "http.scheme": "url.scheme",
    "http.status_code": "http.response.status_code",
}

_log = structlog.get_logger()


class SafeSpanProcessor(SpanProcessor):
    """Passes on the allowed part of each span, and at most `MAX_SPANS` and the root of a trace."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._ended: dict[int, int] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor.on_start`."""
        if span.parent is None:
            self._ended[span.get_span_context().trace_id] = 0
        self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """See `SpanProcessor.on_end`."""
        trace_id = 0 if span.context is None else span.context.trace_id
        attributes: dict[str, Any] = {}
        if span.parent is None:
            omitted = self._ended.pop(trace_id, 0) - MAX_SPANS
            if omitted > 0:
                attributes["keyturn.spans_omitted"] = omitted
        elif trace_id in self._ended:  # its root has not ended
            self._ended[trace_id] += 1
            if self._ended[trace_id] > MAX_SPANS:
                return
        scope = span.instrumentation_scope
        is_own = scope is not None and scope.name in _OWN_SCOPES
        prefixes = _OWN_PREFIXES if is_own else _PREFIXES
        for name, value in (span.attributes or {}).items():
            allowed = name if name.startswith(prefixes) else _ALLOWED.get(name)
            if allowed is not None:
                attributes[allowed] = value
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=span.context,
                parent=span.parent,
                resource=span.resource,
                attributes=attributes,
                links=[_bare(link.context) for link in span.links],
                kind=span.kind,
                status=Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )

    def shutdown(self) -> None:
        """Send the remaining spans."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanProcessor.force_flush`."""
        return self._processor.force_flush(timeout_millis)


def _bare(context: SpanContext) -> Link:
    """A link without attributes and without another vendor's state."""
    ids = context.trace_id, context.span_id
    flags = context.trace_flags
    return Link(SpanContext(*ids, is_remote=context.is_remote, trace_flags=flags))


class ReportingExporter(SpanExporter):
    """Passes spans to another exporter; logs once that the receiver is away, or back.

    The SDK would log each failed batch. Spans that cannot be sent are dropped; a worker never
    waits. `receiver` is a host and port, for the log line.
    """

    def __init__(self, exporter: SpanExporter, receiver: str) -> None:
        self._exporter = exporter
        self._receiver = receiver
        self._dropped = 0
        self._shutting_down = threading.Lock()
        self._is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; never raises."""
        problem = {}
        try:
            result = self._exporter.export(spans)
        except Exception as exc:  # noqa: BLE001  # a process goes on without its traces
            result, problem = SpanExportResult.FAILURE, {"problem": type(exc).__name__}
        if result is SpanExportResult.SUCCESS:
            if self._dropped:
                _log.info("traces exported again", receiver=self._receiver, dropped=self._dropped)
            self._dropped = 0
        else:
            if not self._dropped:
                _log.warning("traces not exported", receiver=self._receiver, **problem)
            self._dropped += len(spans)
        return result

    def give_up(self) -> None:
        """End an attempt under way if the receiver is away, because the process is stopping."""
        if self._dropped:
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


@contextmanager
def running_provider(service: str, deployment: str, receiver: str) -> Iterator[TracerProvider]:
    """Run a provider that exports by OTLP; at the end, send its remaining spans in limited time.

    Args:
        service: The process's name in traces, unless `OTEL_SERVICE_NAME` or
            `OTEL_RESOURCE_ATTRIBUTES` names it.
        deployment: The deployment's name.
        receiver: Host and port of the receiver, for log lines.
    """
    own = Resource.create(
        {
            "service.name": service,
            "service.namespace": "keyturn",
            "service.version": version("keyturn-workers"),
            "service.instance.id": str(uuid.uuid4()),
            "keyturn.deployment": deployment,
        }
    )
    provider = TracerProvider(
        resource=own.merge(OTELResourceDetector().detect()),
        shutdown_on_exit=False,  # its own handler would wait for half a minute
    )
    exporter = ReportingExporter(OTLPSpanExporter(), receiver)
    provider.add_span_processor(SafeSpanProcessor(BatchSpanProcessor(exporter)))
    try:
        yield provider
    finally:
        stop(provider, exporter)


def stop(
    provider: TracerProvider, exporter: ReportingExporter, timeout_s: float = STOP_TIMEOUT_S
) -> None:
    """Send the remaining spans for at most `timeout_s`, or none if the receiver is away."""
    exporter.give_up()
    # A daemon, so that the exit never waits for it, whatever the receiver does.
    stopping = threading.Thread(target=provider.shutdown, name="tracing-stop", daemon=True)
    stopping.start()
    stopping.join(timeout_s)
    if stopping.is_alive():
        _log.warning("remaining traces not sent: the receiver does not respond")
