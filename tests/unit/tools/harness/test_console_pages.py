"""Reading the console's pages without a browser: forms, links, and kinds of pages."""

from __future__ import annotations

import pytest

from tools.harness.console_client import Form, forms_of, kind_of, links_of

_ID = "0b5c1f0e-2f6c-4a0e-9d55-0123456789ab"


def test_a_form_has_what_its_fields_hold() -> None:
    page = """
      <form action="/projects"><input name="text" value="a&amp;b"></form>
      <form method="POST" action="/sweeps/new"><input type="hidden" name="csrf" value="t">
        <input type="checkbox" name="repair" value="1"><input type="checkbox" name="parts"
        value="1" checked><input name="reason"></form>
    """
    assert forms_of(page) == [
        Form("/projects", "get", {"text": "a&b"}),
        Form("/sweeps/new", "post", {"csrf": "t", "parts": "1", "reason": ""}),
    ]


def test_links_are_those_of_anchors() -> None:
    assert links_of('<link href="x.css"><a href="/a">a</a><a>b</a><a href="?page=2">c</a>') == [
        "/a",
        "",
        "?page=2",
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "/"),
        ("/projects/acme", "/projects/{project}"),
        ("/projects/acme/rotate", "/projects/{project}/rotate"),
        (f"/sweeps/acme/{_ID}", "/sweeps/{project}/{id}"),
        (f"/sweeps/_all/{_ID}", "/sweeps/_all/{id}"),
        ("/dead/keyturn.upload.dead/0123456789abcdef", "/dead/{queue}/{digest}"),
        ("/projects?page=2&sort=age", "/projects?page&sort"),
    ],
)
def test_pages_that_differ_in_names_alone_are_of_one_kind(path: str, kind: str) -> None:
    assert kind_of(path) == kind
