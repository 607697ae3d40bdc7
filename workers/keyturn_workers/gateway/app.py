"""The ASGI application: routes, refusals, counting (SPEC 9.6).

Every request passes one door: it is counted, and whatever is raised becomes a problem document
or, where an answer has begun, an aborted connection. How many are served at once is bounded
once it is known who asks (`ConcurrencyLimit`): who is refused takes no place.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn.errors import CodedError
from keyturn_workers.gateway import docs_page
from keyturn_workers.gateway.auth import AuthenticationError
from keyturn_workers.gateway.client_connection import (
    ClientGoneError,
    ClientSlowError,
    TrackedReceive,
    abort,
    drain_body,
    with_send_timeout,
)
from keyturn_workers.gateway.fair_shares import GatewayBusyError
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_routes import ObjectRoutes
from keyturn_workers.gateway.openapi import document
from keyturn_workers.gateway.paths import parse_object_path
from keyturn_workers.gateway.problems import problem, problem_from_error, status_for_code
from keyturn_workers.gateway.rotation_routes import RotationRoutes
from keyturn_workers.worker.health import Check, run_checks

OBJECTS: Final = "/v1/projects/{project}/objects/{key:path}"
ROTATIONS: Final = "/v1/projects/{project}/rotations"
ROTATION: Final = "/v1/projects/{project}/rotations/{rotation_id}"
_NOT_FOUND: Final = 404
_REQUEST_TIMEOUT: Final = 408
_UNAVAILABLE: Final = 503
_INTERNAL: Final = 500
_READY_FOR_S: Final = 1.0

_log = structlog.get_logger()


def application(
    objects: ObjectRoutes,
    rotations: RotationRoutes,
    metrics: GatewayMetrics,
    checks: Mapping[str, Check],
    *,
    idle_timeout_s: float,
) -> ASGIApp:
    """The whole application.

    Args:
        objects: Serves objects.
        rotations: Serves rotations.
        metrics: Counts, and is told at `/metrics`.
        checks: What `/readyz` asks, by name.
        idle_timeout_s: How long a client may take nothing.
    """
    readiness = _Readiness(checks)
    text = orjson.dumps(document())
    page = docs_page.page(document())

    async def alive(request: Request) -> Response:
        del request
        return _json({"status": "alive"})

    async def ready(request: Request) -> Response:
        del request
        results = await readiness.results()
        status = 200 if all(results.values()) else _UNAVAILABLE
        return _json({"ready": status != _UNAVAILABLE, "checks": results}, status)

    async def told(request: Request) -> Response:
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=None, headers={"content-type": content_type})

    async def described(request: Request) -> Response:
        del request
        return Response(text, media_type="application/json")

    async def documented(request: Request) -> Response:
        del request
        return Response(page, headers=docs_page.HEADERS)

    routes = [
        Route(OBJECTS, objects, methods=["GET", "HEAD", "PUT"], name="objects"),
        Route(ROTATIONS, rotations.post, methods=["POST"], name="rotations"),
        Route(ROTATION, rotations.get, methods=["GET"], name="rotation"),
        Route("/healthz", alive, name="healthz"),
        Route("/readyz", ready, name="readyz"),
        Route("/metrics", told, name="metrics"),
        Route("/openapi.json", described, name="openapi"),
        Route("/docs", documented, name="docs"),
    ]
    handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        HTTPException: _http_error,
        CodedError: ErrorHandler(metrics).answer,
        GatewayBusyError: _busy,
        ClientGoneError: _client_silent,
        Exception: _internal_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return LimitsMiddleware(app, metrics, idle_timeout_s)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, {"cache-control": "no-store"}, "application/json")


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = {**(error.headers or {}), **_closing(request.method)}
    if error.status_code == _NOT_FOUND:
        detail = "nothing is served at this path"
        return problem(_NOT_FOUND, detail, code="not_found", headers=headers)
    return problem(error.status_code, headers=headers)


def _closing(method: str) -> dict[str, str]:
    """What is left of a body is not read: the connection ends with the answer."""
    return {"connection": "close"} if method in ("PUT", "POST") else {}


class _Readiness:
    """What the checks said a moment ago: anybody may ask, and each asks the storage."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._lock = asyncio.Lock()
        self._at = -_READY_FOR_S
        self._results: dict[str, bool] = {}

    async def results(self) -> dict[str, bool]:
        """Which checks hold."""
        async with self._lock:
            if time.monotonic() - self._at >= _READY_FOR_S:
                self._results = await run_checks(self._checks)
                self._at = time.monotonic()
            return self._results


class ErrorHandler:
    """Answers to what is refused."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    async def answer(self, request: Request, error: CodedError) -> Response:
        """The problem document."""
        if status_for_code(error.code) >= _INTERNAL:
            project, key = parse_object_path(request.scope["raw_path"])
            told = {"project": project, "key": key, "code": error.code, "detail": error.detail}
            _log.warning("not served", **told)
            self._metrics.failures.labels(error.code).inc()
        headers = _closing(request.method)
        if isinstance(error, AuthenticationError):
            await asyncio.sleep(error.not_before - time.monotonic())
        # A client that waits for `100 Continue` sends nothing that would have to be read.
        if headers and "expect" not in request.headers and await drain_body(request.receive):
            headers = {}
        return problem_from_error(error, headers)


async def _busy(request: Request, error: GatewayBusyError) -> Response:
    del error
    headers = _closing(request.method)
    return problem(_UNAVAILABLE, "too many requests at once", headers=headers)


async def _client_silent(request: Request, error: ClientGoneError) -> Response:
    del request
    return problem(_REQUEST_TIMEOUT, str(error), headers={"connection": "close"})


async def _internal_error(request: Request, error: Exception) -> Response:
    del request, error  # whatever it was, its text is not for a caller
    return problem(_INTERNAL, "an internal failure", headers={"connection": "close"})


class LimitsMiddleware:
    """What every request passes."""

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
        answer = _TrackedSend(
            scope, with_send_timeout(send, scope, self._idle_timeout_s), self._metrics
        )
        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(scope, receive, answer)
        except Exception:  # noqa: BLE001  # the door: nothing passes it
            if not answer.given_up:
                _log.exception("unexpected failure", route=_route(scope))
            if not answer.ended:
                abort(scope)
        finally:
            counted = (_route(scope), _method(scope), str(answer.status or "none"))
            self._metrics.requests.labels(*counted).inc()


class _TrackedSend:
    """`send`, which remembers how far an answer is."""

    __slots__ = ("_began", "_metrics", "_scope", "_send", "ended", "given_up", "status")

    def __init__(self, scope: Scope, send: Send, metrics: GatewayMetrics) -> None:
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._began = time.perf_counter()
        self.status = 0
        self.ended = False
        self.given_up = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            waited_s = time.perf_counter() - self._began
            self._metrics.first_byte_s.labels(_route(self._scope)).observe(waited_s)
        try:
            await self._send(message)
        except (ClientGoneError, ClientSlowError):
            self.given_up = True
            raise
        self.ended = message["type"] == "http.response.body" and not message.get("more_body")


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return route.name if isinstance(route, Route) else "none"


def _method(scope: Scope) -> str:
    # A caller may send any word; only known ones become a label.
    method: str = scope["method"]
    return method if method in ("GET", "HEAD", "PUT", "POST") else "other"
