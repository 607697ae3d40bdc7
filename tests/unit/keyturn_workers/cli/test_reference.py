"""The reference of the command line is generated from the help of the commands.

To regenerate it: `python -m tests.unit.keyturn_workers.cli.test_reference`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[4]
_REFERENCE = _ROOT / "docs" / "reference" / "cli.md"
_HELP = "* `--help`: Show this message and exit.\n"


def generate() -> str:
    """The reference in Markdown, by typer's own generator, without `--help`, which all have."""
    arguments = ["keyturn_workers.cli.app", "utils", "docs", "--name", "keyturn"]
    done = subprocess.run(
        [sys.executable, "-m", "typer", *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    text = ("\n".join(lines) + "\n").replace(f"**Options**:\n\n{_HELP}\n", "")
    return text.replace(_HELP, "")


@pytest.mark.slow
def test_the_reference_matches_the_help_of_the_commands() -> None:
    assert _REFERENCE.read_text() == generate(), (
        "run `python -m tests.unit.keyturn_workers.cli.test_reference`"
    )


if __name__ == "__main__":
    _REFERENCE.write_text(generate())
