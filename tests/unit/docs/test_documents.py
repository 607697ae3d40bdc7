"""Files, tests and anchors that the documents name are really there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_DOCUMENTS = sorted(
    str(path.relative_to(_ROOT)) for path in (*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md"))
)
_TEST = re.compile(r"`(tests/[\w/*]+\.py)(?:::(\w+))?[^`]*`")
# Below one of the repository's folders. Pages about the past may name what is gone.
_PAST = re.compile(r"CHANGELOG\.md|docs/adr/.*")
_FILE = re.compile(r"`((?:contracts|workers|tools|examples|docs|tests|\.ci)/[\w./*-]*)(?:::\w+)?`")
_LINK = re.compile(r"\]\(((?!https?:)[^)#\s]*)#([^)\s]+)\)")


@cache
def _anchors(path: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    )


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_the_tests_that_a_document_names_exist(document: str) -> None:
    missing = []
    for pattern, test in _TEST.findall((_ROOT / document).read_text()):
        files = list(_ROOT.glob(pattern))
        if not files or (test and f"def {test}(" not in files[0].read_text()):
            missing.append(f"{pattern}::{test}")
    assert missing == []


@pytest.mark.parametrize("document", [name for name in _DOCUMENTS if not _PAST.match(name)])
def test_the_files_that_a_document_names_exist(document: str) -> None:
    named = _FILE.findall((_ROOT / document).read_text())
    assert [path for path in named if not any(_ROOT.glob(path))] == []


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_the_headings_that_a_document_links_to_exist(document: str) -> None:
    path = _ROOT / document
    missing = []
    for target, anchor in _LINK.findall(path.read_text()):
        linked = (path.parent / target).resolve() if target else path
        if anchor not in _anchors(linked):
            missing.append(f"{target}#{anchor}")
    assert missing == []
