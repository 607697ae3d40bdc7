"""Every route of the application: what it needs, and what it must not do (SPEC 16.3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.testclient import TestClient

from keyturn.crypto import Secret
from keyturn_workers.console.auth.protection import Protection
from keyturn_workers.console.auth.requests import OwnOrigins
from keyturn_workers.console.auth.sessions import COOKIE, Account, Sessions
from keyturn_workers.console.auth.signed_out import SignedOut
from keyturn_workers.console.web.app import create_app
from keyturn_workers.console.web.errors import http_error_page
from tests.unit.keyturn_workers.console.web.shown import lived
from tools.harness.console_data import digest, made_up_id
from tools.harness.console_preview import client, preview_app, preview_context

if TYPE_CHECKING:
    from httpx2 import Response

    from keyturn_workers.console.auth import Role
    from keyturn_workers.console.model import Model

READ: Final = {
    "/healthz",
    "/static/{name:path}",
    "/events",
    "/",
    "/projects",
    "/projects/{project}",
    "/projects/{project}/evidence/{digest}",
    "/projects/{project}/rotate",
    "/projects/{project}/rotate/key",
    "/projects/{project}/delete",
    "/sweeps",
    "/sweeps/new",
    "/sweeps/{project}/{sweep_id}",
    "/sweeps/{project}/{sweep_id}/failures.txt",
    "/sweeps/{project}/{sweep_id}/failures.csv",
    "/keys",
    "/actions/{request_id}",
    "/dead",
    "/dead/{queue}/{digest}",
    "/dead/plans/{plan}",
    "/dead/jobs",
    "/dead/jobs/{job}",
    "/queues",
    "/audit",
}
"""What only reads: GET and HEAD."""

ACT: Final = {
    "/sweeps/new",
    "/keys/count",
    "/keys/count/cancel",
    "/projects/{project}/rotate/key",
    "/projects/{project}/rotate",
    "/projects/{project}/delete",
    "/actions/{request_id}/repeat",
    "/dead/read",
    "/dead/plans",
    "/dead/plans/{plan}",
    "/dead/jobs/{job}/stop",
}
"""What changes something: POST, by a person who may operate, with the token of the session."""

PAGES: Final = ("/", "/projects", "/projects/acme", "/dead", "/queues", "/audit")
_URL: Final = "https://console.test"
_VALUES: Final = {
    "project": "acme",
    "sweep_id": made_up_id("sweep 0"),
    "request_id": made_up_id("request"),
    "digest": digest("evidence acme 2"),
    "queue": "keyturn.upload.dead",
    "plan": "a-plan",
    "job": "a-job",
    "name": "console.css",
}


def path_of(route: str) -> str:
    """An address that the route serves."""
    for name, value in _VALUES.items():
        route = route.replace(f"{{{name}:path}}", value).replace(f"{{{name}}}", value)
    assert "{" not in route, f"no value for {route}"
    return route


def routes(model: Model) -> list[Route]:
    return [route for route in preview_app(model).routes if isinstance(route, Route)]


@pytest.fixture
def model() -> Model:
    return lived()


@dataclass
class Protected:
    """The pages behind the protection of the real console, and one session."""

    browser: TestClient
    csrf: str

    @classmethod
    def of(cls, model: Model, role: Role) -> Protected:
        sessions = Sessions(
            Secret(b"k" * 32), lambda *_: "stamp", SignedOut(None), session_s=1000, idle_s=100
        )
        cookie = sessions.begin(Account("password", "kim", "kim", role, "stamp"))
        session = sessions.read(cookie)
        assert session is not None
        protection = Middleware(
            Protection,
            sessions=sessions,
            origins=OwnOrigins.of(_URL, 443),
            open_paths=frozenset(),
            error_page=http_error_page,
            stopping=asyncio.Event(),
        )
        context = replace(preview_context(model), auth=_Auth([], [protection]))
        browser = TestClient(create_app(context), base_url=_URL, cookies={COOKIE: cookie})
        return cls(browser, session.csrf)

    def post(self, path: str, csrf: str, **headers: str) -> Response:
        return self.browser.post(
            path, data={"csrf": csrf}, headers={"Origin": _URL, **headers}, follow_redirects=False
        )


@dataclass
class _Auth:
    routes: list[Route]
    middleware: list[Middleware]


def test_each_route_is_one_of_these(model: Model) -> None:
    """A new route must be listed: then it is clear what it needs."""
    known = {("GET", path) for path in READ} | {("POST", path) for path in ACT}
    found = {
        (method, route.path)
        for route in routes(model)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert found == known


@pytest.mark.parametrize("route", sorted(ACT))
def test_what_changes_something_needs_the_role(model: Model, route: str) -> None:
    protected = Protected.of(model, "view")
    answer = protected.post(path_of(route), protected.csrf)
    assert answer.status_code == 403
    assert "Your role does not allow this." in answer.text


@pytest.mark.parametrize("route", sorted(ACT))
@pytest.mark.parametrize("csrf", ["", "of another session"])
def test_what_changes_something_needs_the_token_of_the_session(
    model: Model, route: str, csrf: str
) -> None:
    answer = Protected.of(model, "operate").post(path_of(route), csrf)
    assert answer.status_code == 403
    assert "This form belongs to another session." in answer.text


@pytest.mark.parametrize("route", sorted(ACT))
def test_what_changes_something_needs_a_page_of_the_console(model: Model, route: str) -> None:
    protected = Protected.of(model, "operate")
    answer = protected.post(path_of(route), protected.csrf, Origin="https://other.test")
    assert answer.status_code == 403
    assert "does not come from a page of the console" in answer.text


@pytest.mark.parametrize("route", sorted(READ - ACT))
def test_what_only_reads_takes_no_post(model: Model, route: str) -> None:
    assert client(preview_app(model)).post(path_of(route)).status_code == 405


@pytest.mark.parametrize("path", [*PAGES, "/healthz"])
def test_a_head_request_has_the_headers_and_no_body(model: Model, path: str) -> None:
    answer = client(preview_app(model)).head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", PAGES)
def test_reading_a_page_changes_nothing_in_the_model(model: Model, path: str) -> None:
    before = (model.changes.version, model.sizes())
    assert client(preview_app(model, role="view")).get(path).status_code == 200
    assert (model.changes.version, model.sizes()) == before


def test_healthz_needs_no_session(model: Model) -> None:
    answer = client(preview_app(model, signed_out=True)).get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_evidence_is_downloaded_as_a_file(model: Model) -> None:
    path = f"/projects/acme/evidence/{digest('evidence acme 2')}"
    answer = client(preview_app(model)).get(path)
    assert answer.json() == {"payload": "2"}
    assert answer.headers["content-type"] == "application/vnd.dsse.envelope.v1+json"
    assert answer.headers["content-disposition"].startswith('attachment; filename="acme-2-')


@pytest.mark.parametrize("name", ["evidence acme 4", "evidence globex 2"])
def test_evidence_that_does_not_verify_or_is_of_others_is_not_served(
    model: Model, name: str
) -> None:
    answer = client(preview_app(model)).get(f"/projects/acme/evidence/{digest(name)}")
    assert answer.status_code == 404
