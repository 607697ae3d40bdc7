"""The password file is read as it is written, and again when it changes (SPEC 16.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher, Type
from structlog.testing import capture_logs

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.password_file import (
    PasswordFile,
    User,
    format_users,
    is_user_name,
    parse_users,
)

if TYPE_CHECKING:
    from pathlib import Path

# With a fixed salt: parameters of tests are the same in every process.
_HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("a password", salt=bytes(16))
_OF_ANOTHER_TYPE = PasswordHasher(1, 8, 1, type=Type.I).hash("a password", salt=bytes(16))
_KIM = User("kim", "operate", _HASH)
_LEE = User("lee@example.com", "view", _HASH)


def test_what_is_written_is_read() -> None:
    users = {user.name: user for user in (_KIM, _LEE)}
    assert parse_users(format_users(users)) == users
    assert parse_users("\n# no user yet\n\n") == {}


@pytest.mark.parametrize(
    "line",
    [
        "kim",
        "kim:operate",
        "kim:operate:",
        "kim:operate:a password",
        f"kim:admin:{_HASH}",
        f"kim::{_HASH}",
        f":view:{_HASH}",
        f"k im:view:{_HASH}",
        f"kim:view:{_OF_ANOTHER_TYPE}",
        f"kim:view:{_HASH.replace('m=8', 'm=99999999')}",
    ],
)
def test_a_malformed_line_is_named_and_not_shown(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2 does not read name:view\|operate:hash$"):
        parse_users(f"lee:view:{_HASH}\n{line}\n")


def test_a_name_is_there_once() -> None:
    with pytest.raises(ValueError, match="line 2 names a user"):
        parse_users(f"kim:view:{_HASH}\nkim:operate:{_HASH}\n")


@pytest.mark.parametrize(
    ("name", "is_name"),
    [("kim", True), ("k.lee+ops@example.com", True), ("", False), ("a:b", False), ("é", False)],
)
def test_names_are_plain(name: str, is_name: bool) -> None:
    assert is_user_name(name) is is_name


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, now = tmp_path / "passwords", [0.0]
    path.write_text(format_users({"kim": _KIM}))
    file = PasswordFile(path, clock=lambda: now[0])
    assert file.user("kim") == _KIM
    path.write_text(format_users({_LEE.name: _LEE}))
    now[0] = 2
    assert file.user("kim") is None
    assert file.user(_LEE.name) == _LEE


def test_one_that_cannot_be_read_any_more_changes_nothing(tmp_path: Path) -> None:
    """But what it says applies once it can be read again."""
    path, now = tmp_path / "passwords", [0.0]
    path.write_text(format_users({"kim": _KIM}))
    file = PasswordFile(path, clock=lambda: now[0])
    for broken in ("kim:operate", None):
        path.unlink() if broken is None else path.write_text(broken)
        now[0] += 2
        with capture_logs() as logs:
            assert file.user("kim") == _KIM
        assert [line["log_level"] for line in logs] == ["error"]
        assert "operate" not in logs[0]["reason"].replace("view|operate", "")
    path.write_text("")
    now[0] += 2
    assert file.user("kim") is None


@pytest.mark.parametrize("content", [None, b"kim:operate", b"\xff"])
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "passwords"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE: "):
        PasswordFile(path)
