"""A MkDocs hook: pages from the root's documents, links out of `docs/`, diagrams, no other host.

The documentation is read in two places. In the repository a link such as `../CHANGELOG.md` or
`../workers/…` works unchanged. The site holds only `docs/`: there such a link becomes one to
the page that is made from that document, or to the file in the hosted repository (`repo_url` of
mkdocs.yml), or plain text where no repository is named. A link to a file that does not exist is
left as it is, so that the strict build fails on it.

Blocks of Mermaid are replaced by the SVG files in `docs/diagrams/` (`tools/docs/diagrams.py`).
The build fails if one is out of date, or if a page would fetch anything from another host.
"""

import posixpath
import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tools.docs.diagrams import DiagramError, embed_diagrams

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

ROOT: Final = Path(__file__).parents[2]
# Documents at the root, and the page of the site that each one is.
ROOT_PAGES: Final = {
    "README.md": "index.md",
    "SECURITY.md": "security-policy.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Those that have no page below `docs/`.
_GENERATED: Final = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
_DOCS: Final = "docs/"
_FENCED: Final = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)
_INLINE: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_REFERENCE: Final = re.compile(r"^(\[[^\]\n]+\]: +)(\S+)$", re.MULTILINE)


def rewrite(markdown: str, source: str, page: str, repo_url: str | None) -> str:
    """The text of a page with its links as they work on the site.

    Args:
        markdown: The document.
        source: Where it is in the repository, such as `docs/howto/read.md`.
        page: Where it is on the site, such as `howto/read.md`.
        repo_url: The hosted repository, without a slash at its end, if there is one.
    """

    def inline(found: re.Match[str]) -> str:
        target = _target(found[2], source, page, repo_url)
        return found[1] if target is None else f"[{found[1]}]({target})"

    def reference(found: re.Match[str]) -> str:
        return found[1] + (_target(found[2], source, page, repo_url) or found[2])

    parts = _FENCED.split(markdown)  # every second one is a block of code
    parts[::2] = [_REFERENCE.sub(reference, _INLINE.sub(inline, part)) for part in parts[::2]]
    return "".join(parts)


def _target(link: str, source: str, page: str, repo_url: str | None) -> str | None:
    """Where a link leads on the site; None if it can lead nowhere there."""
    path, hash_sign, anchor = link.partition("#")
    if not path or path.startswith("/") or re.match(r"[a-z][a-z0-9+.-]*:", path):
        return link
    named = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if named in ROOT_PAGES:
        destination = ROOT_PAGES[named]
    elif named.startswith(_DOCS):
        destination = named.removeprefix(_DOCS)
    elif (ROOT / named).exists():
        return f"{repo_url}/blob/main/{named}{hash_sign}{anchor}" if repo_url else None
    else:
        return link
    relative = posixpath.relpath(destination, posixpath.dirname(page) or ".")
    return f"{relative}{hash_sign}{anchor}"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from the root's documents."""
    file = import_module("mkdocs.structure.files").File
    for name in _GENERATED:
        text = rewrite((ROOT / name).read_text(), name, ROOT_PAGES[name], _repo_url(config))
        files.append(file.generated(config, ROOT_PAGES[name], content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of one page, and put the pictures in place of its diagrams.

    Raises:
        mkdocs.exceptions.PluginError: A diagram has no picture, or one of an earlier text.
    """
    del files
    name = page.file.src_uri
    text = rewrite(markdown, _DOCS + name, name, _repo_url(config))
    try:
        return embed_diagrams(text)
    except DiagramError as error:
        raise _build_error(f"{name}: {error}") from error


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Keep the theme's script from asking the repository's host for numbers."""
    del page, config
    return output.replace(' data-md-component="source"', "")


def on_post_build(config: Any) -> None:
    """Fail if the site would fetch anything from another host.

    Raises:
        mkdocs.exceptions.PluginError: It would; the message lists what.
    """
    if found := external_in_site(Path(config.site_dir)):
        raise _build_error("the site needs other hosts:\n  " + "\n  ".join(found))


def _build_error(message: str) -> Exception:
    error: Exception = import_module("mkdocs.exceptions").PluginError(message)
    return error


def _repo_url(config: Any) -> str | None:
    url: str | None = config.repo_url
    return url.rstrip("/") if url else None


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
