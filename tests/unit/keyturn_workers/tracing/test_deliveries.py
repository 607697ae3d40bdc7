"""A delivery's trace: its root has no parent, and what a sender chose is recorded with care."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.trace import SpanKind

from keyturn_workers.tracing.deliveries import TracedHandle
from keyturn_workers.tracing.scope import Value, current_scope
from tests.unit.keyturn_workers.amqp.deliveries import UPLOAD_ID, FakeMessage, Scene, message
from tests.unit.keyturn_workers.tracing.recorder import SPAN_ID, TRACE_ID, TRACEPARENT, Recorder

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

NAME = "process keyturn:upload.requested:keyturn.upload"
SERVER: dict[str, Value] = {"server.address": "broker", "server.port": 5672}


async def _delivered(recorder: Recorder, delivery: FakeMessage) -> list[bool]:
    """Whether its handler found a recorded trace."""
    found: list[bool] = []

    async def handle(_: AbstractIncomingMessage) -> None:
        found.append(current_scope() is not None)

    traced = TracedHandle("keyturn.upload", handle, recorder.sampling, SERVER)
    await traced(cast("AbstractIncomingMessage", delivery))
    return found


def _message(**changes: Any) -> FakeMessage:
    delivery = message(Scene(), headers=changes.pop("headers", None))
    for name, value in changes.items():
        setattr(delivery, name, value)
    return delivery


async def test_a_delivery_is_described_by_the_messaging_conventions() -> None:
    recorder = Recorder()
    delivery = _message()
    assert await _delivered(recorder, delivery) == [True]
    assert recorder.span(NAME).kind is SpanKind.CONSUMER
    assert recorder.attributes(NAME) == {
        "server.address": "broker",
        "server.port": 5672,
        "messaging.system": "rabbitmq",
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
    assert recorder.span(NAME).links == ()


async def test_the_senders_context_is_a_link_and_no_parent() -> None:
    recorder = Recorder()
    await _delivered(recorder, _message(headers={"traceparent": TRACEPARENT}))
    span = recorder.span(NAME)
    assert span.parent is None
    assert span.context is not None
    assert span.context.trace_id != TRACE_ID
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)
    assert link.context.is_remote


async def test_a_sender_cannot_have_a_trace_recorded() -> None:
    """The header says that it is sampled; the sampler here decides by itself."""
    recorder = Recorder(sampled=False)
    delivery = _message(headers={"traceparent": TRACEPARENT})
    assert await _delivered(recorder, delivery) == [False]
    assert recorder.spans == ()


@pytest.mark.parametrize("header", [b"bytes", 7, [TRACEPARENT], "00-0-0-00", TRACEPARENT + "x"])
async def test_another_header_is_ignored(header: object) -> None:
    recorder = Recorder()
    assert await _delivered(recorder, _message(headers={"traceparent": header})) == [True]
    assert recorder.span(NAME).links == ()


@pytest.mark.parametrize("routing_key", ["secret-project/secret.pdf", "", None])
async def test_a_routing_key_that_is_none_of_ours_is_not_recorded(routing_key: str | None) -> None:
    recorder = Recorder()
    await _delivered(recorder, _message(routing_key=routing_key, message_id="secret-project"))
    name = "process keyturn:other:keyturn.upload"
    assert recorder.attributes(name)["messaging.rabbitmq.destination.routing_key"] == "other"
    assert "messaging.message.id" not in recorder.attributes(name)
    assert "secret" not in recorder.shown()


async def test_a_retry_comes_by_the_queues_own_name() -> None:
    recorder = Recorder()
    await _delivered(recorder, _message(routing_key="keyturn.upload", redelivered=True))
    attributes = recorder.attributes("process keyturn.upload")
    assert attributes["messaging.destination.name"] == "keyturn.upload"
    assert attributes["keyturn.redelivered"] is True
