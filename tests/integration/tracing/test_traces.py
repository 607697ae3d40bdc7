"""Complete traces on real servers, as an OTLP receiver gets them (SPEC 6.11, 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.tracing.application import LARGE, PROJECT, SMALL
from tests.integration.tracing.conftest import SPAN_ID, TRACE_ID, Lived

if TYPE_CHECKING:
    from tools.harness.otlp_receiver import ReceivedSpan, Trace

pytestmark = [
    pytest.mark.servers,
    pytest.mark.asyncio(loop_scope="module"),
]

UPLOAD = "process keyturn:upload.requested:keyturn.upload"


def _delivery(lived: Lived, name: str, request_id: str) -> tuple[ReceivedSpan, Trace]:
    """The root of a request's delivery, and its trace."""
    (root,) = [
        span
        for span in lived.received.roots(name)
        if span.attributes.get("keyturn.request.id") == request_id
    ]
    return root, lived.received.trace(root.trace_id)


def _sent(lived: Lived, name: str, request_id: str) -> ReceivedSpan:
    """The publisher's span of a request."""
    (span,) = [
        span
        for span in lived.received.spans
        if span.name == name and span.attributes.get("messaging.message.id") == request_id
    ]
    return span


def _ids(span: ReceivedSpan) -> tuple[str, str]:
    return span.trace_id, span.span_id


def _sent_by(lived: Lived, roots: list[ReceivedSpan], name: str) -> set[tuple[str, str]]:
    """The spans of what these deliveries sent."""
    traces = (lived.received.trace(root.trace_id) for root in roots)
    return {_ids(span) for trace in traces for span in trace.named(name)}


async def test_an_upload_is_two_traces_that_link_to_each_other(lived: Lived) -> None:
    request_id = lived.ids["stored"]
    root, trace = _delivery(lived, UPLOAD, request_id)
    sent = _sent(lived, "send keyturn:upload.requested", request_id)
    assert (root.service, sent.service) == ("keyturn-worker", "application")
    assert (root.kind, sent.kind) == ("CONSUMER", "PRODUCER")
    assert root.links == (_ids(sent),)
    assert root.trace_id != sent.trace_id
    # The keyring may be cached, or be read once more after a slow put.
    requests = [span.name for span in trace.spans if span.name.startswith("S3.")]
    assert set(requests) - {"S3.GetObject"} == {"S3.PutObject"}
    stored = {"INTERNAL store": [f"CLIENT {name}" for name in requests]}
    assert trace.shape() == {
        f"CONSUMER {UPLOAD}": [
            "INTERNAL admit",
            {"INTERNAL serve": ["INTERNAL open", stored, "INTERNAL settle"]},
            {"INTERNAL tell": ["PRODUCER send keyturn:upload.stored"]},
        ]
    }
    (put,) = trace.named("S3.PutObject")
    assert put.attributes["keyturn.storage.kind"] == "object"
    assert put.attributes["http.response.status_code"] == 200
    assert not any(span.is_error for span in trace.spans)
    # The publisher's own trace: its span, and below it the event, which links back.
    own = lived.received.trace(sent.trace_id)
    assert own.shape() == {
        "INTERNAL upload": [
            {
                "PRODUCER send keyturn:upload.requested": [
                    "CLIENT receive keyturn:upload.stored:keyturn.events.api"
                ]
            }
        ]
    }
    (event,) = trace.named("send keyturn:upload.stored")
    (received,) = own.named("receive keyturn:upload.stored:keyturn.events.api")
    assert received.links == (_ids(event),)


async def test_a_delivery_says_what_became_of_it(lived: Lived) -> None:
    root, _ = _delivery(lived, UPLOAD, lived.ids["stored"])
    attributes = root.attributes
    assert attributes["messaging.system"] == "rabbitmq"
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.destination.name"] == "keyturn:upload.requested:keyturn.upload"
    assert attributes["messaging.message.id"] == lived.ids["stored"]
    assert attributes["keyturn.outcome"] == "served"
    assert attributes["keyturn.served_as"] == "upload.stored"
    assert 0 <= attributes["keyturn.waited_s"] < 60
    assert attributes["server.address"] == "127.0.0.1"
    assert root.resource["keyturn.deployment"] == "test"


async def test_a_refused_upload_has_its_code_and_its_dead_letter(lived: Lived) -> None:
    request_id = lived.ids["refused"]
    root, trace = _delivery(lived, UPLOAD, request_id)
    assert root.is_error
    assert root.attributes["error.type"] == "already_exists"
    assert root.attributes["keyturn.outcome"] == "refused"
    assert trace.named("send keyturn.upload.dead")
    assert trace.named("send keyturn:upload.rejected")
    assert not any(span.status_message or span.events for span in trace.spans)
    sent = _sent(lived, "send keyturn:upload.requested", request_id)
    (received,) = lived.received.trace(sent.trace_id).named(
        "receive keyturn:upload.rejected:keyturn.events.api"
    )
    assert received.attributes["keyturn.code"] == "already_exists"
    # The letter has the header as the publisher sent it: a replay links to it too.
    assert lived.letter.message_id == request_id
    assert lived.letter.headers["traceparent"] == f"00-{sent.trace_id}-{sent.span_id}-01"


async def test_a_staged_upload_is_read_and_removed(lived: Lived) -> None:
    request_id = lived.ids["large"]
    _, trace = _delivery(lived, UPLOAD, request_id)
    (put,) = trace.named("S3.PutObject")
    assert put.attributes["http.request.body.size"] > 300_000
    kinds = {span.attributes.get("keyturn.storage.kind") for span in trace.named("S3.GetObject")}
    assert "staged body" in kinds
    assert trace.named("S3.DeleteObject")
    sent = _sent(lived, "send keyturn:upload.requested", request_id)
    assert lived.received.trace(sent.trace_id).named("stage body")


async def test_a_rotation_leads_by_links_to_its_pages(lived: Lived) -> None:
    rotated = lived.ids["rotated"]
    request = "process keyturn:rotation.requested:keyturn.control"
    root, trace = _delivery(lived, request, rotated)
    sent = _sent(lived, "send keyturn:rotation.requested", rotated)
    assert root.links == (_ids(sent),)
    assert trace.named("send keyturn:rotation.accepted")
    (first,) = trace.named("send keyturn.plan")
    steps = lived.received.roots("process keyturn.plan")
    (begun,) = [step for step in steps if _ids(first) in step.links]
    every_page = lived.received.roots("process keyturn.sweep")
    sent_first = _sent_by(lived, [begun], "send keyturn.sweep")
    (round_id,) = {
        page.attributes["keyturn.round.id"] for page in every_page if page.links[0] in sent_first
    }
    pages = [page for page in every_page if page.attributes["keyturn.round.id"] == round_id]
    assert {page.links[0] for page in pages} <= _sent_by(lived, steps, "send keyturn.sweep")
    rewrapped = [page for page in pages if page.attributes.get("keyturn.page.rewrapped")]
    assert sum(page.attributes["keyturn.page.rewrapped"] for page in rewrapped) == 2
    for page in rewrapped:
        assert lived.received.trace(page.trace_id).named("S3.CopyObject")
    ended = _sent_by(lived, steps, "send keyturn:rotation.completed")
    own = lived.received.trace(sent.trace_id)
    (end,) = own.named("receive keyturn:rotation.completed:keyturn.events.api")
    assert end.links[0] in ended


async def test_a_get_through_the_gateway_reads_the_storage(lived: Lived) -> None:
    roots = lived.received.roots("GET /v1/projects/{project}/objects/{key}")
    assert {root.service for root in roots} == {"keyturn-gateway"}
    (found,) = [root for root in roots if root.attributes["http.response.status_code"] == 200]
    assert found.kind == "SERVER"
    assert found.attributes["http.response.body.size"] == 900
    reads = lived.received.trace(found.trace_id).named("S3.GetObject")
    assert "object" in {span.attributes["keyturn.storage.kind"] for span in reads}
    (missing,) = [root for root in roots if root.attributes["http.response.status_code"] == 404]
    assert missing.attributes["keyturn.code"] == "not_found"
    assert not missing.is_error


async def test_a_put_through_the_gateway_links_to_its_worker(lived: Lived) -> None:
    (root,) = lived.received.roots("PUT /v1/projects/{project}/objects/{key}")
    trace = lived.received.trace(root.trace_id)
    (sent,) = trace.named("send keyturn:upload.requested")
    assert sent.attributes["messaging.message.id"] == lived.ids["put"]
    delivered, _ = _delivery(lived, UPLOAD, lived.ids["put"])
    assert delivered.links == (_ids(sent),)
    assert trace.named("receive keyturn:upload.stored:keyturn.events.gateway")


async def test_a_forged_context_is_a_link_and_never_a_parent(lived: Lived) -> None:
    root, _ = _delivery(lived, UPLOAD, lived.ids["sampled"])
    assert root.links == ((TRACE_ID, SPAN_ID),)
    assert lived.received.trace(TRACE_ID).spans == []
    for name in ("malformed", "nested"):
        root, _ = _delivery(lived, UPLOAD, lived.ids[name])
        assert root.links == ()


async def test_nothing_that_arrived_names_an_object_or_holds_a_secret(lived: Lived) -> None:
    """In the bytes of the requests, whatever field they are in."""
    texts = [body.decode("latin-1") for body in lived.received.bodies]
    assert lived.canaries.found(texts) == []
    for name in (PROJECT, SMALL, LARGE, "through", "X-Amz-", "Signature", "Bearer", lived.bucket):
        assert not any(name in text for text in texts), name
    assert any(lived.ids["stored"] in text for text in texts)


async def test_processes_with_traces_log_no_problem_of_theirs(lived: Lived) -> None:
    assert [line for line in lived.logs if '"event":"traces' in line] == []
    assert not [line for line in lived.logs if "opentelemetry" in line.lower()]
