"""A secret is written whole and for its owner alone, and read unchanged."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
import typer

from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.secrets import read_secret, write_secret

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("content", ["kt_secret é\n", b"\x00\xff"])
def test_a_secret_is_written_for_its_owner_alone(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "key"
    before = os.umask(0)
    try:
        write_secret(file, content)
    finally:
        os.umask(before)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_an_existing_file_is_replaced_by_force_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("precious")
    file.chmod(0o644)
    with pytest.raises(CommandError, match="key already exists"):
        write_secret(file, "new")
    assert file.read_text() == "precious"
    write_secret(file, "new", force=True)
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Into a folder that others may write, it could lead anywhere."""
    target = tmp_path / "target"
    target.write_text("precious")
    link = tmp_path / "key"
    link.symlink_to(target)
    with pytest.raises(CommandError):
        write_secret(link, "new")
    write_secret(link, "new", force=True)
    assert target.read_text() == "precious"
    assert not link.is_symlink()


def test_a_failure_leaves_neither_half_a_file_nor_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_secret(tmp_path / "key", "secret")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"x" * 4097, "longer than 4096 bytes"), (b"\xff", "not UTF-8 text"), (None, "No such file")],
)
def test_a_file_that_cannot_hold_a_secret_is_wrong_usage(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=said):
        read_secret(file)


def test_a_secret_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes("é\n".encode() + b"x" * 4093)
    assert read_secret(file) == "é\n" + "x" * 4093


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    """A process of that user still reads it."""
    file = tmp_path / "passwords"
    file.write_text("old")
    os.chown(file, 10001, 10002)
    write_secret(file, "new", force=True)
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (10001, 10002, 0o600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"secret\xff", "not UTF-8 text"),
        (b"secret" * 1000, "longer than 4096 bytes"),
    ],
)
def test_an_invalid_file_is_rejected_without_showing_its_content(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "api-key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=message) as caught:
        read_secret(file)
    assert "secret" not in str(caught.value)
