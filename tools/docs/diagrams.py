"""The diagrams of the documentation: Mermaid text in the pages, SVG files next to them.

A hosted repository shows a block of Mermaid by itself. The site shows the SVG in its place, so
that reading needs no script and no other host. The SVG is rendered once, by
`python -m tools.docs.diagrams`, and committed; it carries the digest of its text, and
neither a test nor the build accepts it for another text. Its colors are the site's, light or
dark, and those of a light page where it is opened as a file.
"""

import argparse
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MERMAID: Final = "mermaid@11.17.2"
_COMMANDS: Final = ("npm", "chromium")
# Fonts of equal metrics, one of which almost every machine has: text fits the boxes everywhere.
_FONT: Final = 'Arial, "Liberation Sans", Helvetica, sans-serif'
# The colors of the site, with those of its light scheme for a reader of the file alone.
_TEXT: Final = "var(--md-default-fg-color, #212121)"
_LINE: Final = "var(--md-default-fg-color--light, #757575)"
_PAPER: Final = "var(--md-default-bg-color, #ffffff)"
_BOX: Final = "var(--md-code-bg-color, #f5f5f5)"
_FRAME: Final = "var(--md-default-fg-color--lighter, #bdbdbd)"
_COLORS: Final = f"""
text, tspan {{ fill: {_TEXT} !important; stroke: none; }}
.node rect, .node path, rect.actor, .labelBox {{
  fill: {_BOX} !important; stroke: {_LINE} !important;
}}
.flowchart-link, .messageLine0, .messageLine1 {{ stroke: {_LINE} !important; }}
.actor-line {{ stroke: {_FRAME} !important; }}
.messageText, .loopText, .loopText tspan {{
  stroke: {_PAPER} !important; stroke-width: 5px !important; paint-order: stroke;
}}
.loopLine {{ stroke: {_LINE} !important; fill: none !important; }}
.note {{ fill: {_BOX} !important; stroke: {_FRAME} !important; }}
.edgeLabel rect {{ fill: {_PAPER} !important; opacity: 1 !important; }}
marker path, marker polygon {{ fill: {_LINE} !important; stroke: {_LINE} !important; }}
marker circle {{ fill: {_LINE} !important; }}
text.sequenceNumber {{ fill: {_PAPER} !important; }}
"""
_PAGE: Final = """<!doctype html><meta charset="utf-8"><body><script>%(mermaid)s</script><script>
mermaid.initialize(%(settings)s);
(async () => {
  const drawn = [];
  for (const [id, text] of %(diagrams)s) drawn.push((await mermaid.render(id, text)).svg);
  return {drawn};
})().catch(error => ({error: String(error)})).then(result => {
  document.body.innerHTML = "<pre id='result'></pre>";
  document.getElementById("result").textContent = JSON.stringify(result);
});
</script>"""

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
# The blocks that show the same diagram on the site, in a figure that may be scrolled.
_BLOCK: Final = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE: Final = re.compile(r"^ *accTitle: *(\S.*?) *$", re.MULTILINE)
_RENDER: Final = "run `python -m tools.docs.diagrams`"


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


def render(diagrams: Sequence[Diagram]) -> list[str]:
    """The SVG of each diagram, with its digest.

    Raises:
        DiagramError: A command is missing, or Mermaid does not accept a diagram.
    """
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        raise DiagramError(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(_page(diagrams, _fetch_mermaid(Path(folder))))
        dom = _run(
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=60000",
            "--dump-dom",
            page.as_uri(),
            folder=folder,
        )
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    result = json.loads(html.unescape(found[1])) if found else {"error": "Chromium drew nothing"}
    if "error" in result:
        raise DiagramError(result["error"])
    return [_finish(svg, diagram) for svg, diagram in zip(result["drawn"], diagrams, strict=True)]


def _fetch_mermaid(folder: Path) -> str:
    packed = _run("npm", "pack", "--silent", MERMAID, folder=str(folder)).split()[-1]
    with tarfile.open(folder / packed) as package:
        script = package.extractfile("package/dist/mermaid.min.js")
        if script is None:
            raise DiagramError(f"{MERMAID} has no mermaid.min.js")
        return script.read().decode()


def _page(diagrams: Sequence[Diagram], mermaid: str) -> str:
    settings = {
        "startOnLoad": False,
        "securityLevel": "strict",
        "theme": "neutral",
        "fontFamily": _FONT,
        "themeCSS": _COLORS,
        # Text as SVG text: a label of HTML would take the page's font, and not fit its box.
        "htmlLabels": False,
        "flowchart": {"htmlLabels": False, "nodeSpacing": 40, "rankSpacing": 60},
        "sequence": {"actorMargin": 70, "width": 120, "wrap": True, "mirrorActors": False},
    }
    texts = [[diagram.xml_id, diagram.text] for diagram in diagrams]
    return _PAGE % {
        "mermaid": mermaid.replace("</script", "<\\/script"),
        "settings": json.dumps(settings),
        "diagrams": json.dumps(texts).replace("</", "<\\/"),
    }


def _finish(svg: str, diagram: Diagram) -> str:
    """The digest in the first tag; no line break, which Markdown might take for a block's end."""
    one_line = " ".join(svg.split())
    return one_line.replace("<svg ", f'<svg data-source-sha256="{diagram.digest}" ', 1) + "\n"


def _run(*command: str, folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiagramError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _is_current(diagram: Diagram) -> bool:
    try:
        read_svg(diagram)
    except DiagramError:
        return False
    return True


def main() -> None:
    """Render what has changed, and remove what no page shows."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.diagrams")
    parser.add_argument("--all", action="store_true", help="render every diagram again")
    every = parser.parse_args().all
    pages = sorted(DOCS.rglob("*.md"))
    diagrams = [diagram for page in pages for diagram in find_diagrams(page.read_text())]
    changed = [diagram for diagram in diagrams if every or not _is_current(diagram)]
    for diagram, svg in zip(changed, render(changed) if changed else [], strict=True):
        diagram.path().parent.mkdir(exist_ok=True)
        diagram.path().write_text(svg)
        print(diagram.path().relative_to(ROOT))
    for path in set(DOCS.glob("diagrams/*.svg")) - {diagram.path() for diagram in diagrams}:
        path.unlink()
        print(f"{path.relative_to(ROOT)} removed")


if __name__ == "__main__":
    try:
        main()
    except DiagramError as error:
        sys.exit(f"{error}")
