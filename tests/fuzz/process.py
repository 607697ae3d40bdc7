"""`make fuzz` as a test runs it: in a separate process, with a report to look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.fuzz.watch import ROOT, Report

if TYPE_CHECKING:
    from pathlib import Path


def fuzzed(folder: Path, *arguments: str, **env: str) -> Report:
    """The report of one part; a finding fails the test, and names the command for it."""
    file = folder / "report.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--json", str(file), *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    (fields,) = json.loads(file.read_text())
    return Report.from_json(fields)
