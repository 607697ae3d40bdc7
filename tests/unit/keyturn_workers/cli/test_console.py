"""`keyturn console` and the people in its password file (SPEC 14, 16)."""

from __future__ import annotations

import stat
import sys
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn_workers.cli import console, secrets
from keyturn_workers.cli.app import app
from keyturn_workers.console import server
from keyturn_workers.console.auth.passwords import PasswordFile, Passwords
from tests.unit.keyturn_workers.console.console_env import console_env

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from keyturn_workers.console.settings import ConsoleSettings

_PASSWORD = "correct horse battery"


def _run(*arguments: str, typed: str = "", **env: str) -> Result:
    return CliRunner().invoke(app, ["console", *arguments], input=typed, env=env)


def _add(file: Path, name: str = "kim", role: str = "view", password: str = _PASSWORD) -> Result:
    return _run("add-user", name, "--role", role, "--file", str(file), typed=f"{password}\n")


@pytest.mark.slow
async def test_people_are_added_changed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    added = _add(file)
    assert (added.exit_code, added.stdout) == (0, f"added kim with the role view in {file}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert _PASSWORD not in file.read_text()
    changed = _add(file, role="operate", password="another " + _PASSWORD)
    assert changed.stdout == f"changed kim with the role operate in {file}\n"
    users = PasswordFile(file)
    assert await Passwords(users).check("kim", _PASSWORD) is None
    kim = await Passwords(users).check("kim", "another " + _PASSWORD)
    assert kim is not None
    assert kim.role == "operate"
    removed = _run("remove-user", "kim", "--file", str(file))
    assert (removed.exit_code, removed.stdout) == (0, f"removed kim from {file}\n")
    again = _run("remove-user", "kim", "--file", str(file))
    assert (again.exit_code, again.stderr) == (1, f"keyturn: {file} has no user of this name\n")


@pytest.mark.slow
def test_a_person_who_is_removed_while_a_password_is_typed_stays_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passwords"
    _add(file, "lee")

    def type_slowly() -> str:
        assert _run("remove-user", "lee", "--file", str(file)).exit_code == 0
        return _PASSWORD

    monkeypatch.setattr(console, "_read_password", type_slowly)
    assert _add(file).exit_code == 0
    assert PasswordFile(file).user("kim") is not None
    assert PasswordFile(file).user("lee") is None


@pytest.mark.slow
def test_two_commands_at_once_do_not_undo_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passwords"
    _add(file, "lee")
    real = secrets.write_secret
    removing: list[Thread] = []

    def write_late(path: Path, content: str, *, force: bool) -> None:
        monkeypatch.setattr(console, "write_secret", real)
        remove = Thread(target=console.remove_user, args=("lee", file))
        remove.start()
        remove.join(0.05)
        removing.append(remove)
        real(path, content, force=force)

    monkeypatch.setattr(console, "write_secret", write_late)
    assert _add(file).exit_code == 0
    removing[0].join()
    assert PasswordFile(file).user("kim") is not None
    assert PasswordFile(file).user("lee") is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"password": "short"}, "a password has 12 to 1024 characters"),
        ({"password": ""}, "a password has 12 to 1024 characters"),
        ({"name": "a:b"}, "a name has 1 to 64 characters"),
        ({"role": "admin"}, "'admin' is not one of 'view', 'operate'"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    tmp_path: Path, change: dict[str, str], line: str
) -> None:
    file = tmp_path / "passwords"
    result = _add(file, **change)
    assert result.exit_code == 2
    assert line in result.stderr
    assert not file.exists()


@pytest.mark.parametrize("content", [b"kim:operate", b"\xff"])
def test_a_file_of_something_else_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "passwords"
    file.write_bytes(content)
    result = _add(file)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert file.read_bytes() == content


def test_it_serves_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ConsoleSettings] = []

    async def run(settings: ConsoleSettings) -> None:
        served.append(settings)

    monkeypatch.setattr(server, "run_console", run)
    monkeypatch.setattr("keyturn_workers.cli.console.configure", lambda *_: None)
    file = tmp_path / "passwords"
    result = _run(**console_env(file, CONSOLE_PORT="7"))
    assert (result.exit_code, result.output) == (0, "")
    assert (served[0].console_port, served[0].console_password_file) == (7, file)


def test_missing_settings_are_one_line() -> None:
    result = _run()
    assert result.exit_code == 2
    assert "KEYTURN_CONSOLE_SESSION_KEY is missing" in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("keyturn_workers.console.auth")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "argon2", None)
    result = _add(tmp_path / "passwords")
    assert result.exit_code == 2
    assert result.stderr == (
        "keyturn: keyturn console needs its extra: pip install 'keyturn-workers[console]'\n"
    )
