"""The shell of the pages (SPEC 16.2, 16.3), through the whole application or by itself."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException
from starlette.routing import Route

from tools.harness.console_data import empty_model
from tools.harness.console_preview import client, preview_app


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (400, "This request is malformed"),
        (403, "Not allowed"),
        (404, "Not found"),
        (405, "Method not allowed"),
        (500, "Something went wrong"),
        (503, "Not available now"),
    ],
)
def test_an_error_is_a_page_in_the_same_shell(status: int, title: str) -> None:
    async def fail(_request: object) -> None:
        raise HTTPException(status, detail="a <b>detail</b>")

    app = preview_app(empty_model())
    app.routes.append(Route("/fail", fail))
    answer = client(app).get("/fail")
    assert answer.status_code == status
    assert f"<h1>{title}</h1>" in answer.text
    assert "a &lt;b&gt;detail&lt;/b&gt;" in answer.text
    assert 'aria-label="Pages"' in answer.text


def test_the_text_of_an_unexpected_error_stays_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_request: object) -> None:
        raise RuntimeError("secret-detail")

    app = preview_app(empty_model())
    app.routes.append(Route("/fail", fail))
    answer = client(app).get("/fail")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret-detail" not in answer.text
    assert "RuntimeError: secret-detail" in caplog.text


def test_no_address_is_corrected_to_plain_http() -> None:
    """Behind a proxy, the console does not see that it is used by https."""
    answer = client(preview_app(empty_model())).get("/projects/", follow_redirects=False)
    assert answer.status_code == 404


def test_a_method_that_a_page_does_not_take_is_a_page_too() -> None:
    answer = client(preview_app(empty_model())).post("/healthz")
    assert answer.status_code == 405
    assert "Method not allowed" in answer.text
    assert answer.headers["allow"] == "GET, HEAD" or answer.headers["allow"] == "HEAD, GET"


def test_without_a_session_an_error_page_has_no_navigation() -> None:
    answer = client(preview_app(empty_model(), signed_out=True)).get("/nothing")
    assert answer.status_code == 404
    assert 'aria-label="Pages"' not in answer.text
    assert "<script" not in answer.text
