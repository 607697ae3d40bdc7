"""Spans in memory, as they would leave the process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from keyturn_workers.pipeline.amqp.outcomes import ReturnedError
from keyturn_workers.pipeline.tracing.export import SafeSpanProcessor
from keyturn_workers.pipeline.tracing.spans import NoPropagator, Tracing
from tests.support.routes import deliver, undecoded
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import Scene, message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.unit.keyturn_workers.pipeline.amqp.deliveries import FakeMessage

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN_ID = 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"
DELIVERY = "process keyturn:upload.requested:keyturn.upload"


class Recorder:
    """What a process with traces records."""

    def __init__(self, *, sampled: bool = True) -> None:
        sampler = ALWAYS_ON if sampled else ALWAYS_OFF
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        processor = SafeSpanProcessor(SimpleSpanProcessor(self._exporter))
        self.provider.add_span_processor(processor)
        self.tracing = Tracing(self.provider, "amqp://kim:secret@broker/secret-vhost")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

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

    async def delivered(
        self,
        work: Callable[[], Awaitable[object]] | None = None,
        delivery: FakeMessage | None = None,
    ) -> None:
        """Handle a delivery to `keyturn.upload`, which does this work."""

        async def serve(_: object) -> None:
            if work is not None:
                await work()
            raise ReturnedError

        route = undecoded("keyturn.upload", 1, serve)
        traced = route.within(self.tracing.middleware(route.queue))
        assert not await deliver(traced, delivery or message(Scene()))


@contextmanager
def as_in_a_process() -> Iterator[None]:
    """No propagator, and no instrumentation outside of traces: as `open_spans` sets it up."""
    before = get_global_textmap()
    set_global_textmap(NoPropagator())
    try:
        with suppress_instrumentation():
            yield
    finally:
        set_global_textmap(before)
