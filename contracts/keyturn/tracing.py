"""The spans of a publisher, by OpenTelemetry (SPEC 6.11). Needs the extra `keyturn[otel]`.

The application configures OpenTelemetry; this module only uses its API. Without a provider, and
where the application does not sample, nothing is recorded and no header is sent.

It must never record a project, an object key, a secret, or the text of an exception.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)

from keyturn.messages import Event, Rejected, Request, request_id
from keyturn.topology import EXCHANGE, TRACEPARENT_HEADER, publisher_stream
from keyturn.trace_context import TraceContext

# Requests whose events may still come; the oldest are forgotten.
_MAX_TRACKED: Final = 10_000
_NOTHING: Final[Mapping[str, str]] = {}


def link_to(context: TraceContext) -> Link:
    """A link to a span of another process, which is not trusted."""
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    return Link(SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=flags))


def traceparent_of(span: trace.Span) -> str:
    """The header that names this span."""
    context = span.get_span_context()
    return TraceContext(context.trace_id, context.span_id, context.trace_flags.sampled).header()


class PublisherTracing:
    """Records what one publisher sends, and the events that answer it.

    Args:
        publisher: The publisher's name.
        provider: Where spans go; by default, to the application's global provider.
    """

    def __init__(self, publisher: str, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("keyturn", version("keyturn"), provider)
        self._stream = publisher_stream(publisher)
        self._sent: OrderedDict[str, SpanContext] = OrderedDict()

    @contextmanager
    def sending(self, request: Request, body_bytes: int) -> Iterator[Mapping[str, str]]:
        """A span around one publish; gives the headers to add to the message.

        Args:
            request: What is published.
            body_bytes: Its size as signed.
        """
        destination = f"{EXCHANGE}:{request.type}"
        span = self._tracer.start_span(f"send {destination}", kind=SpanKind.PRODUCER)
        if not span.is_recording():
            yield _NOTHING
            return
        identity = request_id(request)
        span.set_attributes(
            {
                "messaging.system": "rabbitmq",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": destination,
                "messaging.rabbitmq.destination.routing_key": request.type,
                "messaging.message.id": identity,
                "messaging.message.body.size": body_bytes,
            }
        )
        self._remember(identity, span.get_span_context())
        with _current(span):
            yield {TRACEPARENT_HEADER: traceparent_of(span)}

    @contextmanager
    def staging(self, size_bytes: int | None = None) -> Iterator[None]:
        """A span around putting a body into staging."""
        span = self._tracer.start_span("stage body", kind=SpanKind.CLIENT)
        if size_bytes is not None:
            span.set_attribute("keyturn.body.size", size_bytes)
        with _current(span):
            yield

    def received(self, event: Event, traceparent: str) -> None:
        """Record that a verified event answered a request that was sent here.

        The span belongs to the trace of the request, and links to the worker's.
        """
        sent = self._sent.get(request_id(event))
        if sent is None:
            return
        worker = TraceContext.parse(traceparent)
        destination = f"{EXCHANGE}:{event.type}:{self._stream}"
        span = self._tracer.start_span(
            f"receive {destination}",
            context=trace.set_span_in_context(NonRecordingSpan(sent)),
            kind=SpanKind.CLIENT,
            links=() if worker is None else (link_to(worker),),
            attributes={
                "messaging.system": "rabbitmq",
                "messaging.operation.name": "receive",
                "messaging.operation.type": "receive",
                "messaging.destination.name": destination,
                "messaging.rabbitmq.destination.routing_key": event.type,
                "messaging.message.conversation_id": request_id(event),
            },
        )
        if isinstance(event, Rejected):
            span.set_attribute("keyturn.code", event.code)
        span.end()

    def _remember(self, identity: str, context: SpanContext) -> None:
        self._sent[identity] = context
        self._sent.move_to_end(identity)
        while len(self._sent) > _MAX_TRACKED:
            self._sent.popitem(last=False)


@contextmanager
def _current(span: trace.Span) -> Iterator[None]:
    """Make the span the current one, and end it. Of an error only its type is recorded."""
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as exc:
        span.set_attribute("error.type", type(exc).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()
