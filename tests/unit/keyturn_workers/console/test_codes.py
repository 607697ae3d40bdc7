"""The console explains each code in the words of the reference."""

from __future__ import annotations

import re
from pathlib import Path

from keyturn.errors import all_errors
from keyturn_workers.console.codes import CODES, code_help

_REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "errors.md"


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def test_the_help_is_that_of_the_reference() -> None:
    section = _REFERENCE.read_text().partition("## Codes")[2].partition("\n## ")[0]
    rows = [line.strip()[1:-1].split("|") for line in section.splitlines() if line[:3] == "| `"]
    documented = {
        code.strip().strip("`"): (_plain(meaning.strip()), _plain(remedy.strip()))
        for code, _, _, meaning, remedy in rows
    }
    assert {code: (help_.meaning, help_.remedy) for code, help_ in CODES.items()} == documented


def test_each_code_has_its_help() -> None:
    assert CODES.keys() == all_errors().keys()


def test_an_unknown_code_is_shown_as_unknown() -> None:
    assert "does not know" in code_help("code_of_tomorrow").meaning
