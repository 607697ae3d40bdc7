"""The ASGI application: routes, error handlers, metrics (SPEC 9.6).

Every request passes `LimitsMiddleware`: it is counted, and any error becomes a problem document
or, if a response has started, a reset of the connection. Concurrent requests are limited after
authentication (`ConcurrencyLimit`), so requests that fail it use nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import orjson
import structlog
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn.errors import CodedError
from keyturn_workers.gateway import docs_page
from keyturn_workers.gateway.auth import AuthenticationError
from keyturn_workers.gateway.cors import with_cors
from keyturn_workers.gateway.fair_shares import GatewayBusyError
from keyturn_workers.gateway.link_routes import LinkRoutes
from keyturn_workers.gateway.listing_routes import ListingRoutes
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_routes import ObjectRoutes
from keyturn_workers.gateway.openapi import document
from keyturn_workers.gateway.paths import parse_object_path, parse_project
from keyturn_workers.gateway.problems import problem, problem_from_error, status_for_code
from keyturn_workers.gateway.rotation_routes import RotationRoutes
from keyturn_workers.http_server.client_connection import (
    ClientGoneError,
    ClientSlowError,
    TrackedReceive,
    abort,
    drain_body,
    note_error,
    with_send_timeout,
)
from keyturn_workers.worker.health import Check, run_checks

OBJECTS: Final = "/v1/projects/{project}/objects/{key:any_text}"
LISTING: Final = "/v1/projects/{project}/objects"
LINKS: Final = "/v1/projects/{project}/objects/{key:any_text}/links"
ROTATIONS: Final = "/v1/projects/{project}/rotations"
ROTATION: Final = "/v1/projects/{project}/rotations/{rotation_id}"
_METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_METHOD_NOT_ALLOWED: Final = 405
_REQUEST_TIMEOUT: Final = 408
_UNAVAILABLE: Final = 503
_INTERNAL: Final = 500
_READINESS_MAX_AGE_S: Final = 1.0

_log = structlog.get_logger()


class _AnyText(PathConvertor):
    """Starlette's `path` takes no line break: a refusal of such a key would need no API key."""

    regex = "(?s:.*)"


def application(
    objects: ObjectRoutes,
    listing: ListingRoutes,
    links: LinkRoutes,
    rotations: RotationRoutes,
    metrics: GatewayMetrics,
    checks: Mapping[str, Check],
    *,
    idle_timeout_s: float,
    cors_origins: Collection[str] = (),
) -> ASGIApp:
    """Return the whole application.

    Args:
        objects: Serves objects.
        listing: Lists objects.
        links: Makes links to objects.
        rotations: Serves rotations.
        metrics: The gateway's metrics, served at `/metrics`.
        checks: What `/readyz` checks, by name.
        idle_timeout_s: How long a client may read nothing.
        cors_origins: The origins whose pages may read responses in a browser.
    """
    readiness = _Readiness(checks)
    openapi_json = orjson.dumps(document())
    docs_html = docs_page.page(document())

    async def healthz(request: Request) -> Response:
        del request
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        del request
        results = await readiness.results()
        status = 200 if all(results.values()) else _UNAVAILABLE
        return _json({"ready": status != _UNAVAILABLE, "checks": results}, status)

    async def prometheus(request: Request) -> Response:
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=None, headers={"content-type": content_type})

    async def openapi(request: Request) -> Response:
        del request
        return Response(openapi_json, media_type="application/json")

    async def docs(request: Request) -> Response:
        del request
        return Response(docs_html, headers=docs_page.HEADERS)

    register_url_convertor("any_text", _AnyText())
    routes = [
        Route(OBJECTS, objects, methods=["GET", "HEAD", "PUT", "DELETE"], name="objects"),
        Route(LISTING, listing.get, methods=["GET"], name="listing"),
        # After the objects: only a POST is not one of an object whose key ends with `/links`.
        Route(LINKS, links.post, methods=["POST"], name="links"),
        Route(ROTATIONS, rotations.post, methods=["POST"], name="rotations"),
        Route(ROTATION, rotations.get, methods=["GET"], name="rotation"),
        Route("/healthz", healthz, name="healthz"),
        Route("/readyz", readyz, name="readyz"),
        Route("/metrics", prometheus, name="metrics"),
        Route("/openapi.json", openapi, name="openapi"),
        Route("/docs", docs, name="docs"),
    ]
    handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        HTTPException: _http_error,
        CodedError: ErrorHandler(metrics).handle,
        GatewayBusyError: _busy,
        ClientGoneError: _client_silent,
        Exception: _internal_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return LimitsMiddleware(with_cors(app, cors_origins), metrics, idle_timeout_s)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, {"cache-control": "no-store"}, "application/json")


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = _close_if_body(request.method)
    if error.status_code == _NOT_FOUND:
        detail = "there is no such path"
        return problem(_NOT_FOUND, detail, code="not_found", headers=headers)
    if error.status_code == _METHOD_NOT_ALLOWED:
        allow = {"allow": ", ".join(_allowed_methods(request))}
        if request.method == "OPTIONS":
            return Response(None, _NO_CONTENT, allow)
        return problem(error.status_code, headers={**headers, **allow})
    return problem(error.status_code, headers={**(error.headers or {}), **headers})


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes of the path: several may share it."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = (route for route in routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({"OPTIONS"}.union(*(route.methods or () for route in matching)))


def _close_if_body(method: str) -> dict[str, str]:
    """Close the connection after the response: the rest of a request's body is not read."""
    return {"connection": "close"} if method in ("PUT", "POST") else {}


class _Readiness:
    """Caches the checks' results: anyone may request them, and each check sends a request."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._lock = asyncio.Lock()
        self._checked_at = -_READINESS_MAX_AGE_S
        self._results: dict[str, bool] = {}

    async def results(self) -> dict[str, bool]:
        """Return which checks pass."""
        async with self._lock:
            if time.monotonic() - self._checked_at >= _READINESS_MAX_AGE_S:
                self._results = await run_checks(self._checks)
                self._checked_at = time.monotonic()
            return self._results


class ErrorHandler:
    """Turns errors of Keyturn into responses."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    async def handle(self, request: Request, error: CodedError) -> Response:
        """Return the problem document."""
        note_error(request.scope, error.code)
        if status_for_code(error.code) >= _INTERNAL:
            raw_path = request.scope["raw_path"]
            fields = {"project": parse_project(raw_path), "key": parse_object_path(raw_path)[1]}
            _log.warning("request failed", **fields, code=error.code, detail=error.detail)
            self._metrics.failures.labels(error.code).inc()
        headers = _close_if_body(request.method)
        if isinstance(error, AuthenticationError):
            await asyncio.sleep(error.not_before - time.monotonic())
        # A client that waits for `100 Continue` has not sent its body.
        if headers and "expect" not in request.headers and await drain_body(request.receive):
            headers = {}
        return problem_from_error(error, headers)


async def _busy(request: Request, error: GatewayBusyError) -> Response:
    del error
    headers = _close_if_body(request.method)
    return problem(_UNAVAILABLE, "too many concurrent requests", headers=headers)


async def _client_silent(request: Request, error: ClientGoneError) -> Response:
    del request
    return problem(_REQUEST_TIMEOUT, str(error), headers={"connection": "close"})


async def _internal_error(request: Request, error: Exception) -> Response:
    del request, error  # its text may contain anything
    return problem(_INTERNAL, "internal error", headers={"connection": "close"})


class LimitsMiddleware:
    """Counts each request, limits how slow its client may be, and handles any error."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, idle_timeout_s: float) -> None:
        self._app = app
        self._metrics = metrics
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        receive = TrackedReceive(receive)
        tracked = _TrackedSend(
            scope, with_send_timeout(send, scope, self._idle_timeout_s), self._metrics
        )
        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(scope, receive, tracked)
        except Exception:  # noqa: BLE001  # the outermost handler
            if not tracked.client_gone:
                _log.exception("unexpected failure", route=_route(scope))
            if not tracked.ended:
                abort(scope)
        finally:
            labels = (_route(scope), _method(scope), str(tracked.status or "none"))
            self._metrics.requests.labels(*labels).inc()


class _TrackedSend:
    """Wraps `send` to record how far the response is."""

    __slots__ = ("_metrics", "_scope", "_send", "_started_at", "client_gone", "ended", "status")

    def __init__(self, scope: Scope, send: Send, metrics: GatewayMetrics) -> None:
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._started_at = time.perf_counter()
        self.status = 0
        self.ended = False
        self.client_gone = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            elapsed_s = time.perf_counter() - self._started_at
            self._metrics.first_byte_s.labels(_route(self._scope)).observe(elapsed_s)
        try:
            await self._send(message)
        except (ClientGoneError, ClientSlowError):
            self.client_gone = True
            raise
        self.ended = message["type"] == "http.response.body" and not message.get("more_body")


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return route.name if isinstance(route, Route) else "none"


def _method(scope: Scope) -> str:
    # A client may send any method. Only known ones become a label.
    method: str = scope["method"]
    return method if method in _METHODS else "other"
