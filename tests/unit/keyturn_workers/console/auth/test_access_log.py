"""One line for each request, without its query, and without control characters (SPEC 16)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from keyturn_workers.console.auth.access_log import AccessLog
from keyturn_workers.console.auth.person import SESSION_SCOPE, Person, Session

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def _page(request: Request) -> Response:
    request.scope[SESSION_SCOPE] = Session("i", Person("kim", "view", "password:kim"), "c", 1)
    return PlainTextResponse("x", HTTPStatus.CREATED)


async def _fails(_: Request) -> Response:
    raise RuntimeError("as expected")


_APP = AccessLog(
    Starlette(
        routes=[
            Route("/fails", _fails),
            Route("/{path:path}", _page, methods=["GET", "POST"]),
        ]
    )
)


def _logged(method: str, path: str, **headers: str) -> dict[str, object]:
    with capture_logs() as logs:
        TestClient(_APP, raise_server_exceptions=False).request(method, path, headers=headers)
    (line,) = logs
    assert line.pop("took_ms") >= 0
    return dict(line)


def test_a_line_says_who_asked_for_what() -> None:
    assert _logged("POST", "/projects/acme?token=secret") == {
        "event": "request",
        "log_level": "info",
        "person": "kim",
        "method": "POST",
        "path": "/projects/acme",
        "status": 201,
    }


def test_a_status_is_a_number() -> None:
    assert f"{_logged('GET', '/acme')['status']!r}" == "201"


def test_control_characters_stay_escaped() -> None:
    assert _logged("GET", "/a%0a%1b[31mb")["path"] == "/a%0a%1b[31mb"


def test_a_failure_is_a_line_too() -> None:
    line = _logged("GET", "/fails")
    assert (line["status"], line["person"]) == (500, None)


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/static/a.css", {}), ("/healthz", {}), ("/events", {}), ("/", {"HX-Request": "true"})],
)
def test_what_pages_ask_for_by_themselves_is_for_debugging(
    path: str, headers: dict[str, str]
) -> None:
    assert _logged("GET", path, **headers)["log_level"] == "debug"
    assert _logged("POST", path, **headers)["log_level"] == "info"
