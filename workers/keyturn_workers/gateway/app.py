"""The ASGI application: its routes, errors as problem documents, metrics, CORS (SPEC 9.3, 9.6).

Every request passes `LimitsMiddleware`: it is counted, and any error becomes a problem document
or, if a response has started, a reset of the connection. Concurrent requests are limited after
authentication (`ConcurrencyLimit`), so requests that fail it use nothing.

The origins whose pages may read responses in a browser come from a setting. By default there are
none, and no response has a CORS header. Browsers send no cookies and no stored credentials, so a
page has only the API key or the link that it was given.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import cache, partial
from typing import Any, Final

import orjson
import structlog
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn.errors import CodedError
from keyturn.publisher.client import Publisher
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.gateway.auth import AuthenticationError, Authenticator
from keyturn_workers.gateway.deletes import DeleteRoutes
from keyturn_workers.gateway.description import DOCS_HEADERS, docs_page, openapi_json
from keyturn_workers.gateway.keys import KeysRoutes
from keyturn_workers.gateway.links import LinkRoutes
from keyturn_workers.gateway.listing import ListingRoutes
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.gateway.problems import problem, problem_from_error, status_for_code
from keyturn_workers.gateway.read import ObjectRoutes
from keyturn_workers.gateway.request import parse_object_path, parse_project
from keyturn_workers.gateway.rotations import RotationRoutes
from keyturn_workers.gateway.shares import ConcurrencyLimit, GatewayBusyError
from keyturn_workers.gateway.uploads import UploadRoutes
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.process.health import Check, run_checks
from keyturn_workers.process.http_server.client_connection import (
    ClientGoneError,
    ClientSlowError,
    TrackedReceive,
    abort,
    drain_body,
    note_error,
    with_send_timeout,
)
from keyturn_workers.process.settings import GatewaySettings

OBJECTS: Final = "/v1/projects/{project}/objects/{key:any_text}"
LISTING: Final = "/v1/projects/{project}/objects"
LINKS: Final = "/v1/projects/{project}/objects/{key:any_text}/links"
DELETES: Final = "/v1/projects/{project}/deletes"
KEYS: Final = "/v1/projects/{project}/keys"
ROTATIONS: Final = "/v1/projects/{project}/rotations"
ROTATION: Final = "/v1/projects/{project}/rotations/{rotation_id}"
_METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
_NO_CONTENT: Final = 204
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_METHOD_NOT_ALLOWED: Final = 405
_REQUEST_TIMEOUT: Final = 408
_UNAVAILABLE: Final = 503
_INTERNAL: Final = 500
_READINESS_MAX_AGE_S: Final = 1.0

_log = structlog.get_logger()


class _AnyText(PathConvertor):
    """Allows line breaks: Starlette's `path` would refuse such a key without authentication."""

    regex = "(?s:.*)"


class Gateway:
    """The routes of one gateway."""

    def __init__(
        self,
        settings: GatewaySettings,
        auth: Authenticator,
        opener: ObjectOpener,
        storage: Storage,
        sweeps: SweepStore,
        publisher: Publisher,
        metrics: GatewayMetrics,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self.limit = ConcurrencyLimit(
            settings.gateway_concurrency, settings.gateway_project_share, "requests"
        )
        self.uploads = UploadRoutes(settings, publisher, opener, storage, metrics)
        self.deletes = DeleteRoutes(settings, auth, self.limit, publisher, opener)
        self.rotations = RotationRoutes(settings, auth, self.limit, publisher, sweeps)
        self._listing = ListingRoutes(auth, self.limit, storage)
        self._keys = KeysRoutes(auth, settings.deployment)
        self._links = LinkRoutes(settings, auth, self.limit, opener)
        self._objects = ObjectRoutes(
            auth,
            self.limit,
            opener,
            {"PUT": self.uploads.put, "DELETE": self.deletes.delete},
            metrics,
            presign_plaintext=settings.presign_plaintext,
        )

    async def close(self) -> None:
        """Stop waiting for the outcomes of published requests."""
        for publishing in (self.rotations, self.uploads, self.deletes):
            await publishing.pending.close()

    def application(
        self, checks: Mapping[str, Check], permits_writes: Callable[[], bool]
    ) -> ASGIApp:
        """Return the whole application; `/readyz` runs the `checks`.

        `permits_writes` returns True if the newest marks of keyrings are known or not needed.
        """
        register_url_convertor("any_text", _AnyText())
        routes = [
            Route(OBJECTS, self._objects, methods=["GET", "HEAD", "PUT", "DELETE"], name="objects"),
            Route(LISTING, self._listing.get, methods=["GET"], name="listing"),
            # After the objects: any method but POST is for an object whose key ends with `/links`.
            Route(LINKS, self._links.post, methods=["POST"], name="links"),
            Route(DELETES, self.deletes.post, methods=["POST"], name="deletes"),
            Route(KEYS, self._keys.get, methods=["GET"], name="keys"),
            Route(ROTATIONS, self.rotations.post, methods=["POST"], name="rotations"),
            Route(ROTATION, self.rotations.get, methods=["GET"], name="rotation"),
            *_public_routes(self._metrics, _Readiness(checks), permits_writes),
        ]
        handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            HTTPException: _http_error,
            CodedError: partial(_coded_error, self._metrics),
            GatewayBusyError: _busy,
            ClientGoneError: _client_silent,
            Exception: _internal_error,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return LimitsMiddleware(
            _with_cors(app, self._settings.gateway_cors_origins),
            self._metrics,
            self._settings.gateway_idle_timeout_s,
        )


@cache
def _descriptions() -> tuple[bytes, bytes]:
    """Return the OpenAPI description, as JSON and as a page."""
    openapi = openapi_json()
    return openapi, docs_page(orjson.loads(openapi))


def _public_routes(
    metrics: GatewayMetrics, readiness: "_Readiness", permits_writes: Callable[[], bool]
) -> list[Route]:
    """Return the routes that need no API key."""
    openapi, docs = _descriptions()

    async def healthz(_: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(_: Request) -> Response:
        results = await readiness.results()
        is_ready = all(results.values())
        writes = is_ready and permits_writes()
        body = {"ready": is_ready, "writes": writes, "checks": results}
        return _json(body, 200 if is_ready else _UNAVAILABLE)

    async def prometheus(request: Request) -> Response:
        body, content_type = metrics.registry.render(request.headers.get("accept", ""))
        return Response(body, media_type=None, headers={"content-type": content_type})

    async def description(_: Request) -> Response:
        return Response(openapi, media_type="application/json")

    async def description_page(_: Request) -> Response:
        return Response(docs, headers=DOCS_HEADERS)

    async def root(_: Request) -> Response:
        return RedirectResponse("docs")  # relative: a proxy may serve the gateway below a path

    return [
        Route("/", root, name="root"),
        Route("/healthz", healthz, name="healthz"),
        Route("/readyz", readyz, name="readyz"),
        Route("/metrics", prometheus, name="metrics"),
        Route("/openapi.json", description, name="openapi"),
        Route("/docs", description_page, name="docs"),
    ]


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
    """Return headers that close the connection: the rest of a request's body is not read."""
    return {"connection": "close"} if method in ("PUT", "POST") else {}


class _Readiness:
    """Caches the checks' results: anyone may request them, and each check sends a request."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._lock = asyncio.Lock()
        self._checked_at = -_READINESS_MAX_AGE_S
        self._results: dict[str, bool] = {}

    async def results(self) -> dict[str, bool]:
        """Return the result of each check."""
        async with self._lock:
            if time.monotonic() - self._checked_at >= _READINESS_MAX_AGE_S:
                self._results = await run_checks(self._checks)
                self._checked_at = time.monotonic()
            return self._results


async def _coded_error(metrics: GatewayMetrics, request: Request, error: CodedError) -> Response:
    note_error(request.scope, error.code)
    if status_for_code(error.code) >= _INTERNAL:
        raw_path = request.scope["raw_path"]
        fields = {"project": parse_project(raw_path), "key": parse_object_path(raw_path)[1]}
        _log.warning("request failed", **fields, code=error.code, detail=error.detail)
        metrics.failures.labels(error.code).inc()
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
    """Wraps `send` to record the response's progress."""

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


def _with_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Return the application with CORS for these origins; `*` is every origin.

    CORS must wrap the error handlers: a page can read a problem document only if that has the
    headers too.
    """
    if not origins:
        return app
    return _Cors(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        # Mirrors the requested ones. A `*` in the response would not include `Authorization`.
        allow_headers=("*",),
        expose_headers=("*",),
        # A page of a public site may use a gateway in a private network.
        allow_private_network=True,
    )


class _Cors(CORSMiddleware):
    """Starlette's CORS middleware, with refusals as problem documents."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight: it needs no API key, and reads nothing."""
        response = super().preflight_response(request_headers)
        if response.status_code != _BAD_REQUEST:
            return response
        detail = "CORS does not allow this origin or method"
        return problem(_BAD_REQUEST, detail, headers={"vary": response.headers["vary"]})
