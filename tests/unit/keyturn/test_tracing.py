"""What a publisher records, through the API of OpenTelemetry that its application configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode

from keyturn.messages import DeleteRequested, ObjectDeleted
from keyturn.tracing import PublisherTracing, links_to, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

REQUEST = DeleteRequested(
    request_id="2f6c9a0e-0000-4000-8000-000000000001",
    project="secret-project",
    key="secret/name.pdf",
    requested_at="2026-11-24T10:00:00.000000Z",
)
EVENT = ObjectDeleted(
    request_id=REQUEST.request_id,
    project=REQUEST.project,
    key="secret/name.pdf",
    at="2026-11-24T10:00:01.000000Z",
    publisher="api",
    request="0" * 64,
)
WORKER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class _Application:
    """An application with a provider of its own."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = PublisherTracing("api", self.provider)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


def test_a_publish_is_a_span_whose_context_goes_with_the_message() -> None:
    app = _Application()
    with app.tracing.sending(REQUEST, 300) as headers:
        pass
    (span,) = app.spans
    assert span.name == "send keyturn:delete.requested"
    assert span.kind is SpanKind.PRODUCER
    assert dict(span.attributes or {}) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "keyturn:delete.requested",
        "messaging.rabbitmq.destination.routing_key": "delete.requested",
        "messaging.message.id": REQUEST.request_id,
        "messaging.message.body.size": 300,
    }
    (link,) = links_to(headers["traceparent"])
    assert link.context.trace_id == span.context.trace_id
    assert link.context.span_id == span.context.span_id
    assert "secret" not in span.to_json()


def test_it_belongs_to_the_trace_of_the_application() -> None:
    app = _Application()
    tracer = app.provider.get_tracer("app")
    with tracer.start_as_current_span("handle order") as outer, app.tracing.sending(REQUEST, 300):
        pass
    sent = next(span for span in app.spans if span.kind is SpanKind.PRODUCER)
    assert sent.parent == outer.get_span_context()


def test_without_sampling_no_header_is_sent() -> None:
    app = _Application(ALWAYS_OFF)
    with app.tracing.sending(REQUEST, 300) as headers:
        assert dict(headers) == {}
    app.tracing.received(EVENT, WORKER)
    assert not app.spans


def test_of_a_failure_only_its_type_is_recorded() -> None:
    app = _Application()
    with pytest.raises(ConnectionError), app.tracing.sending(REQUEST, 300):
        raise ConnectionError("amqp://user:secret@host")
    (span,) = app.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert (span.attributes or {})["error.type"] == "ConnectionError"
    assert not span.events
    assert "secret" not in span.to_json()


def test_an_event_joins_the_trace_of_its_request_and_links_to_the_workers() -> None:
    app = _Application()
    with app.tracing.sending(REQUEST, 300):
        pass
    app.tracing.received(EVENT, WORKER)
    sent, received = app.spans
    assert received.name == "receive keyturn:object.deleted:keyturn.events.api"
    assert received.parent == sent.context
    (link,) = received.links
    assert (link.context.trace_id, link.context.span_id) == (
        int("4bf92f3577b34da6a3ce929d0e0e4736", 16),
        int("00f067aa0ba902b7", 16),
    )
    assert "secret" not in received.to_json()


@pytest.mark.parametrize("header", ["", "00-nothing-of-the-kind-01"])
def test_an_event_without_a_context_has_no_link(header: str) -> None:
    app = _Application()
    with app.tracing.sending(REQUEST, 300):
        pass
    app.tracing.received(EVENT, header)
    assert not app.spans[-1].links


def test_an_event_for_what_was_not_sent_here_is_not_recorded() -> None:
    app = _Application()
    app.tracing.received(EVENT, WORKER)
    assert not app.spans


TRACE, SPAN = WORKER[3:35], WORKER[36:52]


@pytest.mark.parametrize(
    ("flags", "is_sampled"), [("01", True), ("00", False), ("02", False), ("03", True)]
)
def test_a_context_in_the_form_of_w3c_is_read_and_written(flags: str, is_sampled: bool) -> None:
    (link,) = links_to(f"00-{TRACE}-{SPAN}-{flags}")
    context = link.context
    assert (context.trace_id, context.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert (context.is_remote, context.trace_flags.sampled) == (True, is_sampled)
    written = traceparent_of(NonRecordingSpan(context))
    assert written == f"00-{TRACE}-{SPAN}-{int(is_sampled):02x}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        b"00-" + TRACE.encode() + b"-" + SPAN.encode() + b"-01",
        {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        "",
        f"01-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01" * 1000,
        "00-" + "٣" * 32 + f"-{SPAN}-01",  # digits, but not of hex
    ],
)  # fmt: skip
def test_a_context_in_any_other_form_is_ignored(header: object) -> None:
    assert links_to(header) == ()


@given(st.text())
def test_no_text_of_a_sender_is_an_error(header: str) -> None:
    assert len(links_to(header)) <= 1
