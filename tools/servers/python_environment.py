"""Python environments of servers that cannot share the project's, for `make doctor`.

Each has a folder below `environments/` with its `pyproject.toml` and `uv.lock`. uv creates the
environment below `.scratch`, which `make clean` removes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tools.servers.packages import CACHE, MissingPackagesError

_ROOT: Final = Path(__file__).parents[2]
PROJECTS: Final = Path(__file__).with_name("environments")


def locked_python(name: str) -> Path:
    """The interpreter of an environment, which is created or updated from its lock file.

    Args:
        name: Its folder below `environments/`.

    Raises:
        MissingPackagesError: it cannot be created here; the text says why.
    """
    own = _ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None:
        raise MissingPackagesError("uv is missing: `make doctor` installs it")
    folder = CACHE / name
    done = subprocess.run(
        [uv, "sync", "--locked", "--quiet", "--project", str(PROJECTS / name)],
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MissingPackagesError(
            f"cannot create the environment for {name}:\n{done.stderr[-2000:]}"
        )
    return folder / "bin" / "python"


def installed_version(name: str, package: str) -> str:
    """The version of a package in an environment that `locked_python` created."""
    script = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    done = subprocess.run(
        [str(CACHE / name / "bin" / "python"), "-c", script, package],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
