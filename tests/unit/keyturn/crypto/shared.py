"""Vectors made by others, read where they are next to the repository.

They are never copied into the project: where the folder is missing, tests that need it
are skipped and say so.
"""

import json
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[4] / ".." / "shared" / "vectors"


def load(name: str) -> Any:
    """Return the JSON file `name`, or skip the test (or the module, while it is collected)."""
    path = _FOLDER / name
    if not path.is_file():
        pytest.skip(f"no shared vectors: {name}", allow_module_level=True)
    return json.loads(path.read_text(encoding="utf-8"))
