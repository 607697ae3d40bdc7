"""Every route of the application: what it needs, and what it must not do (SPEC 16.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from starlette.routing import Route

from tests.unit.keyturn_workers.console.web.shown import lived
from tools.harness.console_data import digest
from tools.harness.console_preview import client, preview_app

if TYPE_CHECKING:
    from keyturn_workers.console.model import Model

READ: Final = {
    "/healthz",
    "/static/{name:path}",
    "/events",
    "/",
    "/projects",
    "/projects/{project}",
    "/projects/{project}/evidence/{digest}",
    "/queues",
    "/audit",
}
"""What only reads, for everybody who is signed in."""
PAGES: Final = ("/", "/projects", "/projects/acme", "/queues", "/audit")


@pytest.fixture
def model() -> Model:
    return lived()


def test_these_are_the_routes_that_only_read(model: Model) -> None:
    routes = [route for route in preview_app(model).routes if isinstance(route, Route)]
    assert {route.path for route in routes if route.methods == {"GET", "HEAD"}} >= READ


@pytest.mark.parametrize("path", [*PAGES, "/healthz", "/nothing"])
def test_what_only_reads_takes_no_post(model: Model, path: str) -> None:
    answer = client(preview_app(model)).post(path)
    assert answer.status_code == (404 if path == "/nothing" else 405)


@pytest.mark.parametrize("path", [*PAGES, "/healthz"])
def test_a_head_request_has_the_headers_and_no_body(model: Model, path: str) -> None:
    answer = client(preview_app(model)).head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", PAGES)
def test_reading_a_page_changes_nothing_in_the_model(model: Model, path: str) -> None:
    before = (model.changes.version, model.sizes())
    assert client(preview_app(model, role="view")).get(path).status_code == 200
    assert (model.changes.version, model.sizes()) == before


def test_healthz_needs_no_session() -> None:
    answer = client(preview_app(lived(), signed_out=True)).get("/healthz")
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
