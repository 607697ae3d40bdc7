"""A real OTLP receiver: an HTTP server that decodes what exporters send, as a collector does."""

from __future__ import annotations

import asyncio
import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_ERROR = 2


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was received. Ids are in hex; `parent_id` is empty for a root."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    is_error: bool
    status_message: str
    events: int
    duration_s: float
    resource: dict[str, Any] = field(repr=False)


@dataclass
class Received:
    """Everything that arrived so far."""

    url: str
    bodies: list[bytes] = field(default_factory=list, repr=False)
    spans: list[ReceivedSpan] = field(default_factory=list)
    status: int = 200
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def env(self, sampler: str = "always_on", **more: str) -> dict[str, str]:
        """The variables of a process that sends its traces here soon."""
        return {
            "KEYTURN_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_TRACES_SAMPLER": sampler,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            **more,
        }

    def add(self, body: bytes) -> None:
        """Decode one request."""
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            _span(span, _values(of_resource.resource.attributes))
            for of_resource in request.resource_spans
            for scope in of_resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.bodies.append(body)
            self.spans += spans

    def trace(self, trace_id: str) -> Trace:
        """All spans of one trace so far."""
        with self._lock:
            return Trace([span for span in self.spans if span.trace_id == trace_id])

    def roots(self, name: str) -> list[ReceivedSpan]:
        """The spans of this name that have no parent."""
        with self._lock:
            return [span for span in self.spans if span.name == name and not span.parent_id]

    async def root(
        self, name: str, matches: Callable[[ReceivedSpan], bool] = lambda _: True
    ) -> ReceivedSpan:
        """The first root of this name that matches; waits for it."""
        async with asyncio.timeout(30):
            while True:
                found = [span for span in self.roots(name) if matches(span)]
                if found:
                    return found[0]
                await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Trace:
    """The spans of one trace."""

    spans: list[ReceivedSpan]

    def shape(self) -> Any:
        """The tree: each span as its kind and name, with its children in the order of names."""
        (root,) = [span for span in self.spans if not span.parent_id]
        return self._shape(root)

    def _shape(self, span: ReceivedSpan) -> Any:
        children = [self._shape(each) for each in self.spans if each.parent_id == span.span_id]
        label = f"{span.kind} {span.name}"
        return {label: children} if children else label

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]


def _span(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        service=str(resource.get("service.name")),
        name=span.name,
        kind=_KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_values(span.attributes),
        is_error=span.status.code == _ERROR,
        status_message=span.status.message,
        events=len(span.events),
        duration_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def otlp_receiver(port: int = 0) -> Iterator[Received]:
    """Listen on loopback for the duration of the block; on a free port by default."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces" and received.status == 200:
                received.add(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(received.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    received = Received(f"http://127.0.0.1:{server.server_port}")
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
