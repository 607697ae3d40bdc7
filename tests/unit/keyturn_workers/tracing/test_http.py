"""A request's trace in the gateway: its route, and never its path, query or headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from keyturn_workers.http_server.client_connection import ERROR_CODE
from keyturn_workers.tracing.http import TracedApplication
from tests.unit.keyturn_workers.tracing.recorder import SPAN_ID, TRACE_ID, TRACEPARENT, Recorder

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = "GET /v1/projects/{project}/objects/{key}"
PATH = "/v1/projects/secret-project/objects/secret.pdf"


async def _serve(request: Request) -> Response:
    status = int(request.headers.get("answer", "200"))
    if status != 200:
        request.scope[ERROR_CODE] = "corrupt_object" if status >= 500 else "not_found"
    return Response(b"body", status)


def _app() -> ASGIApp:
    path = "/v1/projects/{project}/objects/{key:path}"
    return Starlette(routes=[Route(path, _serve), Route("/healthz", _serve)])


async def _get(app: ASGIApp, path: str = PATH, **headers: str) -> list[Message]:
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=secret-token",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_a_request_is_described_by_its_route() -> None:
    recorder = Recorder()
    await _get(TracedApplication(_app(), recorder.tracer), authorization="Bearer secret-key")
    assert recorder.span(NAME).kind is SpanKind.SERVER
    assert recorder.attributes(NAME) == {
        "http.request.method": "GET",
        "http.route": "/v1/projects/{project}/objects/{key}",
        "http.response.status_code": 200,
        "http.response.body.size": 4,
        "url.scheme": "http",
    }
    assert "secret" not in recorder.shown()


async def test_a_clients_context_is_a_link_and_no_parent() -> None:
    recorder = Recorder()
    await _get(TracedApplication(_app(), recorder.tracer), traceparent=TRACEPARENT)
    span = recorder.span(NAME)
    assert span.parent is None
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize(
    ("status", "code", "is_error"), [(404, "not_found", False), (502, "corrupt_object", True)]
)
async def test_a_refusal_has_its_code(status: int, code: str, is_error: bool) -> None:
    recorder = Recorder()
    await _get(TracedApplication(_app(), recorder.tracer), answer=str(status))
    attributes = recorder.attributes(NAME)
    assert attributes["keyturn.code"] == code
    assert attributes.get("error.type") == (code if is_error else None)
    assert (recorder.span(NAME).status.status_code is StatusCode.ERROR) is is_error


async def test_a_response_that_is_cut_off_is_an_error() -> None:
    recorder = Recorder()

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})

    await _get(TracedApplication(cut, recorder.tracer))
    attributes = recorder.attributes("GET")
    assert attributes["error.type"] == "aborted"
    assert attributes["http.response.status_code"] == 200


async def test_health_checks_and_scrapes_are_no_traces() -> None:
    recorder = Recorder()
    await _get(TracedApplication(_app(), recorder.tracer), "/healthz")
    assert recorder.spans == ()


async def test_what_is_not_sampled_decides_for_its_publisher_too() -> None:
    """Otherwise each message that the gateway sends would be sampled anew."""
    recorder = Recorder(sampled=False)
    found: list[Any] = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send
        found.append(trace.get_current_span().get_span_context())

    await _get(TracedApplication(looking, recorder.tracer))
    (context,) = found
    assert context.is_valid
    assert not context.trace_flags.sampled
    assert not trace.get_current_span().get_span_context().is_valid
