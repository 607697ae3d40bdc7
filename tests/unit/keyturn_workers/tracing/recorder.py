"""Spans in memory, as the tests of the modules read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from keyturn_workers.tracing.sampling import DecidedIds, RootSampling

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN_ID = 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"


class Recorder:
    """A tracer, and what it recorded."""

    def __init__(self, *, sampled: bool = True) -> None:
        sampler = ALWAYS_ON if sampled else ALWAYS_OFF
        ids = DecidedIds()
        self.provider = TracerProvider(sampler=sampler, id_generator=ids, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self.provider.get_tracer("test")
        self.sampling = RootSampling(self.tracer, ids, 1.0 if sampled else 0.0)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def attributes(self, name: str) -> dict[str, Any]:
        """What the only span of this name has."""
        return dict(self.span(name).attributes or {})

    def parent(self, name: str) -> str | None:
        """The name of its parent."""
        parent = self.span(name).parent
        if parent is None:
            return None
        ids = {span.context.span_id: span.name for span in self.spans if span.context}
        return ids[parent.span_id]

    def shown(self) -> str:
        """Everything, as text to search in."""
        return "\n".join(span.to_json() for span in self.spans)
