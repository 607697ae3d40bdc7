"""The spans of a publisher, by OpenTelemetry, and links to other processes (SPEC 6.11).

Needs the extra `keyturn[otel]`. The application configures OpenTelemetry; this module only uses its
API. Without a provider, or if the application does not sample, nothing is recorded and no header is
sent.

The header `traceparent` of a message is not signed: anyone with write access to the broker can set
any value. So it only ever becomes a *link* to another trace. It is never the parent of a span, and
never decides whether one is recorded. FastStream's middleware and the instrumentations for aio-pika
would make it the parent.

It must never record a project, an object key, a secret, or the text of an exception.
"""

import re
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

from keyturn.errors import CodedError
from keyturn.messages.codec import request_id
from keyturn.messages.events import Event, Rejected
from keyturn.messages.requests import Request
from keyturn.topology import EXCHANGE, TRACEPARENT_HEADER, publisher_stream

# Version 00 of W3C Trace Context, which is 55 characters long. Later versions are not read.
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
# Requests whose events may still come; the oldest are forgotten.
_MAX_TRACKED: Final = 10_000
_NOTHING: Final[Mapping[str, str]] = {}


def links_to(header: object) -> tuple[Link, ...]:
    """Return the link to the span in a header `traceparent`; none for any other form."""
    match = _TRACEPARENT.fullmatch(header) if isinstance(header, str) else None
    if match is None:
        return ()
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    sampled = TraceFlags(flags & TraceFlags.SAMPLED)
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=sampled)
    return (Link(context),) if context.is_valid else ()


def traceparent_of(span: trace.Span) -> str:
    """Return the header that names this span."""
    context = span.get_span_context()
    sampled = int(context.trace_flags.sampled)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled:02x}"


@contextmanager
def current(
    span: trace.Span, no_failures: tuple[type[BaseException], ...] = (GeneratorExit,)
) -> Iterator[None]:
    """Make the span current, and end it. Only the code or type of an error is recorded."""
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except no_failures:
        raise
    except BaseException as exc:
        fail(span, exc)
        raise
    finally:
        span.end()


def fail(span: trace.Span, error: BaseException | str) -> None:
    """Mark a span as failed, with the code of SPEC 12 or the type of the error, never its text."""
    if isinstance(error, BaseException):
        error = error.code if isinstance(error, CodedError) else type(error).__name__
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)


class PublisherTracing:
    """Records one publisher's requests, and the events that answer them.

    Args:
        publisher: The publisher's name.
        provider: The destination of spans; by default the application's global provider.
    """

    def __init__(self, publisher: str, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("keyturn", version("keyturn"), provider)
        self._stream = publisher_stream(publisher)
        self._sent: OrderedDict[str, SpanContext] = OrderedDict()

    @contextmanager
    def sending(self, request: Request, body_bytes: int) -> Iterator[Mapping[str, str]]:
        """Record a span around one publish; yield the headers to add to the message.

        Args:
            request: The published request.
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
        with current(span):
            yield {TRACEPARENT_HEADER: traceparent_of(span)}

    @contextmanager
    def staging(self, size_bytes: int | None = None) -> Iterator[None]:
        """Record a span around staging a body."""
        span = self._tracer.start_span("stage body", kind=SpanKind.CLIENT)
        if size_bytes is not None:
            span.set_attribute("keyturn.body.size", size_bytes)
        with current(span):
            yield

    def received(self, event: Event, traceparent: str) -> None:
        """Record that a verified event answered a request sent here.

        The span belongs to the trace of the request, and links to the worker's.
        """
        sent = self._sent.get(request_id(event))
        if sent is None:
            return
        destination = f"{EXCHANGE}:{event.type}:{self._stream}"
        span = self._tracer.start_span(
            f"receive {destination}",
            context=trace.set_span_in_context(NonRecordingSpan(sent)),
            kind=SpanKind.CLIENT,
            links=links_to(traceparent),
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
