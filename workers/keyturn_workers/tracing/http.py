"""One trace for each HTTP request of the gateway (SPEC 9, 6.11).

Its root is a span of kind SERVER without a parent: a client's `traceparent` is as unsigned as a
message's, so it becomes a link. The route is recorded, never the path, the query or a header.
"""

import re
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Tracer
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn.topology import TRACEPARENT_HEADER
from keyturn.trace_context import TraceContext
from keyturn.tracing import link_to
from keyturn_workers.http_server.client_connection import ERROR_CODE
from keyturn_workers.tracing import scope as tracing_scope

# Health checks and scrapes come every few seconds, and tell nothing.
_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"})
_OTHER: Final = "_OTHER"
_CONVERTOR: Final = re.compile(r":[a-z_]+\}")
_SERVER_ERROR: Final = 500


class TracedApplication:
    """Serves each request in a trace of its own, if that is sampled.

    Args:
        app: The gateway's application.
        tracer: Makes the spans.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        root = tracing_scope.begin(self._tracer, method, SpanKind.SERVER)
        if not root.is_recording():
            await self._unrecorded(root, scope, receive, send)
            return
        with tracing_scope.recorded(self._tracer, root):
            await _Exchange(root, method).serve(self._app, scope, receive, send)

    async def _unrecorded(
        self, root: trace.Span, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # The publisher asks OpenTelemetry for the current span: without one, it would decide anew
        # for each message that it sends.
        token = otel_context.attach(trace.set_span_in_context(root))
        try:
            await self._app(scope, receive, send)
        finally:
            otel_context.detach(token)


class _Exchange:
    """A recorded request and its response."""

    def __init__(self, root: trace.Span, method: str) -> None:
        self._root = root
        self._method = method
        self._status = 0
        self._sent_bytes = 0
        self._ended = False

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self._status = message["status"]
            elif message["type"] == "http.response.body":
                self._sent_bytes += len(message.get("body", b""))
                self._ended = not message.get("more_body", False)

        sender = TraceContext.parse(Headers(scope=scope).get(TRACEPARENT_HEADER))
        if sender is not None:
            link = link_to(sender)
            self._root.add_link(link.context, link.attributes)
        try:
            await app(scope, receive, sending)
        finally:
            self._describe(scope)

    def _describe(self, scope: Scope) -> None:
        root, route = self._root, scope.get("route")
        root.set_attributes(
            {
                "http.request.method": self._method,
                "url.scheme": "https" if scope.get("scheme") == "https" else "http",
                "http.response.body.size": self._sent_bytes,
            }
        )
        if isinstance(route, Route):
            template = _CONVERTOR.sub("}", route.path)
            root.update_name(f"{self._method} {template}")
            root.set_attribute("http.route", template)
        if self._status:
            root.set_attribute("http.response.status_code", self._status)
        code = scope.get(ERROR_CODE)
        if code is not None:
            root.set_attribute("keyturn.code", code)
        if not self._ended:
            tracing_scope.fail(root, code or "aborted")
        elif self._status >= _SERVER_ERROR:
            tracing_scope.fail(root, code or str(self._status))
