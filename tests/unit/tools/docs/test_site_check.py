"""A page of the site that fetches anything from another host is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.docs.site_hook import external_in_css, external_in_html, external_in_site

if TYPE_CHECKING:
    from pathlib import Path

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
