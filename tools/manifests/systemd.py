"""Checks the units of `deploy/systemd` with systemd's own tools, where no systemd runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tools.servers import packages

SYSTEMD: Final = Path(__file__).parents[2] / "deploy" / "systemd"
_SYSTEM_UNITS: Final = Path("/usr/lib/systemd/system")
PROGRAM: Final = "opt/keyturn/bin/keyturn"


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = packages.path_of("systemd-analyze", "systemd")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )


def root_with(folder: Path, *units: Path) -> Path:
    """A file system for `verify`: the units, the system's targets, and the programs they name."""
    target = folder / "etc/systemd/system"
    target.mkdir(parents=True)
    for unit in units:
        shutil.copy(unit, target)
    system = folder / _SYSTEM_UNITS.relative_to("/")
    system.mkdir(parents=True)
    for unit in (*_SYSTEM_UNITS.glob("*.target"), *_SYSTEM_UNITS.glob("*.slice")):
        shutil.copy(unit, system, follow_symlinks=False)
    for name in (PROGRAM, "usr/bin/kill"):
        program = folder / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return folder


def problems(root: Path, unit: str) -> str:
    """What `systemd-analyze verify` says about a unit below a root; nothing if it is right."""
    done = _analyze("verify", f"--root={root}", "--man=no", unit)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


def exposure(root: Path, unit: str, threshold: int) -> tuple[bool, list[str]]:
    """Whether a unit is below a level of exposure (0 to 100), and what it leaves open."""
    done = _analyze(
        "security", "--offline=yes", f"--root={root}", f"--threshold={threshold}",
        "--json=short", "--no-pager", unit,
    )  # fmt: skip
    open_to = [
        one["name"] for one in json.loads(done.stdout) if one["set"] is False and one["exposure"]
    ]
    return done.returncode == 0, open_to
