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
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tools.docs.diagrams import DiagramError, embed_diagrams
from tools.docs.site_check import external_in_site

ROOT: Final = Path(__file__).parents[2]
# Documents at the root, and the page of the site that each one is.
ROOT_PAGES: Final = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Those that have no page below `docs/`.
_GENERATED: Final = ("CONTRIBUTING.md", "CHANGELOG.md")
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
