"""The documentation's site: pictures of diagrams, links that work on it, and no other host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tools.docs.diagrams import (
    DOCS,
    Diagram,
    DiagramError,
    embed_diagrams,
    find_diagrams,
    read_svg,
)
from tools.docs.site_hook import (
    ROOT,
    ROOT_PAGES,
    external_in_css,
    external_in_html,
    external_in_site,
    rewrite,
)

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


HERE = (
    '<link rel="stylesheet" href="../assets/a.css">',
    '<link rel="canonical" href="https://keyturn.example/page/">',
    '<a href="https://semver.org">Semantic Versioning</a>',
    '<img src="data:image/png;base64,AA//">',
    '<svg xmlns="http://www.w3.org/2000/svg"><use href="#mark"/></svg>',
    "<p>url(https://cdn.example/a.png)</p>",
    "<style>a{background:url(a.png)}</style>",
)
ELSEWHERE = (
    '<script src="https://cdn.example/a.js"></script>',
    '<script src="//cdn.example/a.js"></script>',
    '<link rel="stylesheet" href="https://fonts.example/css">',
    '<link rel="preconnect" href="https://fonts.example" crossorigin>',
    '<img src="HTTP://cdn.example/a.png">',
    '<img srcset="a.png 1x, https://cdn.example/a.png 2x">',
    '<svg><image href="https://cdn.example/a.png"/></svg>',
    '<svg><image xlink:href="https://cdn.example/a.png"/></svg>',
    '<p style="background:url(https://cdn.example/a.png)">',
    "<style>@import 'https://fonts.example/css';</style>",
    "<svg><style>a{fill:url('//cdn.example/a.svg#b')}</style></svg>",
    '<iframe src="https://video.example/1"></iframe>',
    '<pre class="mermaid">',
    '<div class="md-source" data-md-component="source">',
)


@pytest.mark.parametrize("page", HERE)
def test_what_fetches_nothing_is_accepted(page: str) -> None:
    assert external_in_html(page) == []


@pytest.mark.parametrize("page", ELSEWHERE)
def test_what_fetches_from_another_host_is_found(page: str) -> None:
    assert len(external_in_html(page)) == 1


def test_a_style_sheet_is_searched() -> None:
    text = '@font-face{src:url("https://fonts.example/a.woff2")} a{background:url(../b.png)}'
    assert external_in_css(text) == ["https://fonts.example/a.woff2"]


def test_a_whole_site_is_searched(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text(ELSEWHERE[0])
    (tmp_path / "a.css").write_text("a{background:url(//cdn.example/a.png)}")
    (tmp_path / "index.html").write_text("".join(HERE))
    assert external_in_site(tmp_path) == [
        "a.css: //cdn.example/a.png",
        "page/index.html: <script src=https://cdn.example/a.js>",
    ]


REPOSITORY = "https://example.org/keyturn"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../../CHANGELOG.md#unreleased", "../changelog.md#unreleased"),
        ("../../README.md", "../index.md"),
        ("../../SECURITY.md", "../security-policy.md"),
        ("../concepts.md#leases", "../concepts.md#leases"),
        ("publish-python.md", "publish-python.md"),
        ("#below", "#below"),
        ("https://c2sp.org/chunked-encryption", "https://c2sp.org/chunked-encryption"),
        ("../../Makefile", f"{REPOSITORY}/blob/main/Makefile"),
        ("../../no-such-file.py", "../../no-such-file.py"),
    ],
)
def test_a_link_of_a_page_leads_to_the_same_place_on_the_site(link: str, expected: str) -> None:
    text = f"See [what [it] is]({link}), and more."
    rewritten = rewrite(text, "docs/howto/read.md", "howto/read.md", REPOSITORY)
    assert rewritten == f"See [what [it] is]({expected}), and more."


def test_a_link_of_a_root_document_leads_into_the_site() -> None:
    text = "[Read](docs/howto/read.md), [report](SECURITY.md)\n\n[up]: docs/howto/upgrade.md\n"
    rewritten = rewrite(text, "CHANGELOG.md", "changelog.md", None)
    links = "[Read](howto/read.md), [report](security-policy.md)"
    assert rewritten == f"{links}\n\n[up]: howto/upgrade.md\n"


def test_a_link_to_code_is_plain_text_where_no_repository_is_named() -> None:
    text = "[the `Makefile`](../Makefile), ![a picture](../Makefile)"
    assert rewrite(text, "docs/a.md", "a.md", None) == "the `Makefile`, ![a picture](../Makefile)"


def test_code_is_left_as_it_is() -> None:
    text = "before\n```md\n[x](../Makefile)\n```\n[x](../Makefile)"
    assert rewrite(text, "docs/a.md", "a.md", None) == "before\n```md\n[x](../Makefile)\n```\nx"


def test_rewriting_twice_changes_nothing_more() -> None:
    once = rewrite(
        (ROOT / "CONTRIBUTING.md").read_text(), "CONTRIBUTING.md", "contributing.md", None
    )
    assert rewrite(once, "docs/contributing.md", "contributing.md", None) == once


@pytest.mark.parametrize("name", ROOT_PAGES)
def test_the_documents_that_become_pages_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
