"""The page at `/docs` shows the description, and neither loads nor runs anything (SPEC 9.6)."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any, Final

from keyturn_workers.gateway import docs_page
from keyturn_workers.gateway.openapi import document

_EVIL: Final = "<script>alert(1)</script>&"


def _described(text: str) -> dict[str, Any]:
    """A description in which every text is this one."""
    parameter = {"name": text, "in": text, "description": text}
    operation = {
        "summary": text,
        "description": text,
        "parameters": [parameter],
        "responses": {text: {"description": text}},
    }
    return {
        "info": {"title": text, "version": text, "summary": text},
        "paths": {text: {"parameters": [parameter], "get": operation}},
    }


def test_every_text_of_the_description_is_escaped() -> None:
    page = docs_page.page(_described(_EVIL)).decode()
    assert "<script" not in page
    # The title twice, its version with it, the summary; then the operation with both parameters.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 5 + 3 + 2 * 3 + 2


def test_parameters_of_a_path_are_shown_at_each_of_its_operations() -> None:
    described = _described("x")
    described["paths"]["x"]["put"] = {"summary": "put", "responses": {}}
    described["paths"]["x"]["parameters"] = [{"name": "shared", "in": "path"}]
    page = docs_page.page(described).decode()
    assert page.count("<code>shared</code> (path)") == 2
    assert page.count("<section>") == 2


def test_an_operation_without_parameters_has_no_table_of_them() -> None:
    described = _described("x")
    del described["paths"]["x"]["parameters"], described["paths"]["x"]["get"]["parameters"]
    assert "<h3>Parameters</h3>" not in docs_page.page(described).decode()


def test_the_policy_allows_exactly_the_style_of_the_page() -> None:
    page = docs_page.page(document()).decode()
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = docs_page.HEADERS["content-security-policy"]
    assert f"style-src 'sha256-{digest}'" in policy


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets |= {value or "" for name, value in attrs if name in ("src", "href")}


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    """It is on the origin to which API keys are sent."""
    page = docs_page.page(document()).decode()
    loads = _Loads()
    loads.feed(page)
    assert loads.targets == {"/openapi.json"}
    assert not loads.tags & {"script", "link", "img", "iframe", "object"}
    policy = docs_page.HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    for path in document()["paths"]:
        assert path in page
