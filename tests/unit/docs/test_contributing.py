"""Every path in the map of CONTRIBUTING.md exists, where the map's own rule says it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parents[3]
_TEXT: Final = (_ROOT / "CONTRIBUTING.md").read_text()
_BASES: Final = {
    "*k*": _ROOT / "contracts" / "keyturn",
    "*w*": _ROOT / "workers" / "keyturn_workers",
}
_UNIT: Final = tuple(_ROOT / "tests" / "unit" / base.name for base in _BASES.values())
_MARK_OR_CODE: Final = re.compile(r"\*[kw]\*|`[^`]+`")
_PATH: Final = re.compile(r"[\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|toml|ya?ml)")


def _rows() -> list[list[str]]:
    table = _TEXT.split("\n## I want to change")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _missing(row: list[str]) -> list[str]:
    """The paths of a row that do not exist.

    In the second column a path is relative to the package that was marked last, to the
    repository, or to the folder of the path before it; in the third to the unit tests of a
    package, or to the repository.
    """
    _, source, checked = row
    missing = []
    base = base_folder = _ROOT
    for token in _MARK_OR_CODE.findall(source):
        path = token.strip("`")
        if token in _BASES:
            base = base_folder = _BASES[token]
        elif _PATH.fullmatch(path):
            found = [
                folder / path for folder in (base, _ROOT, base_folder) if (folder / path).exists()
            ]
            missing += [] if found else [path]
            base_folder = (
                (found[0] if found[0].is_dir() else found[0].parent) if found else base_folder
            )
    for token in _MARK_OR_CODE.findall(checked):
        path = token.strip("`")
        if _PATH.fullmatch(path) and not any((at / path).exists() for at in (*_UNIT, _ROOT)):
            missing.append(path)
    return missing


def test_the_map_has_rows_of_three_columns_that_name_files() -> None:
    rows = _rows()
    assert len(rows) > 20
    assert [row for row in rows if len(row) != 3 or "`" not in row[1]] == []


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0].replace(" ", "-"))
def test_the_paths_of_a_row_exist(row: list[str]) -> None:
    assert _missing(row) == []


@pytest.mark.parametrize(
    ("source", "checked", "missing"),
    [
        ("*k* `errors.py`; *w* `gateway/auth.py`", "`gateway/test_auth.py`", []),
        ("`tools/chaos/schedule.py`; `checks.py`; `make docs`", "`docs/`", []),
        ("*w* `errors.py`, `topology.py`", "`cli/`", ["topology.py"]),
        (
            "`tools/chaos/`",
            "`tests/unit/gone/`, `test_gone.py`",
            ["tests/unit/gone/", "test_gone.py"],
        ),
    ],
)
def test_a_path_that_does_not_exist_is_found(source: str, checked: str, missing: list[str]) -> None:
    assert _missing(["a case", source, checked]) == missing
