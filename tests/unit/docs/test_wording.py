"""Messages, help texts and pages of the console use one word for one thing (docs/glossary.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

_ROOT = Path(__file__).parents[3]
_FOLDERS = (_ROOT / "contracts" / "keyturn", _ROOT / "workers" / "keyturn_workers")
_AVOIDED: Final = {
    "import (once) or ingest (watch)": re.compile(
        r"\b(?:tak(?:e|es|en|ing)|took) (?:everything |objects )?in\b"
        r"|\bintake\b(?![ -](?:public )?(?:key|seed))",
        re.IGNORECASE,
    ),
    "respond": re.compile(r"\b(?:do|does|did) not answer\b|\bno answer\b", re.IGNORECASE),
}


def _messages(source: str) -> list[str]:
    """Strings of more than one word, without docstrings (the CLI's are in its reference)."""
    tree = ast.parse(source)
    statements = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in statements
        and " " in node.value.strip()
    ]


def _texts() -> dict[Path, list[str]]:
    """The texts that people are shown, by file."""
    modules = [path for folder in _FOLDERS for path in folder.rglob("*.py")]
    rendering = _ROOT / "workers" / "keyturn_workers" / "console" / "rendering"
    pages = [*rendering.rglob("*.html"), rendering / "static" / "console.js"]
    rules = (_ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")
    whole = [*pages, *rules, _ROOT / "docs" / "reference" / "cli.md"]
    return {
        **{path: _messages(path.read_text()) for path in modules},
        **{path: [re.sub(r"\s+", " ", path.read_text())] for path in whole},
    }


def _found(texts: list[str]) -> list[str]:
    """The words to use instead of those in the texts."""
    return [word for word, avoided in _AVOIDED.items() if any(map(avoided.search, texts))]


def test_no_text_for_people_has_an_avoided_word() -> None:
    texts = _texts()
    found = {str(path.relative_to(_ROOT)): _found(text) for path, text in texts.items()}
    assert {path: words for path, words in found.items() if words} == {}
    # Each kind of text was read.
    read = [text for each in texts.values() for text in each]
    for shown in (
        "nothing to ingest:",
        "Import all objects of a source.",
        "Control workers respond",
        "Not live: the console does not respond",
        "The storage does not respond.",
    ):
        assert any(shown in text for text in read), shown


def test_avoided_words_are_found_in_messages() -> None:
    messages = _messages(
        '"""A docstring: no answer."""\n'
        'log("nothing to take in: sources")\n'
        'raise E(f"no answer within {s} s, "\n    "the intake is full")\n'
        'f("sealed to an intake key", "docs", help="Take everything in.")\n'
    )
    ingest = ["import (once) or ingest (watch)"]
    assert {message: _found([message]) for message in messages} == {
        "nothing to take in: sources": ingest,
        "no answer within ": ["respond"],
        " s, the intake is full": ingest,
        "sealed to an intake key": [],
        "Take everything in.": ingest,
    }
