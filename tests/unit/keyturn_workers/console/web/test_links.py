"""Addresses of pages, and what they ask for (SPEC 16.2)."""

from __future__ import annotations

from typing import Literal

import pytest
from starlette.datastructures import QueryParams

from keyturn_workers.console.model.rows import SweepRef
from keyturn_workers.console.web import links


def test_paths_of_pages() -> None:
    assert links.project_path("a/b?c") == "/projects/a%2Fb%3Fc"
    assert links.sweep_path(SweepRef("acme", "id")) == "/sweeps/acme/id"
    assert links.sweep_path(SweepRef("*", "id")) == "/sweeps/_all/id"


def test_an_address_keeps_what_is_set_and_changes_what_is_named() -> None:
    params = QueryParams("text=a%26b&page=3&empty=")
    assert links.address("/projects", params, page=4) == "/projects?text=a%26b&page=4"
    assert links.address("/projects", params, page=None, text="") == "/projects"


@pytest.mark.parametrize(
    ("typed", "page"), [("", 1), ("0", 1), ("-1", 1), ("x", 1), ("7", 7), ("9" * 99, 1_000_000)]
)
def test_the_number_of_a_page(typed: str, page: int) -> None:
    assert links.page_of(QueryParams({"page": typed})) == page


def test_what_is_malformed_is_the_default() -> None:
    params = QueryParams({"state": "x", "text": " a " + "b" * 2000})
    assert links.choice_of(params, "state", Literal["any", "ok"], "any") == "any"
    assert links.choice_of(QueryParams("state=ok"), "state", Literal["any", "ok"], "any") == "ok"
    assert len(links.text_of(params, "text")) == 1024
