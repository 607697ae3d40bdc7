"""`keyturn sources` without any source (SPEC 17)."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from keyturn.crypto import to_base64
from keyturn_workers.cli.app import app


def test_without_a_source_it_names_the_setting() -> None:
    master_keys = json.dumps({"m1": to_base64(bytes(32))})
    env = {"KEYTURN_MASTER_KEYS": master_keys, "KEYTURN_S3_BUCKET": "bucket"}
    result = CliRunner().invoke(app, ["sources"], env=env)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("no sources: KEYTURN_SOURCES")
    assert len(result.stdout.splitlines()) == 1
