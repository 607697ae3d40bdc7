"""The API key of legacy objects: read unchanged, since it cannot be checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from keyturn_workers.cli.app import app
from keyturn_workers.cli.secrets import read_v0_api_key

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"old", "old"),
        (b"old\n", "old"),
        (b"old\r\n", "old"),
        (b" old key \n", " old key "),
        ("schl\u00fcssel\u00a0\n".encode(), "schl\u00fcssel\u00a0"),
        (b"x" * 4096, "x" * 4096),
    ],
)
def test_only_the_line_break_is_removed(tmp_path: Path, content: bytes, key: str) -> None:
    file = tmp_path / "old-key"
    file.write_bytes(content)
    assert read_v0_api_key(file).get_secret_value() == key


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"secret\xff", "not UTF-8 text"),
        (b"secret" * 1000, "longer than 4096 bytes"),
    ],
)
def test_an_invalid_file_is_rejected_without_showing_its_content(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "old-key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=message) as caught:
        read_v0_api_key(file)
    assert "secret" not in str(caught.value)


def test_an_unreadable_file_leaves_no_generated_key_behind(tmp_path: Path) -> None:
    runner, saved = CliRunner(), tmp_path / "api-key"
    assert runner.invoke(app, ["init", "--dir", str(tmp_path)]).exit_code == 0
    settings = ["--env-file", str(tmp_path / "publisher.env")]
    key = ["--generate", "--save-to", str(saved)]
    enroll = ["enroll", "acme", *key, "--v0-api-key-file", str(tmp_path / "nowhere")]
    result = runner.invoke(app, [*settings, *enroll])
    assert result.exit_code == 2
    assert "nowhere: No such file" in result.stderr
    assert not saved.exists()
