"""The spans of a worker and of a gateway (SPEC 6.2, 6.7, 6.11, 9).

| span | recorded by |
| --- | --- |
| a request to the gateway | OpenTelemetry's ASGI middleware |
| a request to the storage | this module |
| a delivery, and its messages | this module: a sender's context must not become a parent |
| a stage of a delivery | the worker's metrics, which time it anyway |

Each delivery and each request to the gateway is one trace. The process does not propagate: it
takes no context from outside and passes none to the storage. A sender's `traceparent` becomes a
link. Outside a recorded trace, instrumentations are suppressed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from faststream import BaseMiddleware, ContextRepo
from faststream.message import StreamMessage
from faststream.rabbit import RabbitBroker
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagate import set_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from keyturn.crypto.signatures import SigningKey
from keyturn.errors import CodedError
from keyturn.identifiers import (
    EVIDENCE_PREFIX,
    KEYRINGS_PREFIX,
    KEYS_PREFIX,
    STAGING_PREFIX,
    parse_time,
)
from keyturn.messages.codec import request_id
from keyturn.messages.events import Event
from keyturn.topology import EXCHANGE, PUBLISHER_EVENTS, REQUESTS, TRACEPARENT_HEADER
from keyturn.tracing import current, fail, links_to, traceparent_of
from keyturn_workers.pipeline.amqp.outcomes import DeferError, ReturnedError
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from keyturn_workers.pipeline.amqp.routes import CallNext, NewMiddleware
from keyturn_workers.process.http_server.client_connection import ABORTED, ERROR_CODE
from keyturn_workers.process.metrics import Delivery, QueueMetrics, Stage, WorkerMetrics
from keyturn_workers.storage.s3_http import RequestObserver, observe_nothing
from keyturn_workers.storage.signing import SignedRequest

_Attributes: TypeAlias = dict[str, str | int]

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
# An unsigned message may have any id; a request's id is a UUID.
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TYPES: Final = frozenset((*PUBLISHER_EVENTS, *REQUESTS))
# Neither a deferral nor a returned delivery is a failure, nor is closing an iterator that is no
# longer needed.
_NO_FAILURES: Final = (DeferError, ReturnedError, GeneratorExit)
_OTHER: Final = "other"
# Health checks and scrapes come every few seconds and show nothing new.
_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"})
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_CONVERTOR: Final = re.compile(r":[a-z_]+\}")
_RECORDS: Final = ".keyturn/"
_KINDS: Final = (
    (KEYRINGS_PREFIX, "keyring"),
    (STAGING_PREFIX, "staged body"),
    (EVIDENCE_PREFIX, "evidence"),
    (KEYS_PREFIX, "known text"),
    (_RECORDS, "record"),
)
_COPY_SOURCE: Final = "x-amz-copy-source"
_OPERATIONS: Final = {
    "GET": "GetObject",
    "GET tagging": "GetObjectTagging",
    "GET versioning": "GetBucketVersioning",
    "GET list-type": "ListObjectsV2",
    "GET versions": "ListObjectVersions",
    "GET uploads": "ListMultipartUploads",
    "HEAD": "HeadObject",
    "PUT": "PutObject",
    "PUT tagging": "PutObjectTagging",
    "PUT partNumber": "UploadPart",
    f"PUT {_COPY_SOURCE}": "CopyObject",
    f"PUT partNumber {_COPY_SOURCE}": "UploadPartCopy",
    "POST uploads": "CreateMultipartUpload",
    "POST uploadId": "CompleteMultipartUpload",
    "DELETE": "DeleteObject",
    "DELETE uploadId": "AbortMultipartUpload",
}
_MARKERS: Final = ("tagging", "versioning", "list-type", "versions", "uploads", "partNumber")

_delivery: ContextVar[Span] = ContextVar("keyturn_delivery", default=trace.INVALID_SPAN)
"""The root span of the delivery being handled, if it is recorded."""


class Tracing:
    """Records the traces of a process. Created by `open_spans`."""

    def __init__(self, provider: TracerProvider, amqp_url: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("keyturn-workers", version("keyturn-workers"))
        url = urlsplit(amqp_url)  # the user, password and vhost are not recorded
        self._broker: _Attributes = {
            "server.address": url.hostname or "localhost",
            "server.port": url.port or _PORTS.get(url.scheme, 0),
            "messaging.system": "rabbitmq",
        }

    def metrics(self) -> WorkerMetrics:
        """Return the process's metrics, which record the spans of stages."""
        return _TracedMetrics(self._tracer)

    def middleware(self, queue: str) -> NewMiddleware:
        """Return the middleware that records each delivery of a queue in its own trace."""
        destinations = {
            queue: queue,  # by the default exchange: retries, replays, a sweep's own messages
            **{key: f"{EXCHANGE}:{key}:{queue}" for key in REQUESTS},
        }
        other = f"{EXCHANGE}:{_OTHER}:{queue}"

        def start(message: AbstractIncomingMessage) -> Span:
            key = message.routing_key or ""
            destination = destinations.get(key, other)
            root = self._tracer.start_span(f"process {destination}", Context(), SpanKind.CONSUMER)
            if not root.is_recording():
                return root
            for link in links_to(message.headers.get(TRACEPARENT_HEADER)):
                root.add_link(link.context)
            root.set_attributes(
                {
                    **self._broker,
                    "messaging.operation.name": "process",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": destination,
                    "messaging.rabbitmq.destination.routing_key": (
                        key if key in destinations else _OTHER
                    ),
                    "messaging.message.body.size": len(message.body),
                    "keyturn.redelivered": bool(message.redelivered),
                    # Until the settlement says otherwise.
                    "keyturn.outcome": "returned",
                }
            )
            if message.delivery_tag is not None:
                tag = "messaging.rabbitmq.message.delivery_tag"
                root.set_attribute(tag, message.delivery_tag)
            if message.message_id is not None and _UUID.fullmatch(message.message_id):
                root.set_attribute("messaging.message.id", message.message_id)
            return root

        return partial(_DeliveryTrace, start)

    def worker_publisher(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime],
    ) -> WorkerPublisher:
        """Return a worker's publisher; in a recorded trace, each message is a span."""
        return _TracedPublisher(broker, deployment, event_keys, now, self._sending)

    def _sending(
        self, destination: str, routing_key: str, conversation_id: str | None = None
    ) -> AbstractContextManager[None]:
        if not _delivery.get().is_recording():
            return nullcontext()
        attributes: _Attributes = {
            **self._broker,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": routing_key,
        }
        if conversation_id is not None:
            attributes["messaging.message.conversation_id"] = conversation_id
        span = self._tracer.start_span(
            f"send {destination}", kind=SpanKind.PRODUCER, attributes=attributes
        )
        return current(span, _NO_FAILURES)

    def request_observer(self, bucket: str) -> RequestObserver:
        """Return an observer that records a span of each request to the storage."""
        root = f"{bucket}/"

        def observe(
            method: str, request: SignedRequest
        ) -> AbstractContextManager[Callable[[int], None]]:
            if not trace.get_current_span().is_recording():
                return observe_nothing(method, request)
            return self._storage_span(_describe_s3(root, method, request))

        return observe

    @contextmanager
    def _storage_span(self, attributes: _Attributes) -> Iterator[Callable[[int], None]]:
        name = f"S3.{attributes['rpc.method']}"
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        with current(span, _NO_FAILURES):
            yield partial(_end_s3, span)

    def application(self, app: ASGIApp) -> ASGIApp:
        """Return an application that serves each request in its own trace, if that is sampled."""

        async def described(scope: Scope, receive: Receive, send: Send) -> None:
            root = trace.get_current_span()
            if not root.is_recording():
                with suppress_instrumentation():
                    await app(scope, receive, send)
                return
            for link in links_to(Headers(scope=scope).get(TRACEPARENT_HEADER)):
                root.add_link(link.context)

            async def sending(message: AsgiMessage) -> None:
                if message["type"] == "http.response.start":
                    _describe_request(root, scope, message)
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                if scope.get(ABORTED):
                    fail(root, scope.get(ERROR_CODE, "aborted"))

        middleware = OpenTelemetryMiddleware(
            described,
            default_span_details=lambda scope: (_method(scope), {}),
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],
        )

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _UNTRACED:
                await app(scope, receive, send)
                return
            with _unsuppressed():
                await middleware(scope, receive, send)

        return traced


class _DeliveryTrace(BaseMiddleware[Any, Any]):
    """Records one delivery."""

    def __init__(
        self,
        start: Callable[[AbstractIncomingMessage], Span],
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(message, context=context)
        self._start = start
        self._message = message

    async def consume_scope(self, call_next: CallNext, msg: StreamMessage[Any]) -> Any:
        """Handle the delivery within its root span."""
        root = self._start(self._message)
        if not root.is_recording():
            return await call_next(msg)
        token = _delivery.set(root)
        try:
            with _unsuppressed(), current(root, _NO_FAILURES):
                return await call_next(msg)
        finally:
            _delivery.reset(token)


class NoPropagator(TextMapPropagator):
    """Takes no context from a request, and adds none to one."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        """Return the context unchanged, without the carrier's."""
        del carrier, getter
        return context or Context()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        """Leave the carrier as it is."""

    @property
    def fields(self) -> set[str]:
        """No header."""
        return set()


@contextmanager
def open_spans(provider: TracerProvider, amqp_url: str) -> Iterator[Tracing]:
    """Record the process's spans within the block; the gateway's publisher uses `provider` too."""
    trace.set_tracer_provider(provider)
    set_global_textmap(NoPropagator())
    with suppress_instrumentation():
        yield Tracing(provider, amqp_url)


@contextmanager
def _unsuppressed() -> Iterator[None]:
    token = otel_context.attach(Context())
    try:
        yield
    finally:
        otel_context.detach(token)


def _method(scope: MutableMapping[str, Any]) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "_OTHER"


def _describe_request(root: Span, scope: Scope, message: AsgiMessage) -> None:
    """Record the route of a request, never its path, and the code of its failure."""
    if isinstance(route := scope.get("route"), Route):
        template = _CONVERTOR.sub("}", route.path)
        root.update_name(f"{_method(scope)} {template}")
        root.set_attribute("http.route", template)
    code: str | None = scope.get(ERROR_CODE)
    if code is not None:
        root.set_attribute("keyturn.code", code)
    if message["status"] >= _SERVER_ERROR:
        fail(root, code or str(message["status"]))
    if (size := dict(message["headers"]).get(b"content-length")) is not None:
        root.set_attribute("http.response.body.size", int(size))


def _describe_s3(root: str, method: str, request: SignedRequest) -> _Attributes:
    """Describe a request to the storage: its operation, and the kind of its S3 key."""
    path, _, query = request.target.partition("?")
    names = {pair.partition("=")[0] for pair in query.split("&")}
    marks: list[str] = [name for name in _MARKERS if name in names]
    if not marks and "uploadId" in names:
        marks = ["uploadId"]
    marks += [_COPY_SOURCE] if _COPY_SOURCE in request.headers else []
    operation = _OPERATIONS.get(" ".join((method, *marks)), _OTHER)
    attributes: _Attributes = {
        "http.request.method": method,
        "rpc.system.name": "aws-api",
        "rpc.method": operation,
        "keyturn.storage.kind": kind_of(path[1:].removeprefix(root)),
    }
    if (size := request.headers.get("content-length", "")).isdecimal():
        attributes["http.request.body.size"] = int(size)
    return attributes


def _end_s3(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= _CLIENT_ERROR:
        fail(span, str(status))


def kind_of(s3_key: str) -> str:
    """The kind of an S3 key, out of a closed set."""
    if not s3_key:
        return "bucket"
    if not s3_key.startswith(_RECORDS):
        return "object"
    return next(kind for prefix, kind in _KINDS if s3_key.startswith(prefix))


class _TracedPublisher(WorkerPublisher):
    """Adds the context of the sending span to events and to a sweep's own messages.

    Each event of a batch has its own span, until the batch is confirmed. A copy in a retry or
    dead-letter queue keeps the original header.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime],
        sending: Callable[..., AbstractContextManager[None]],
    ) -> None:
        super().__init__(broker, deployment, event_keys, now)
        self._sending = sending

    async def publish_event(self, event: Event, *, traceparent: str = "") -> None:
        """See `WorkerPublisher.publish_event`."""
        with self._sending(f"{EXCHANGE}:{event.type}", event.type, request_id(event)):
            await super().publish_event(event, traceparent=traceparent or _traceparent())

    async def _to_queue(self, message: Message, queue: str) -> None:
        with self._sending(queue, queue):
            if not message.headers:  # a copy has the headers of its retry or dead letter
                message = Message(
                    message.body,
                    headers={TRACEPARENT_HEADER: sender} if (sender := _traceparent()) else {},
                    content_type=message.content_type,
                    delivery_mode=message.delivery_mode,
                )
            await super()._to_queue(message, queue)


def _traceparent() -> str:
    """The current span as a sender's context; empty if it is not recorded."""
    span = trace.get_current_span()
    return traceparent_of(span) if span.is_recording() else ""


class _TracedDelivery(Delivery):
    __slots__ = ()

    def identify(self, kind: Literal["request", "round"], identity: str) -> None:
        """See `Delivery.identify`."""
        _delivery.get().set_attribute(f"keyturn.{kind}.id", identity)


class _TracedQueueMetrics(QueueMetrics):
    """The metrics of one queue, the stages of its deliveries, and their outcome."""

    delivery_type = _TracedDelivery
    tracer: trace.Tracer

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """See `QueueMetrics.stage`."""
        timer = super().stage(name)
        if not _delivery.get().is_recording():
            return timer
        return _stage(timer, self.tracer.start_span(name))

    def count_served(self, message_type: str) -> None:
        """See `QueueMetrics.count_served`."""
        super().count_served(message_type)
        if message_type in _TYPES:
            _delivery.get().set_attribute("keyturn.served_as", message_type)

    def count_hint(self) -> None:
        """See `QueueMetrics.count_hint`."""
        super().count_hint()
        _delivery.get().set_attribute("keyturn.outcome", "served")

    def note_wait(self, requested_at: str) -> None:
        """See `QueueMetrics.note_wait`."""
        super().note_wait(requested_at)
        if (root := _delivery.get()).is_recording():
            waited = datetime.now(UTC) - parse_time(requested_at)
            # The sender's clock may be ahead of this one.
            root.set_attribute("keyturn.waited_s", max(0.0, round(waited.total_seconds(), 3)))

    def count_refused(self, error: CodedError) -> None:
        """See `QueueMetrics.count_refused`."""
        super().count_refused(error)
        _fail_delivery("refused", error)

    def count_retry(self, error: CodedError) -> None:
        """See `QueueMetrics.count_retry`."""
        super().count_retry(error)
        _fail_delivery("retried", error)

    def count_deferred(self) -> None:
        """See `QueueMetrics.count_deferred`."""
        super().count_deferred()
        _delivery.get().set_attribute("keyturn.outcome", "deferred")


class _TracedMetrics(WorkerMetrics):
    """All metrics of one process, and the spans of the measured stages."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self.queue_type = type("TracedQueueMetrics", (_TracedQueueMetrics,), {"tracer": tracer})
        super().__init__()

    def count_page(self, counts: Mapping[str, int], failed_codes: Iterable[str]) -> None:
        """See `WorkerMetrics.count_page`."""
        super().count_page(counts, failed_codes)
        for name, count in counts.items():
            _delivery.get().set_attribute(f"keyturn.page.{name}", count)


@contextmanager
def _stage(timer: AbstractContextManager[None], span: Span) -> Iterator[None]:
    with timer, current(span, _NO_FAILURES):
        yield


def _fail_delivery(outcome: str, error: CodedError) -> None:
    root = _delivery.get()
    root.set_attribute("keyturn.outcome", outcome)
    fail(root, error)
