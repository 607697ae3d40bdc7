"""A page as a person sees it, and its markup, checked for what no page may have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from tools.harness.console_data import Scale, add_evidence, filled_model
from tools.harness.console_preview import client, preview_app

if TYPE_CHECKING:
    from keyturn_workers.console.auth import Role
    from keyturn_workers.console.model import Model

_VOID = {"meta", "link", "input", "br", "path", "rect", "circle"}
_BLOCKS = {"td", "th", "dt", "dd", "li", "p", "h1", "h2", "h3", "div", "caption", "summary"}
_HIDDEN = {"script", "style", "title", "head"}


@dataclass
class Shown:
    """A page: its markup, its text without repeated blanks, and the rows of its tables."""

    html: str
    text: str
    rows: list[str]


@dataclass
class _Reader(HTMLParser):
    parts: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    in_body: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert "style" not in given, f"an inline style: {tag}"
        handlers = [name for name in given if name.startswith("on")]
        assert not handlers, f"a handler: {tag}"
        assert not [name for name in given if name.startswith("hx-on")]
        if tag == "script":
            assert (given.get("src") or "").startswith("/static/"), "an inline script"
        assert tag != "style"
        for name in ("href", "src", "action"):
            address = given.get(name)
            assert address is None or not re.match(r"[a-z]+:|//", address), address
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag not in _VOID:
            self.open.append(tag)
        if tag in _BLOCKS:
            self.handle_data(" ")
        if tag == "tbody":
            self.in_body = True
        if tag == "tr" and self.in_body:
            self.rows.append("")
        if tag in {"td", "th"} and self.in_body and "role" in given:
            assert given["role"] in {"cell", "rowheader"}
            assert tag == "th" or given.get("data-label"), "a cell without a label"

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag, f"not closed: {tag}"
        if tag == "tbody":
            self.in_body = False

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            assert not data.strip(), "an inline script"
        if _HIDDEN.isdisjoint(self.open):
            self.parts.append(data)
            if self.in_body and self.rows:
                self.rows[-1] += data


@cache
def lived() -> Model:
    """A model of a deployment that has lived a little. Tests must not change it."""
    model = filled_model(Scale(uploads=300))
    add_evidence(model, "acme")
    return model


def read(html: str) -> Shown:
    """Read a page, and check what holds for each."""
    reader = _Reader()
    reader.feed(html)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids)), "an id twice"
    text = " ".join("".join(reader.parts).split())
    return Shown(html, text, [" ".join(row.split()) for row in reader.rows])


def shown(model: Model, path: str, *, role: Role = "operate") -> Shown:
    """The page of a path, as a person with this role gets it."""
    answer = client(preview_app(model, role=role)).get(path)
    assert answer.status_code == 200, answer.status_code
    return read(answer.text)
