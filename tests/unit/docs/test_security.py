"""SECURITY.md: a row for every attacker of SPEC 13, and tests that are really there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_TEXT = (_ROOT / "SECURITY.md").read_text()
_NAMED = re.compile(r"`(tests/[^`]*)`")
_NODE = re.compile(r"(?P<file>tests/[\w/]+\.py)(?:::(?P<test>test_\w+)(?:\[(?P<case>\w+)\])?)?")
_ATTACKERS = {
    "the bucket, to read",
    "the bucket, to write",
    "the broker, to read",
    "the broker, to write",
    "a project's API key",
    "a publisher's key",
    "a console's machine",
    "the network, where TLS is on",
    "a link to an object",
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


@cache
def _functions(file: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse((_ROOT / file).read_text())
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_attacker_has_a_row() -> None:
    assert set(_rows()) == _ATTACKERS
    assert all(_rows().values())


@pytest.mark.parametrize("attacker", sorted(_ATTACKERS))
def test_a_row_names_tests_and_no_whole_files(attacker: str) -> None:
    for named in _rows()[attacker]:
        node = _NODE.fullmatch(named)
        assert node is not None, named
        assert node["test"], named


@pytest.mark.slow
@pytest.mark.parametrize("named", sorted(set(_NAMED.findall(_TEXT))))
def test_every_named_test_exists(named: str) -> None:
    """The file, the test in it, and the scenario that a case is named after; none is skipped."""
    node = _NODE.fullmatch(named)
    assert node is not None, named
    functions = _functions(node["file"])
    if node["test"]:
        found = functions[node["test"]]
        assert not [mark for mark in map(ast.unparse, found.decorator_list) if "skip" in mark]
    if node["case"]:
        assert node["case"] in functions
