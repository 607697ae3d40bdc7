"""Every name that a document or an example imports from `keyturn` is there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_IMPORT = re.compile(r"^ *(from keyturn[\w.]* import (?:\([^)]*\)|[^\n#(]+))", re.MULTILINE)


def _imported() -> list[tuple[str, str]]:
    found = set()
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.py"),
    ):
        for statement in _IMPORT.findall(path.read_text(encoding="utf-8")):
            (node,) = ast.parse(statement).body
            assert isinstance(node, ast.ImportFrom)
            found |= {(node.module or "", alias.name) for alias in node.names}
    return sorted(found)


IMPORTED = _imported()


def test_documents_import_something() -> None:
    assert ("keyturn.publisher", "Publisher") in IMPORTED
    assert len(IMPORTED) > 20


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_a_documented_name_is_there(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)
