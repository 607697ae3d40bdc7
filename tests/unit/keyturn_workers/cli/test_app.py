"""Options of `keyturn` itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from keyturn_workers.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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
