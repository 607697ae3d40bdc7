"""What uv exports from the lock alone, without a network."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tools.supply.lock import EXTRAS, ROOT, SHIPPED

if TYPE_CHECKING:
    from pathlib import Path


def export(target: Path, how: str, *options: str) -> Path:
    """Write the shipped set to this file; skips where there is no uv."""
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None:
        pytest.skip("no uv here: `make setup` brings one")
    subprocess.run(
        [
            *(uv, "export", "--locked", "--offline", "--quiet", "--no-default-groups"),
            *("--package", SHIPPED, *(f"--extra={extra}" for extra in sorted(EXTRAS))),
            *("--format", how, "--output-file", str(target), *options),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return target
