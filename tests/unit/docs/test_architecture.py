"""The map in docs/architecture.md: every package has a row, and every row is really there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parents[3]
_FOLDERS: Final = (_ROOT / "docs" / "architecture.md").read_text().split("\n## Folders")[1]
_PACKAGES: Final = {
    "contracts": _ROOT / "contracts" / "keyturn",
    "workers": _ROOT / "workers" / "keyturn_workers",
}


def _mapped(section: str) -> set[str]:
    """The paths in the first column of a section's table."""
    _, _, rest = _FOLDERS.partition(f"\n**`{section}/`**")
    rows = re.findall(r"^\| (`[^|]+) \|", rest.partition("\n**")[0], re.MULTILINE)
    return {path for row in rows for path in re.findall(r"`([^`]+)`", row)}


def _is_on_the_map(path: Path) -> bool:
    is_package = (path / "__init__.py").is_file()
    return is_package or (path.suffix == ".py" and not path.name.startswith("_"))


@pytest.mark.parametrize("section", _PACKAGES)
def test_every_part_of_a_package_has_a_row(section: str) -> None:
    package = _PACKAGES[section]
    prefix = "keyturn/" if section == "contracts" else ""
    parts = {
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in package.iterdir()
        if _is_on_the_map(path)
    }
    mapped = {path for path in _mapped(section) if path.startswith(prefix)}
    assert mapped - {"schemas/", "examples/", "asyncapi.json"} == parts
