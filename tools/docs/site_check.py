"""What the built site would fetch from other hosts: nothing, or `make docs` fails.

Links that a reader may follow are no matter here; what a browser fetches by itself is.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

# Attributes that a browser follows without a click, by tag; `a` is not among them.
_FETCHED: Final = frozenset({"src", "srcset", "poster", "data", "action", "xlink:href"})
_HREF_FETCHED: Final = frozenset({"link", "image", "use", "base"})
# Links in the head that name another page, and fetch nothing.
_NAMES_ONLY: Final = frozenset({"canonical", "next", "prev", "alternate", "license", "author"})
_ELSEWHERE: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_CSS: Final = re.compile(
    r"url\(\s*['\"]?((?:https?:)?//[^'\")\s]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)",
    re.IGNORECASE,
)
# What the theme's script does by itself when it finds these: it draws Mermaid with a script of
# unpkg.com, and requests a repository's stars from api.github.com.
_TRIGGERS: Final = (("class", "mermaid"), ("data-md-component", "source"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        for name, value in values.items():
            fetched = name in _FETCHED or (name == "href" and tag in _HREF_FETCHED)
            if fetched and not _names_only(tag, values) and _is_elsewhere(value):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style":
                self.found += external_in_css(value)
        for name, word in _TRIGGERS:
            if word in values.get(name, "").split():
                self.found.append(f"<{tag} {name}={word}>: the theme's script uses another host")

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += external_in_css(data)


def external_in_html(text: str) -> list[str]:
    """What a page fetches from other hosts: the tags, or the addresses of its styles."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.found


def external_in_css(text: str) -> list[str]:
    """The addresses on other hosts in a style sheet."""
    return [first or second for first, second in _CSS.findall(text)]


def external_in_site(folder: Path) -> list[str]:
    """What the pages, styles and pictures of a built site fetch from other hosts."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".html", ".svg"}:
            what = external_in_html(path.read_text())
        elif path.suffix == ".css":
            what = external_in_css(path.read_text())
        else:
            continue
        found += [f"{path.relative_to(folder)}: {item}" for item in what]
    return found


def _names_only(tag: str, values: dict[str, str]) -> bool:
    return tag == "link" and set(values.get("rel", "").lower().split()) <= _NAMES_ONLY


def _is_elsewhere(value: str) -> bool:
    return any(_ELSEWHERE.match(part.strip()) for part in value.split(","))
