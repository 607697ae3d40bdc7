"""What a worker publishes in a trace: each message a span, the worker's own with its context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika import Message
from opentelemetry.trace import SpanKind

from keyturn.crypto import SigningKey
from keyturn.errors import AlreadyExistsError, BadSignatureError, StorageUnavailableError
from keyturn.trace_context import TraceContext
from keyturn_workers.amqp.publisher import NotConfirmedError
from keyturn_workers.tracing.publishing import TracedWorkerPublisher
from keyturn_workers.tracing.scope import Value, begin, recorded
from tests.unit.keyturn_workers.amqp.deliveries import STORED
from tests.unit.keyturn_workers.tracing.recorder import TRACEPARENT, Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable

KEY = SigningKey.from_seed(bytes(32))
SERVER: dict[str, Value] = {"server.address": "broker", "server.port": 5672}
SENT = Message(b"{}", headers={"traceparent": TRACEPARENT}, message_id="m")
DEAD_UPLOAD = "keyturn.upload.dead"


class _Broker:
    """Notes the messages; `lost` makes each publish fail."""

    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.messages: list[tuple[Message, str]] = []

    async def publish(self, message: Message, queue: str, **_: object) -> None:
        if self.lost:
            raise ConnectionError("amqp://kim:secret@broker")
        self.messages.append((message, queue))


def _publisher(broker: _Broker) -> TracedWorkerPublisher:
    return TracedWorkerPublisher(cast("Any", broker), "test", [KEY], server=SERVER)


async def _in_trace(recorder: Recorder, publishing: Awaitable[None]) -> None:
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)):
        await publishing


async def test_a_sweeps_own_message_carries_the_context_of_its_span() -> None:
    recorder, broker = Recorder(), _Broker()
    await _in_trace(recorder, _publisher(broker).send(b"{}", "keyturn.plan", 5))
    name = "send keyturn.plan.retry.5s"
    assert recorder.span(name).kind is SpanKind.PRODUCER
    assert recorder.attributes(name) == {
        **SERVER,
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "keyturn.plan.retry.5s",
        "messaging.rabbitmq.destination.routing_key": "keyturn.plan.retry.5s",
    }
    ((message, _),) = broker.messages
    context = TraceContext.parse(message.headers["traceparent"])
    span = recorder.span(name).context
    assert context is not None
    assert span is not None
    assert (context.trace_id, context.span_id) == (span.trace_id, span.span_id)


Copying = "Callable[[TracedWorkerPublisher], Awaitable[None]]"


@pytest.mark.parametrize(
    ("copying", "queue"),
    [
        (
            lambda p: p.schedule_retry(SENT, "keyturn.upload", StorageUnavailableError("x"), 0, 1),
            "keyturn.upload.retry.1s",
        ),
        (lambda p: p.defer(SENT, "keyturn.upload", 6), "keyturn.upload.retry.5s"),
        (lambda p: p.dead_letter(SENT, "keyturn.upload", AlreadyExistsError("k")), DEAD_UPLOAD),
        (
            lambda p: p.dead_letter(SENT, "keyturn.upload", BadSignatureError("k")),
            "keyturn.unsigned.dead",
        ),
    ],
)
async def test_a_copy_keeps_the_header_as_it_was_sent(copying: Any, queue: str) -> None:
    """So each attempt, and a replay, links to what the publisher sent."""
    recorder, broker = Recorder(), _Broker()
    await _in_trace(recorder, copying(_publisher(broker)))
    ((message, sent_to),) = broker.messages
    assert sent_to == queue
    assert message.headers["traceparent"] == TRACEPARENT
    assert recorder.span(f"send {queue}").kind is SpanKind.PRODUCER


async def test_outside_a_trace_nothing_is_added() -> None:
    broker = _Broker()
    await _publisher(broker).send(b"{}", "keyturn.plan", 0)
    ((message, _),) = broker.messages
    assert "traceparent" not in message.headers


@pytest.mark.parametrize("sending", ["event", "step"])
async def test_of_a_lost_broker_only_the_type_is_recorded(sending: str) -> None:
    recorder, broker = Recorder(), _Broker(lost=True)
    publisher = _publisher(broker)

    async def send() -> None:
        if sending == "event":
            await publisher.publish_event(STORED)
        else:
            await publisher.send(b"{}", "keyturn.plan", 0)

    with pytest.raises((NotConfirmedError, AttributeError)):
        await _in_trace(recorder, send())
    name = "send keyturn:upload.stored" if sending == "event" else "send keyturn.plan"
    assert recorder.attributes(name)["error.type"] in ("NotConfirmedError", "AttributeError")
    assert "secret" not in recorder.shown()
