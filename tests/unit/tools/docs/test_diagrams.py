"""Each diagram of the documentation has a picture of its text, which needs no other file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tools.docs.diagrams import (
    DOCS,
    ROOT,
    Diagram,
    DiagramError,
    embed_diagrams,
    find_diagrams,
    read_svg,
)
from tools.docs.site_hook import external_in_html

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(DOCS.rglob("*.md"))
DIAGRAMS = [diagram for page in PAGES for diagram in find_diagrams(page.read_text())]
PAGE = "# Title\n\n```mermaid\nflowchart LR\n    accTitle: One upload\n    a --> b\n```\n\nText\n"


def test_the_documentation_has_diagrams_with_names_of_their_own() -> None:
    assert DIAGRAMS
    assert len({diagram.name for diagram in DIAGRAMS}) == len(DIAGRAMS)


@pytest.mark.parametrize("diagram", DIAGRAMS, ids=lambda diagram: diagram.name)
def test_a_committed_picture_was_rendered_from_the_text_of_its_page(diagram: Diagram) -> None:
    svg = read_svg(diagram)
    root = ET.fromstring(svg)  # noqa: S314 - our own file
    assert root.tag.endswith("svg")
    assert root.get("id") == diagram.xml_id
    assert "\n" not in svg
    assert not external_in_html(svg)


@pytest.mark.parametrize("diagram", DIAGRAMS, ids=lambda diagram: diagram.name)
def test_the_style_of_a_picture_applies_to_it_alone(diagram: Diagram) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", read_svg(diagram), re.DOTALL)
    rules = re.sub(r"@keyframes [\w-]+ ?\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", style)
    selectors = [
        one.strip() for many in re.findall(r"([^{}]+)\{", rules) for one in many.split(",")
    ]
    assert selectors
    assert [one for one in selectors if not one.startswith(f"#{diagram.xml_id}")] == []


def test_every_picture_is_shown_on_a_page() -> None:
    pictures = set(DOCS.glob("diagrams/*.svg"))
    assert pictures == {diagram.path() for diagram in DIAGRAMS}


def test_no_document_outside_of_the_site_has_a_diagram() -> None:
    assert not [page.name for page in ROOT.glob("*.md") if find_diagrams(page.read_text())]


def _write(docs: Path, digest: str) -> str:
    svg = f'<svg data-source-sha256="{digest}" id="one-upload"/>'
    (docs / "diagrams").mkdir(exist_ok=True)
    (docs / "diagrams" / "one-upload.svg").write_text(svg + "\n")
    return svg


def test_a_page_shows_the_picture_in_place_of_the_text(tmp_path: Path) -> None:
    svg = _write(tmp_path, find_diagrams(PAGE)[0].digest)
    shown = embed_diagrams(PAGE, tmp_path)
    figure = f'<figure class="diagram" tabindex="0">\n{svg}\n</figure>'
    assert shown == f"# Title\n\n{figure}\n\nText\n"


def test_a_picture_of_an_earlier_text_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, find_diagrams(PAGE)[0].digest)
    changed = PAGE.replace("a --> b", "a --> c")
    with pytest.raises(DiagramError, match="earlier text: run `python -m"):
        embed_diagrams(changed, tmp_path)


def test_a_diagram_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiagramError, match=r"no one-upload\.svg: run `python -m"):
        embed_diagrams(PAGE, tmp_path)


def test_a_diagram_without_a_title_is_refused() -> None:
    with pytest.raises(DiagramError, match="accTitle"):
        find_diagrams("```mermaid\nflowchart LR\n    a --> b\n```\n")
