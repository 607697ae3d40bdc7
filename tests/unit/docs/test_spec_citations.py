"""Every `SPEC n.m` in code and schemas is a heading of docs/spec.md."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_ROOT: Final = Path(__file__).parents[3]
_SPEC: Final = _ROOT / "docs" / "spec.md"
_FOLDERS: Final = ("contracts", "workers", "tools", "tests", "examples", "docs")
_SUFFIXES: Final = {".py", ".json", ".md"}
_SKIPPED: Final = {"__pycache__", ".venv", "vectors", "measured"}

_HEADING: Final = re.compile(r"^#{2,3} (?P<number>\d+(?:\.\d+)?) \S", re.MULTILINE)
# A citation may go on in the next line: of a docstring, of a comment, or of a string in JSON.
_GAP: Final = r"(?:[\s#]|\\n)+"
_NUMBER: Final = r"\d+(?:\.\d+)*"
_JOIN: Final = rf"(?:,{_GAP}(?:(?:and|or){_GAP})?|{_GAP}(?:to|and|or){_GAP}|[-–])"  # noqa: RUF001  # a range's dash
_CITATION: Final = re.compile(rf"\bSPEC{_GAP}(?P<cited>{_NUMBER}(?:{_JOIN}{_NUMBER})*)")
_RANGE: Final = re.compile(rf"({_NUMBER})(?:{_GAP}to{_GAP}|[-–])({_NUMBER})")  # noqa: RUF001  # as above


def headings(spec: str) -> list[str]:
    """The numbers of the specification's sections, in order."""
    return [found["number"] for found in _HEADING.finditer(spec)]


def unresolved(text: str, sections: Collection[str]) -> Iterator[tuple[int, str]]:
    """The citations that are no section: line and number.

    A list (`SPEC 4.4 to 4.6, 5.4`) cites each of its numbers, and a range all between its ends.
    """
    for found in _CITATION.finditer(text):
        cited = re.findall(_NUMBER, found["cited"])
        for first, last in _RANGE.findall(found["cited"]):
            cited += _between(first, last)
        line = text.count("\n", 0, found.start()) + 1
        yield from ((line, number) for number in cited if number not in sections)


def _between(first: str, last: str) -> list[str]:
    """The numbers inside a range of one chapter, or of whole chapters; the ends of any other."""
    if first.count(".") != last.count("."):
        return [first, last]
    chapter, _, start = first.rpartition(".")
    other, _, end = last.rpartition(".")
    if chapter != other:
        return [first, last]
    if int(start) >= int(end):
        return [f"{first} to {last}"]  # no range, so no section either
    dot = "." if chapter else ""
    return [f"{chapter}{dot}{number}" for number in range(int(start) + 1, int(end))]


def _citing_files() -> list[Path]:
    files = [_ROOT / "README.md", _ROOT / "SECURITY.md", _ROOT / "CONTRIBUTING.md"]
    files += [path for folder in _FOLDERS for path in sorted((_ROOT / folder).rglob("*"))]
    return [path for path in files if path.suffix in _SUFFIXES and _is_scanned(path)]


def _is_scanned(path: Path) -> bool:
    # This file and its broken samples apart.
    return path.is_file() and path != Path(__file__) and _SKIPPED.isdisjoint(path.parts)


def test_the_specification_numbers_its_sections_in_order() -> None:
    numbers = [tuple(map(int, number.split("."))) for number in headings(_SPEC.read_text())]
    assert [number for number in numbers if len(number) == 1] == [(n,) for n in range(1, 19)]
    for before, after in pairwise(numbers):
        assert after in {(before[0] + 1,), (*before[:1], sum(before[1:]) + 1)}


@pytest.mark.slow
def test_every_citation_is_a_section() -> None:
    sections = headings(_SPEC.read_text())
    wrong = [
        f"{path.relative_to(_ROOT)}:{line}: SPEC {number}"
        for path in _citing_files()
        for line, number in unresolved(path.read_text(), sections)
    ]
    assert not wrong


@pytest.mark.slow
def test_the_parser_finds_citations() -> None:
    assert sum(len(_CITATION.findall(path.read_text())) for path in _citing_files()) > 300


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Forged (SPEC 4.7).", ["4.7"]),
        ("No such chapter: SPEC 19.", ["19"]),
        ("Too deep: SPEC 4.3.1.", ["4.3.1"]),
        ("Last of a list: SPEC 8.2, 8.9.", ["8.9"]),
        ("After a good one: SPEC 12, and SPEC 7.6.", ["7.6"]),
        ("End of a range: SPEC 4.5 to 4.7, 5.4.", ["4.7"]),
        ("Backwards: SPEC 4.6 to 4.4.", ["4.6 to 4.4"]),
        ("In the next line (SPEC 4.5,\n    # 4.9).", ["4.9"]),
        (r'{"description": "In JSON: SPEC\n4.9."}', ["4.9"]),
        ("Two of them: SPEC 6.12 and 6.13.", ["6.12", "6.13"]),
        ("SPEC 4.4 to 4.6, 5.4; SPEC 8.2, 8.4; SPEC 2 to 6; SPEC 12's codes; SPEC 7.5.", []),
        ("What SPEC v1 says of RFC 9110, and a _SPEC 99.", []),
    ],
)
def test_a_made_up_citation_is_refused(text: str, wrong: list[str]) -> None:
    sections = headings(_SPEC.read_text())
    assert [number for _, number in unresolved(text, sections)] == wrong


def test_a_citation_of_a_section_that_is_removed_is_refused() -> None:
    spec = _SPEC.read_text()
    assert not list(unresolved("SPEC 4.2 to 4.6", headings(spec)))
    without = spec.replace("### 4.5 ", "### ")
    assert list(unresolved("one\ntwo SPEC 4.2 to 4.6", headings(without))) == [(2, "4.5")]
