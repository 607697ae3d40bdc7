"""The diagrams of the documentation: Mermaid text in the pages, SVG files next to them.

A hosted repository shows a block of Mermaid by itself. The site shows the SVG in its place, so
that reading needs no script and no other host. The SVG is rendered once, by
`python -m tools.docs.render_diagrams`, and committed; it carries the digest of its text, and
neither a test nor the build accepts it for another text. Its colors are the site's, light or
dark, and those of a light page where it is opened as a file.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
# The blocks that show the same diagram on the site, in a figure that may be scrolled.
_BLOCK: Final = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE: Final = re.compile(r"^ *accTitle: *(\S.*?) *$", re.MULTILINE)
_RENDER: Final = "run `python -m tools.docs.render_diagrams`"


class DiagramError(Exception):
    """A diagram has no title, or its SVG is missing or was made from another text."""


@dataclass(frozen=True, slots=True)
class Diagram:
    """One block of Mermaid.

    Attributes:
        title: Its `accTitle`, which names the file and is read out by screen readers.
        text: The Mermaid text, without the fence.
    """

    title: str
    text: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The title as a file name, such as `one-upload`."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def xml_id(self) -> str:
        """The id of its SVG on a page, which no heading has: the SVG's style is bound to it."""
        return f"diagram-{self.name}"

    def path(self, docs: Path = DOCS) -> Path:
        """Where its SVG is."""
        return docs / "diagrams" / f"{self.name}.svg"


def find_diagrams(markdown: str) -> list[Diagram]:
    """The diagrams of a page, in order.

    Raises:
        DiagramError: One has no `accTitle`.
    """
    return [_diagram(found[1]) for found in _BLOCK.finditer(markdown)]


def embed_diagrams(markdown: str, docs: Path = DOCS) -> str:
    """A page with each block of Mermaid replaced by its SVG.

    Raises:
        DiagramError: One has no title, or no SVG that was rendered from its text.
    """

    def embed(found: re.Match[str]) -> str:
        svg = read_svg(_diagram(found[1]), docs)
        return f'<figure class="diagram" tabindex="0">\n{svg}\n</figure>'

    return _BLOCK.sub(embed, markdown)


def read_svg(diagram: Diagram, docs: Path = DOCS) -> str:
    """The SVG of a diagram, on one line.

    Raises:
        DiagramError: It is missing, or was rendered from another text.
    """
    path = diagram.path(docs)
    if not path.is_file():
        raise DiagramError(f"{diagram.title}: no {path.name}: {_RENDER}")
    svg = path.read_text().strip()
    if f'data-source-sha256="{diagram.digest}"' not in svg:
        raise DiagramError(f"{diagram.title}: {path.name} shows an earlier text: {_RENDER}")
    return svg


def _diagram(text: str) -> Diagram:
    title = _TITLE.search(text)
    if title is None:
        raise DiagramError(f"a diagram has no accTitle: {text[:60]!r}")
    return Diagram(title[1], text)
