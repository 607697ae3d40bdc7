"""The shell of the pages (SPEC 16.2, 16.3), through the whole application or by itself."""

from __future__ import annotations

from tests.unit.keyturn_workers.console.web.fakes import client, make_app


def test_healthz_answers_without_a_session() -> None:
    answer = client(make_app(signed_out=True)).get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")
