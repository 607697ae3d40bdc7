"""The shell of the pages (SPEC 16.2, 16.3), through the whole application or by itself."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from keyturn_workers.console.web.rendering import compile_templates, environment, see_other
from tools.harness.console_data import empty_model
from tools.harness.console_preview import client, preview_app


def test_what_a_template_does_not_know_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        environment().from_string("{{ nothing }}").render()


def test_values_are_escaped() -> None:
    page = environment().from_string("{{ key|visible }} {{ key }}").render(key="<script>")
    assert "<script>" not in page


def test_a_name_is_escaped_wherever_the_shell_shows_it() -> None:
    hostile = '"><script>alert(1)</script>'
    page = client(preview_app(empty_model(), name=hostile)).get("/nothing").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_post_is_answered_by_another_page() -> None:
    answer = see_other("/sweeps")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sweeps")


def test_every_template_can_be_compiled_and_is_only_once() -> None:
    compile_templates()
    assert environment() is environment()
    assert environment().get_template("base.html") is environment().get_template("base.html")
