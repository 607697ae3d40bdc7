"""The spans of deliveries, stages, messages and requests; and nothing that names an object."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika import Message
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from keyturn.counts import Counts
from keyturn.crypto import SigningKey
from keyturn.errors import (
    AlreadyExistsError,
    BadSignatureError,
    CodedError,
    StorageUnavailableError,
)
from keyturn.messages import parse_batch, parse_traced_event
from keyturn.tracing import links_to
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_values import Headers, IfAbsent
from keyturn_workers.pipeline.amqp.event_batches import EventBatches, NotConfirmedError
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.pipeline.amqp.requests import RequestQueue, request_route
from keyturn_workers.pipeline.tracing.spans import kind_of
from keyturn_workers.process.http_server.client_connection import (
    ERROR_CODE,
    RESET_CONNECTION,
    abort,
)
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.support.routes import deliver
from tests.support.scrape import risen
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import (
    RULES,
    STORED,
    UPLOAD_ID,
    FakeHandler,
    FakeMessage,
    Scene,
    context,
    message,
)
from tests.unit.keyturn_workers.pipeline.tracing.recorder import (
    DELIVERY,
    SPAN_ID,
    TRACE_ID,
    TRACEPARENT,
    Recorder,
)
from tests.unit.keyturn_workers.storage.servers import DROP, Reply, scripted_server
from tests.unit.keyturn_workers.storage.test_s3 import error

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as AsgiMessage

    from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher

BROKER = {
    "server.address": "broker",
    "server.port": 5672,
    "messaging.system": "rabbitmq",
}


# --- deliveries


def _message(**changes: Any) -> FakeMessage:
    delivery = message(Scene(), headers=changes.pop("headers", None))
    for name, value in changes.items():
        setattr(delivery, name, value)
    return delivery


async def test_a_delivery_is_described_by_the_messaging_conventions() -> None:
    recorder, delivery = Recorder(), _message()
    await recorder.delivered(delivery=delivery)
    assert recorder.span(DELIVERY).kind is SpanKind.CONSUMER
    assert recorder.attributes(DELIVERY) == {
        **BROKER,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "keyturn:upload.requested:keyturn.upload",
        "messaging.rabbitmq.destination.routing_key": "upload.requested",
        "messaging.rabbitmq.message.delivery_tag": 7,
        "messaging.message.body.size": len(delivery.body),
        "messaging.message.id": UPLOAD_ID,
        "keyturn.redelivered": False,
        "keyturn.outcome": "returned",
    }
    assert recorder.span(DELIVERY).links == ()


async def test_the_senders_context_is_a_link_and_no_parent() -> None:
    recorder = Recorder()
    await recorder.delivered(delivery=_message(headers={"traceparent": TRACEPARENT}))
    span = recorder.span(DELIVERY)
    assert span.parent is None
    assert span.context is not None
    assert span.context.trace_id != TRACE_ID
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)
    assert link.context.is_remote


async def test_a_sender_cannot_have_a_trace_recorded() -> None:
    """The header says that it is sampled; the sampler here decides by itself."""
    recorder = Recorder(sampled=False)
    await recorder.delivered(delivery=_message(headers={"traceparent": TRACEPARENT}))
    assert recorder.spans == ()


@pytest.mark.parametrize("header", [b"bytes", 7, [TRACEPARENT], "00-0-0-00", TRACEPARENT + "x"])
async def test_another_header_is_ignored(header: object) -> None:
    recorder = Recorder()
    await recorder.delivered(delivery=_message(headers={"traceparent": header}))
    assert recorder.span(DELIVERY).links == ()


@pytest.mark.parametrize("routing_key", ["secret-project/secret.pdf", "", None])
async def test_a_routing_key_that_is_none_of_ours_is_not_recorded(routing_key: str | None) -> None:
    recorder = Recorder()
    odd = _message(routing_key=routing_key, message_id="secret-project")
    await recorder.delivered(delivery=odd)
    name = "process keyturn:other:keyturn.upload"
    assert recorder.attributes(name)["messaging.rabbitmq.destination.routing_key"] == "other"
    assert "messaging.message.id" not in recorder.attributes(name)
    assert "secret" not in recorder.shown()


async def test_a_retry_comes_by_the_queues_own_name() -> None:
    recorder = Recorder()
    retried = _message(routing_key="keyturn.upload", redelivered=True)
    await recorder.delivered(delivery=retried)
    attributes = recorder.attributes("process keyturn.upload")
    assert attributes["messaging.destination.name"] == "keyturn.upload"
    assert attributes["keyturn.redelivered"] is True


# --- stages and outcomes


async def _consumed(
    error: Exception | None = None,
    *,
    recorder: Recorder | None = None,
    metrics: WorkerMetrics | None = None,
) -> Recorder:
    recorder, scene = recorder or Recorder(), Scene("")
    metrics = metrics or recorder.tracing.metrics()
    queue = RequestQueue(FakeHandler(scene, error), RULES, context(scene, metrics))
    route, delivery = request_route(queue, prefetch=8), message(scene)
    await recorder.delivered(lambda: deliver(route, delivery), delivery=delivery)
    return recorder


async def test_a_served_request_has_its_stages_and_its_outcome() -> None:
    recorder = await _consumed()
    assert recorder.names == ["admit", "serve", "tell", DELIVERY]
    assert recorder.parent("serve") == DELIVERY
    attributes = recorder.attributes(DELIVERY)
    assert attributes["keyturn.waited_s"] < 60
    assert attributes["keyturn.outcome"] == "served"
    assert attributes["keyturn.served_as"] == "upload.stored"
    assert attributes["keyturn.request.id"] == UPLOAD_ID


@pytest.mark.parametrize(
    ("error", "outcome", "error_type"),
    [
        (AlreadyExistsError("secret/name.pdf"), "refused", "already_exists"),
        (StorageUnavailableError("secret/name.pdf"), "retried", "storage_unavailable"),
        (ZeroDivisionError("secret/name.pdf"), "retried", "storage_unavailable"),
        (DeferError(5), "deferred", None),
        (NotConfirmedError("secret/name.pdf"), "returned", None),
    ],
)
async def test_what_became_of_a_request(
    monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str, error_type: str | None
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.amqp.settlement.hold_s", lambda _: 0)
    recorder = await _consumed(error)
    assert recorder.attributes(DELIVERY)["keyturn.outcome"] == outcome
    assert recorder.attributes(DELIVERY).get("error.type") == error_type
    stage = recorder.span("serve")
    assert (stage.status.status_code is StatusCode.ERROR) is not isinstance(error, DeferError)
    assert "secret" not in recorder.shown()


async def test_a_page_has_its_counts() -> None:
    recorder = Recorder()
    metrics = recorder.tracing.metrics()

    async def count() -> None:
        metrics.count_page(Counts(objects=3, rewrapped=2, current=1).to_json(), [])

    await recorder.delivered(count)
    attributes = recorder.attributes(DELIVERY)
    assert (attributes["keyturn.page.rewrapped"], attributes["keyturn.page.current"]) == (2, 1)


@pytest.mark.parametrize("sampled", [True, False])
async def test_the_metrics_are_those_without_traces(sampled: bool) -> None:
    """Counters and the number of timings; the times themselves differ."""

    def counted(metrics: WorkerMetrics) -> dict[str, float]:
        return {
            name: value
            for name, value in risen(metrics).items()
            if not name.startswith("keyturn_stage_seconds") or "_count" in name
        }

    recorder = Recorder(sampled=sampled)
    plain, traced = WorkerMetrics(), recorder.tracing.metrics()
    errors: list[CodedError | None] = [None, AlreadyExistsError("k"), StorageUnavailableError("x")]
    for each in errors:
        await _consumed(each, metrics=plain)
        await _consumed(each, metrics=traced, recorder=recorder)
    assert counted(traced) == counted(plain)
    assert counted(plain)
    assert bool(recorder.spans) is sampled


# --- what a worker publishes


class _Broker:
    """Notes the messages; `lost` makes each publish fail."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.messages: list[tuple[Message, str]] = []

    async def publish(self, message: Message, queue: str, **_: object) -> None:
        if self.lost:
            raise ConnectionError("amqp://kim:secret@broker")
        self.messages.append((message, queue))


def _publisher(recorder: Recorder, broker: _Broker) -> WorkerPublisher:
    key = SigningKey.from_seed(bytes(32))
    return recorder.tracing.worker_publisher(cast("Any", broker), "test", [key], utc_now)


async def test_a_sweeps_own_message_carries_the_context_of_its_span() -> None:
    recorder, broker = Recorder(), _Broker()
    publisher = _publisher(recorder, broker)
    await recorder.delivered(lambda: publisher.send(b"{}", "keyturn.plan", 5))
    name = "send keyturn.plan.retry.5s"
    assert recorder.span(name).kind is SpanKind.PRODUCER
    assert recorder.parent(name) == DELIVERY
    assert recorder.attributes(name) == {
        **BROKER,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "keyturn.plan.retry.5s",
        "messaging.rabbitmq.destination.routing_key": "keyturn.plan.retry.5s",
    }
    ((sent, _),) = broker.messages
    (link,) = links_to(sent.headers["traceparent"])
    own = recorder.span(name).context
    assert own is not None
    assert (link.context.trace_id, link.context.span_id) == (own.trace_id, own.span_id)


class _Events:
    """Notes what is published as events, and in which span."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.spans: list[Any] = []

    async def publish(self, _routing_key: str, body: bytes, _properties: object) -> None:
        self.bodies.append(body)
        self.spans.append(trace.get_current_span())
        await asyncio.sleep(0)


async def test_each_event_of_a_batch_carries_the_context_of_its_own_span() -> None:
    recorder, events = Recorder(), _Events()
    publisher = _publisher(recorder, _Broker())
    publisher._events = cast("Any", events)
    # However slow the machine, the events that follow gather while the first one is in flight.
    publisher._batches = EventBatches(publisher._publish_events, hold_s=60)
    stored = STORED.model_copy(update={"publisher": "api"})
    await asyncio.gather(
        *(recorder.delivered(lambda: publisher.publish_event(stored)) for _ in range(3))
    )
    alone, batch = events.bodies
    linked = [parse_traced_event(alone), *parse_batch(batch)]
    found = [link.context.span_id for each in linked for link in links_to(each.traceparent)]
    sending = [span for span in recorder.spans if span.name == "send keyturn:upload.stored"]
    assert sorted(found) == sorted(span.context.span_id for span in sending if span.context)
    assert len(set(found)) == 3
    for span in sending:
        assert dict(span.attributes or {}) == {
            **BROKER,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": "keyturn:upload.stored",
            "messaging.rabbitmq.destination.routing_key": "upload.stored",
            "messaging.message.conversation_id": UPLOAD_ID,
        }
    # The message is that of several traces, and in none of them.
    assert not [span for span in events.spans if span.is_recording()]


_SENT = Message(b"{}", headers={"traceparent": TRACEPARENT}, message_id="m")


@pytest.mark.parametrize(
    ("copying", "queue"),
    [
        (
            lambda p: p.schedule_retry(_SENT, "keyturn.upload", StorageUnavailableError("x"), 0, 1),
            "keyturn.upload.retry.1s",
        ),
        (lambda p: p.defer(_SENT, "keyturn.upload", 6), "keyturn.upload.retry.5s"),
        (
            lambda p: p.dead_letter(_SENT, "keyturn.upload", AlreadyExistsError("k")),
            "keyturn.upload.dead",
        ),
        (
            lambda p: p.dead_letter(_SENT, "keyturn.upload", BadSignatureError("k")),
            "keyturn.unsigned.dead",
        ),
    ],
)
@pytest.mark.parametrize("header", [TRACEPARENT, None])
async def test_a_copy_keeps_the_header_as_it_was_sent(
    copying: Any, queue: str, header: str | None
) -> None:
    """So each attempt, and a replay, links to what the publisher sent."""
    recorder, broker = Recorder(), _Broker()
    _SENT.headers = {} if header is None else {"traceparent": header}
    await recorder.delivered(lambda: copying(_publisher(recorder, broker)))
    ((copy, sent_to),) = broker.messages
    assert sent_to == queue
    assert copy.headers.get("traceparent") == header
    assert recorder.span(f"send {queue}").kind is SpanKind.PRODUCER


async def test_outside_a_trace_nothing_is_added_to_a_message() -> None:
    recorder, broker = Recorder(), _Broker()
    await _publisher(recorder, broker).send(b"{}", "keyturn.plan", 0)
    ((sent, _),) = broker.messages
    assert "traceparent" not in sent.headers
    assert recorder.spans == ()


@pytest.mark.parametrize(
    ("name", "send"),
    [
        ("send keyturn:upload.stored", lambda p: p.publish_event(STORED)),
        ("send keyturn.plan", lambda p: p.send(b"{}", "keyturn.plan", 0)),
    ],
)
async def test_of_a_lost_broker_only_the_type_is_recorded(name: str, send: Any) -> None:
    recorder = Recorder()
    publisher = _publisher(recorder, _Broker(lost=True))
    with pytest.raises((NotConfirmedError, AttributeError)):
        await recorder.delivered(lambda: send(publisher))
    assert recorder.attributes(name)["error.type"] in ("NotConfirmedError", "AttributeError")
    assert "secret" not in recorder.shown()


# --- requests to the storage

_KEY = "secret-project/secret name.pdf"
_PLAIN = Headers({}, None)


async def _stored(
    recorder: Recorder, work: Any, *, script: Reply | None = None, traced: bool = True
) -> None:
    """Work with a storage that is watched."""
    async with scripted_server() as server:
        if script is not None:
            server.script = [script]
        settings = server.settings()
        observe = recorder.tracing.request_observer(settings.s3_bucket)
        async with open_storage(settings, observe=observe) as storage:
            await (recorder.delivered(lambda: work(storage)) if traced else work(storage))
        assert not [request for request in server.requests if "traceparent" in request.headers]


async def _use(storage: S3Storage) -> None:
    await storage.put(_KEY, b"body", _PLAIN)
    await storage.read(_KEY)
    async with storage.stream(_KEY) as stream:
        async for _ in stream.chunks(None):
            pass
    await storage.delete(_KEY)


async def test_each_request_to_the_storage_is_a_span_without_its_name() -> None:
    recorder = Recorder()
    await _stored(recorder, _use)
    requests = ["S3.PutObject", "S3.GetObject", "S3.GetObject", "S3.DeleteObject"]
    assert recorder.names == [*requests, DELIVERY]
    assert recorder.span("S3.PutObject").kind is SpanKind.CLIENT
    assert recorder.parent("S3.PutObject") == DELIVERY
    assert recorder.attributes("S3.PutObject") == {
        "http.request.body.size": 4,
        "rpc.system.name": "aws-api",
        "rpc.method": "PutObject",
        "http.request.method": "PUT",
        "keyturn.storage.kind": "object",
        "http.response.status_code": 200,
    }
    for canary in ("secret", "127.0.0.1", "Signature", "http://"):
        assert canary not in recorder.shown()


@pytest.mark.parametrize(
    ("reply", "expected", "error_type"),
    [
        (Reply(412, error("PreconditionFailed")), PreconditionError, "412"),
        (DROP, StorageUnavailableError, "ConnectionLostError"),
    ],
)
async def test_of_a_failed_request_to_the_storage_the_kind_is_recorded(
    reply: Reply, expected: type[Exception], error_type: str
) -> None:
    recorder = Recorder()

    async def put(storage: S3Storage) -> None:
        await storage.put(_KEY, b"body", _PLAIN, condition=IfAbsent())

    with pytest.raises(expected):
        await _stored(recorder, put, script=reply)
    span = recorder.span("S3.PutObject")
    assert recorder.attributes("S3.PutObject")["error.type"] == error_type
    assert (span.events, span.status.description) == ((), None)
    assert "secret" not in recorder.shown()


@pytest.mark.parametrize(("sampled", "traced"), [(True, False), (False, True)])
async def test_outside_a_recorded_trace_the_storage_is_not_traced(
    sampled: bool, traced: bool
) -> None:
    recorder = Recorder(sampled=sampled)
    await _stored(recorder, _use, traced=traced)
    assert recorder.spans == ()


@pytest.mark.parametrize(
    ("s3_key", "kind"),
    [
        ("acme/reports/q3.pdf", "object"),
        (".keyturn/keyrings/acme.json", "keyring"),
        (".keyturn/staging/api/1", "staged body"),
        (".keyturn/sweeps/acme.json", "record"),
        (".keyturn/evidence/acme/1.json", "evidence"),
        (".keyturn/keys/m1.json", "known text"),
        (".keyturn/of-a-later-release", "record"),
        ("", "bucket"),
    ],
)
def test_a_key_is_known_by_its_kind(s3_key: str, kind: str) -> None:
    assert kind_of(s3_key) == kind


# --- requests to the gateway

_NAME = "GET /v1/projects/{project}/objects/{key}"
_PATH = "/v1/projects/secret-project/objects/secret.pdf"


async def _serve(request: Request) -> Response:
    status = int(request.headers.get("answer", "200"))
    if status != 200:
        request.scope[ERROR_CODE] = "corrupt_object" if status >= 500 else "not_found"
    return Response(b"body", status)


def _app() -> ASGIApp:
    path = "/v1/projects/{project}/objects/{key:path}"
    return Starlette(routes=[Route(path, _serve), Route("/healthz", _serve)])


async def _get(app: ASGIApp, path: str = _PATH, method: str = "GET", **headers: str) -> None:
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"token=secret-token",
        "client": ("192.0.2.7", 5000),
        "server": ("127.0.0.1", 8080),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "state": {RESET_CONNECTION: lambda: None},
    }

    async def receive() -> AsgiMessage:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: AsgiMessage) -> None:
        del message

    await app(scope, receive, send)


async def test_a_request_is_described_by_its_route() -> None:
    recorder = Recorder()
    sent = {"authorization": "Bearer secret-key", "host": "secret-host", "user-agent": "secret"}
    await _get(recorder.tracing.application(_app()), **sent)
    assert recorder.span(_NAME).kind is SpanKind.SERVER
    assert recorder.attributes(_NAME) == {
        "http.request.method": "GET",
        "http.route": "/v1/projects/{project}/objects/{key}",
        "http.response.status_code": 200,
        "http.response.body.size": 4,
        "url.scheme": "http",
    }
    for canary in ("secret", "192.0.2.7"):
        assert canary not in recorder.shown()


async def test_a_made_up_method_is_not_recorded() -> None:
    recorder = Recorder()
    await _get(recorder.tracing.application(_app()), method="SECRET")
    assert "SECRET" not in recorder.shown()


async def test_a_clients_context_is_a_link_and_no_parent() -> None:
    recorder = Recorder()
    await _get(recorder.tracing.application(_app()), traceparent=TRACEPARENT)
    span = recorder.span(_NAME)
    assert span.parent is None
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize(
    ("status", "code", "is_error"), [(404, "not_found", False), (502, "corrupt_object", True)]
)
async def test_a_refusal_has_its_code(status: int, code: str, is_error: bool) -> None:
    recorder = Recorder()
    await _get(recorder.tracing.application(_app()), answer=str(status))
    attributes = recorder.attributes(_NAME)
    assert attributes["keyturn.code"] == code
    assert attributes.get("error.type") == (code if is_error else None)
    assert (recorder.span(_NAME).status.status_code is StatusCode.ERROR) is is_error


async def test_a_response_that_is_cut_off_is_an_error() -> None:
    recorder = Recorder()

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        abort(scope)

    await _get(recorder.tracing.application(cut))
    attributes = recorder.attributes("GET")
    assert attributes["error.type"] == "aborted"
    assert attributes["http.response.status_code"] == 200


async def test_health_checks_and_scrapes_are_no_traces() -> None:
    recorder = Recorder()
    await _get(recorder.tracing.application(_app()), "/healthz")
    assert recorder.spans == ()


async def test_what_is_not_sampled_decides_for_its_publisher_too() -> None:
    """Otherwise each message that the gateway sends would be sampled anew."""
    recorder = Recorder(sampled=False)
    found: list[Any] = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send
        found.append(trace.get_current_span().get_span_context())

    await _get(recorder.tracing.application(looking))
    (current,) = found
    assert current.is_valid
    assert not current.trace_flags.sampled
    assert not trace.get_current_span().get_span_context().is_valid
