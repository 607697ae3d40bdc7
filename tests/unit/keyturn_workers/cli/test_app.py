"""Options of `keyturn` itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn_workers.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


runner = CliRunner()


def test_an_env_file_never_overrides_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "with space.env"
    file.write_text("KEYTURN_S3_BUCKET='x'\nKEYTURN_DEPLOYMENT='file'\nPATH='/nowhere'\n")
    monkeypatch.setenv("KEYTURN_DEPLOYMENT", "environment")
    path = os.environ["PATH"]
    # A one-character bucket name: the error proves that the setting was read from the file.
    result = runner.invoke(app, ["ls", "acme"], env={"KEYTURN_ENV_FILE": str(file)})
    assert "KEYTURN_S3_BUCKET is malformed" in result.stderr
    assert os.environ["KEYTURN_DEPLOYMENT"] == "environment"
    assert os.environ["PATH"] == path


_IMPORTED = """
import sys
from keyturn_workers.cli.app import app
try:
    app(["ls", "--help"])
except SystemExit:
    print(*sorted(sys.modules))
"""


@pytest.mark.slow
def test_a_command_imports_nothing_of_the_others() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "keyturn_workers.cli.objects" in imported
    assert not imported & {
        "faststream",
        "keyturn_workers.cli.serve",
        "keyturn_workers.cli.projects",
    }


def test_a_wrong_name_is_answered_with_similar_ones() -> None:
    result = runner.invoke(app, ["swep"])
    assert result.exit_code == 2
    assert "No such command 'swep'. Did you mean 'sweep'?" in result.stderr
