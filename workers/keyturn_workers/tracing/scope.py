"""The trace of one delivery or one HTTP request, while it is served (SPEC 6.11, 13).

Whether a trace is recorded is decided once, when it begins. Where it is not, `current_scope()` is
None, and everything else in this package does nothing.

It must never record a project, an object key, a secret, a URL, or the text of an exception. What a
sender chose is recorded only where it is one of a closed set.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from keyturn.errors import CodedError
from keyturn_workers.amqp.consumer import DeferError

# A page of a sweep makes thousands of requests to the storage.
MAX_SPANS: Final = 256
Value: TypeAlias = str | int | float | bool

_NO_PARENT: Final = Context()


class Scope:
    """What spans that begin now belong to.

    Attributes:
        root: The span of the whole delivery or request.
    """

    __slots__ = ("_context", "_shared", "root")

    def __init__(self, root: Span, context: Context, shared: "_Shared") -> None:
        self.root = root
        self._context = context
        self._shared = shared

    def start(self, name: str, kind: SpanKind, attributes: Mapping[str, Value]) -> Span:
        """A span in this scope, for the caller to end; beyond `MAX_SPANS` it is only counted."""
        shared = self._shared
        if shared.left <= 0:
            shared.omitted += 1
            return trace.INVALID_SPAN
        shared.left -= 1
        return shared.tracer.start_span(name, self._context, kind, attributes)

    @contextmanager
    def span(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Value] = {}
    ) -> Iterator[Span]:
        """A span around the block, and the scope within it. Of an error its code is recorded."""
        span = self.start(name, kind, attributes)
        if span is trace.INVALID_SPAN:
            yield span
            return
        with self._entered(span), ended(span):
            yield span

    @contextmanager
    def _entered(self, span: Span) -> Iterator[None]:
        with _entered(Scope(self.root, trace.set_span_in_context(span), self._shared)):
            yield

    def context(self) -> Context:
        """For the API of OpenTelemetry."""
        return self._context

    def finish(self) -> None:
        """Note at the end of the root what was left out."""
        if self._shared.omitted:
            self.root.set_attribute("keyturn.spans_omitted", self._shared.omitted)


class _Shared:
    """What all scopes of one trace share."""

    __slots__ = ("left", "omitted", "tracer")

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.left = MAX_SPANS
        self.omitted = 0


_current: ContextVar[Scope | None] = ContextVar("keyturn_trace", default=None)
current_scope: Final = _current.get


def begin(tracer: Tracer, name: str, kind: SpanKind) -> Span:
    """The span of a new trace, which no other span is the parent of; perhaps not recorded."""
    return tracer.start_span(name, _NO_PARENT, kind)


@contextmanager
def recorded(tracer: Tracer, root: Span) -> Iterator[Scope]:
    """Record a trace within the block, and end its root."""
    scope = Scope(root, trace.set_span_in_context(root, _NO_PARENT), _Shared(tracer))
    with _entered(scope), ended(root):
        try:
            yield scope
        finally:
            scope.finish()


@contextmanager
def _entered(scope: Scope) -> Iterator[None]:
    token, attached = _current.set(scope), otel_context.attach(scope.context())
    try:
        yield
    finally:
        otel_context.detach(attached)
        _current.reset(token)


@contextmanager
def ended(span: Span) -> Iterator[None]:
    """End the span with the block. Of an error only its code, or else its type, is recorded."""
    try:
        yield
    except (DeferError, GeneratorExit):
        raise  # the first is no failure, the second an iterator that is not needed any more
    except BaseException as exc:
        fail(span, exc)
        raise
    finally:
        span.end()


def fail(span: Span, error: BaseException | str) -> None:
    """Mark a span as failed, with the code of SPEC 12 or the type of the error."""
    span.set_attribute("error.type", error if isinstance(error, str) else error_type(error))
    span.set_status(StatusCode.ERROR)


def error_type(error: BaseException) -> str:
    """An error's code of SPEC 12, or its class. Never its text, which may hold anything."""
    return error.code if isinstance(error, CodedError) else type(error).__name__
