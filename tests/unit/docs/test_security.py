"""SECURITY.md: a row for every attacker of SPEC 13, and tests that are really there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_TEXT = (_ROOT / "SECURITY.md").read_text()
_NAMED = re.compile(r"`(tests/[^`]*)`")
_ATTACKERS = {
    "the bucket, to read",
    "the bucket, to write",
    "the broker, to read",
    "the broker, to write",
    "a project's API key",
    "a publisher's key",
    "the secret of a publisher's session",
    "a console's machine",
    "the network, where TLS is on",
    "a link to an object",
    "an upload link",
    "the exchange of notifications, to write",
    "a source's bucket, to write",
    "an old API key",
    "the logs, metrics, traces",
    "the master key",
    "an operator's machine",
    "no key: only the address of a gateway or of a console",
    "a page in an operator's browser, or an account without a role",
}


def _rows() -> dict[str, list[str]]:
    """By attacker, what its row is shown by."""
    cells = [line.strip("|").split(" | ") for line in _TEXT.splitlines() if line.startswith("| ")]
    return {cell[0].strip(): _NAMED.findall(cell[2]) for cell in cells[2:]}


def test_every_attacker_has_a_row_of_one_line_that_names_tests() -> None:
    assert set(_rows()) == _ATTACKERS
    assert all(_rows().values())


@pytest.mark.parametrize("named", sorted(set(_NAMED.findall(_TEXT))))
def test_every_named_file_or_folder_holds_tests_that_run(named: str) -> None:
    path = _ROOT / named
    files = [path] if named.endswith(".py") else [*path.rglob("test_*.py")]
    assert files
    for file in files:
        text = file.read_text()
        assert re.search(r"^(async )?def test_", text, re.MULTILINE), file
        assert "@pytest.mark.skip(" not in text, file
