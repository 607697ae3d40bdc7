"""Every response has the headers that bound what a browser does with it (SPEC 16.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from keyturn_workers.console.auth.headers import SecurityHeaders

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def _fails(_: Request) -> Response:
    raise RuntimeError("as expected")


async def _kept(_: Request) -> Response:
    headers = {"Cache-Control": "public, max-age=1", "Content-Security-Policy": "default-src *"}
    return PlainTextResponse("x", headers=headers)


def _client(*, is_https: bool) -> TestClient:
    app = Starlette(routes=[Route("/fails", _fails), Route("/kept", _kept)])
    return TestClient(SecurityHeaders(app, is_https=is_https), raise_server_exceptions=False)


def test_errors_have_them_too() -> None:
    for path, status in (("/fails", 500), ("/nowhere", 404), ("/kept", 200)):
        response = _client(is_https=True).get(path)
        assert response.status_code == status
        policy = response.headers["content-security-policy"].split("; ")
        assert policy == [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_nothing_is_kept_unless_a_response_says_so() -> None:
    client = _client(is_https=False)
    assert client.get("/nowhere").headers["cache-control"] == "no-store"
    assert client.get("/kept").headers["cache-control"] == "public, max-age=1"


def test_plain_http_on_this_machine_promises_no_tls() -> None:
    assert "strict-transport-security" not in _client(is_https=False).get("/kept").headers
