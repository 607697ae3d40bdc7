"""One log line for each request: who asked for what, and with which outcome (SPEC 16).

A path is logged as it was sent, so that no control character reaches a terminal; a query is not
logged. What a page asks for by itself is logged as `debug`.
"""

import time
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyturn_workers.console.auth.person import SESSION_SCOPE
from keyturn_workers.console.auth.requests import SAFE_METHODS

_MAX_PATH_CHARACTERS: Final = 500
_QUIET_PATHS: Final = ("/static/", "/healthz", "/events")
_CANCELED: Final = 499

_log = structlog.get_logger()


class AccessLog:
    """ASGI middleware that writes the lines. It is outside of what knows the person."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _CANCELED

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _write(scope, status, time.perf_counter() - started)


def _write(scope: Scope, status: int, took_s: float) -> None:
    session = scope.get(SESSION_SCOPE)
    path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
    write = _log.debug if _is_quiet(scope) else _log.info
    write(
        "request",
        person=None if session is None else session.person.name,
        method=scope["method"],
        path=path.partition("?")[0][:_MAX_PATH_CHARACTERS],
        status=int(status),  # an `HTTPStatus` shows as more than its number
        took_ms=round(took_s * 1000, 1),
    )


def _is_quiet(scope: Scope) -> bool:
    if scope["method"] not in SAFE_METHODS:
        return False
    return scope["path"].startswith(_QUIET_PATHS) or "hx-request" in Headers(scope=scope)
