"""Coverage-guided fuzzing of one harness: starts the engine, and parses its output.

The corpus is kept from run to run; what it holds at first are the harness's seeds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.fuzz.harnesses import ALL
from tests.fuzz.watch import FOLDER, ROOT, Finding, Report

_MEMORY_MIB: Final = 2048
_TIMEOUT_S: Final = 20
_MAX_BYTES: Final = 65536


def is_there() -> bool:
    """Whether the engine is installed (`--group fuzz`)."""
    return find_spec("atheris") is not None


def run(name: str, seed: int, seconds: int) -> Report:
    """Fuzz a harness for so long; what it finds ends it."""
    corpus, findings = FOLDER / "corpus" / name, FOLDER / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    words = _dictionary(name)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.engine",
            name,
            f"-max_total_time={seconds}",
            f"-seed={seed or 1}",
            f"-rss_limit_mb={_MEMORY_MIB}",
            f"-timeout={_TIMEOUT_S}",
            f"-max_len={_MAX_BYTES}",
            f"-artifact_prefix={findings}/{name}-",
            "-print_final_stats=1",
            *([f"-dict={words}"] if words else []),
            str(corpus),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return _report(name, seed, ended.returncode, ended.stdout + ended.stderr)


def _report(name: str, seed: int, status: int, output: str) -> Report:
    report = Report(f"{name}, guided", seed)
    executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", output)
    peak = re.search(r"stat::peak_rss_mb:\s+(\d+)", output)
    covered = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", output)
    report.inputs = int(executed[1]) if executed else 0
    report.rss_mib = (0, int(peak[1]) if peak else 0)
    if covered:
        report.outcomes["edges"], report.outcomes["corpus"] = map(int, covered[-1])
    if status:
        written = re.search(r"Test unit written to (\S+)", output)
        what = re.search(r"=== Uncaught Python exception: ===\n(.*)", output)
        file = str(Path(written[1]).relative_to(ROOT)) if written else ""
        report.findings.append(Finding(what[1][:300] if what else output[-600:], file))
    return report


def _dictionary(name: str) -> Path | None:
    words = ALL[name].words
    if not words:
        return None
    file = FOLDER / f"{name}.dict"
    quoted = (re.sub(r'(["\\])', r"\\\1", word) for word in words)
    file.write_text("".join(f'"{word}"\n' for word in quoted if word.isascii()))
    return file
