"""`keyturn keys`: the commands of the group."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from keyturn_workers.cli.app import app


@pytest.mark.parametrize("command", ["list", "check", "create", "import", "export-project"])
def test_a_command_is_in_the_group(command: str) -> None:
    result = CliRunner().invoke(app, ["keys", command, "--help"])
    assert result.exit_code == 0
    assert f"keyturn keys {command}" in result.stdout
