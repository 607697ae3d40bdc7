"""`keyturn worker`, `gateway` and `console` run on their settings (SPEC 9, 14, 16)."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.cli import console, secrets, serve
from keyturn_workers.cli.app import app
from keyturn_workers.console import server as console_server
from keyturn_workers.console.auth.passwords import PasswordFile, Passwords, parse_users
from keyturn_workers.gateway import server as gateway_server
from keyturn_workers.pipeline.worker import process
from tests.unit.keyturn_workers.console.console_env import console_env
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from keyturn_workers.console.settings import ConsoleSettings
    from keyturn_workers.process.settings import GatewaySettings, WorkerSettings

_S3 = S3Server("http://s3.example.com:9000", "access", "secret", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://localhost/", _S3, "bucket")
_ENVIRONMENT = _DEPLOYMENT.worker_env()
_PASSWORD = "correct horse battery"
_HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """How logging was configured; that of the tests' own process stays as it is."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(serve, "configure", lambda *how: calls.append(how))
    return calls


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """The roles of each worker that was run."""
    runs: list[frozenset[str]] = []

    async def run_worker(settings: WorkerSettings, roles: frozenset[str], tracing: object) -> None:
        assert settings.s3_bucket == "bucket"
        assert tracing is None
        runs.append(roles)

    monkeypatch.setattr(process, "run_worker", run_worker)
    return runs


@pytest.mark.parametrize(
    ("command", "roles"),
    [
        ("upload", {"upload"}),
        ("control", {"control"}),
        ("sweep", {"sweep"}),
        ("ingest", {"ingest"}),
        ("all", {"upload", "control", "sweep", "ingest"}),
    ],
)
def test_a_worker_has_the_roles_that_its_command_names(
    started: list[frozenset[str]],
    configured: list[tuple[str, str]],
    command: str,
    roles: set[str],
) -> None:
    result = CliRunner().invoke(app, ["worker", command], env=_ENVIRONMENT)
    assert result.exit_code == 0, result.stderr
    assert started == [roles]
    assert configured == [("json", "info")]


def test_a_storage_that_does_not_answer_is_named_with_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run_worker(*_: object) -> None:
        raise StorageUnavailableError("no answer")

    monkeypatch.setattr(process, "run_worker", run_worker)
    result = CliRunner().invoke(app, ["worker", "all"], env=_ENVIRONMENT)
    assert result.exit_code == 1
    assert "the storage at http://s3.example.com:9000, bucket bucket" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "worker all",
        "gateway",
        "console",
        "doctor",
        "dead list",
        "audit tail",
        "delete acme k",
    ],
)
def test_a_malformed_address_of_the_broker_is_named_before_anything_is_done(
    command: str, tmp_path: Path
) -> None:
    environment = {
        **_DEPLOYMENT.worker_env(),
        **_DEPLOYMENT.gateway_env(),
        **console_env(tmp_path / "passwords"),
        "KEYTURN_AMQP_URL": "amqp://kim:se/same@broker:5672/",
    }
    result = CliRunner().invoke(app, command.split(), env=environment)
    assert result.exit_code == 2, result.stderr
    assert result.stderr == (
        "keyturn: KEYTURN_AMQP_URL is malformed: it has no valid host name or port; a slash, "
        "# or ? in a password must be percent-encoded\n"
    )


def test_without_its_settings_no_worker_is_run(started: list[frozenset[str]]) -> None:
    result = CliRunner().invoke(app, ["worker", "upload"])
    assert result.exit_code == 2
    assert "KEYTURN_MASTER_KEYS is missing" in result.stderr
    assert started == []


def test_the_gateway_runs_on_its_settings(
    monkeypatch: pytest.MonkeyPatch, configured: list[tuple[str, str]]
) -> None:
    buckets: list[str] = []

    async def run_gateway(settings: GatewaySettings, tracing: object) -> None:
        assert tracing is None
        buckets.append(settings.s3_bucket)

    monkeypatch.setattr(gateway_server, "run_gateway", run_gateway)
    result = CliRunner().invoke(app, ["gateway"], env=_DEPLOYMENT.gateway_env())
    assert result.exit_code == 0, result.stderr
    assert buckets == ["bucket"]
    assert configured == [("json", "info")]
    result = CliRunner().invoke(app, ["gateway"])
    assert result.exit_code == 2
    assert "KEYTURN_S3_BUCKET is missing" in result.stderr
    assert buckets == ["bucket"]


def test_a_gateway_that_cannot_start_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_gateway(*_: object) -> None:
        raise SettingsError("KEYTURN_GATEWAY_LISTEN is in use")

    monkeypatch.setattr(gateway_server, "run_gateway", run_gateway)
    result = CliRunner().invoke(app, ["gateway"], env=_DEPLOYMENT.gateway_env())
    assert (result.exit_code, result.stderr) == (2, "keyturn: KEYTURN_GATEWAY_LISTEN is in use\n")


def _console(*arguments: str, typed: str = "", **env: str) -> Result:
    return CliRunner().invoke(app, ["console", *arguments], input=typed, env=env)


def _add(file: Path, name: str = "kim", role: str = "view", password: str = _PASSWORD) -> Result:
    return _console("add-user", name, "--role", role, "--file", str(file), typed=f"{password}\n")


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
    removed = _console("remove-user", "kim", "--file", str(file))
    assert (removed.exit_code, removed.stdout) == (0, f"removed kim from {file}\n")
    again = _console("remove-user", "kim", "--file", str(file))
    assert (again.exit_code, again.stderr) == (1, f"keyturn: {file} has no user of this name\n")


@pytest.mark.parametrize("change", [pytest.param("add", marks=pytest.mark.slow), "remove"])
def test_a_link_to_the_password_file_stays_a_link(tmp_path: Path, change: str) -> None:
    """The console reads the file behind it: a person removed from a copy could still sign in."""
    file = tmp_path / "etc" / "passwords"
    file.parent.mkdir()
    file.write_text("".join(f"{name}:view:{_HASH}\n" for name in ("lee", "lou")))
    file.chmod(0o640)
    link = tmp_path / "passwords"
    link.symlink_to(Path("etc") / "passwords")
    result = _add(link) if change == "add" else _console("remove-user", "lee", "--file", str(link))
    assert result.exit_code == 0, result.stderr
    assert link.readlink() == Path("etc") / "passwords"
    expected = {"lee", "lou", "kim"} if change == "add" else {"lou"}
    assert set(parse_users(file.read_text())) == expected
    # Readable by the same users as before: the console may run as a member of its group.
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(path.name for path in file.parent.iterdir()) == ["passwords"]


@pytest.mark.slow
def test_a_person_who_is_removed_while_a_password_is_typed_stays_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passwords"
    _add(file, "lee")

    def type_slowly() -> str:
        assert _console("remove-user", "lee", "--file", str(file)).exit_code == 0
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

    def write_late(path: Path, content: str, **how: bool) -> None:
        monkeypatch.setattr(console, "write_secret", real)
        remove = Thread(target=console.remove_user, args=("lee", file))
        remove.start()
        remove.join(0.05)
        removing.append(remove)
        real(path, content, **how)

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


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ConsoleSettings, bool]]:
    """The settings of the consoles that were run, and whether each had a link."""
    consoles: list[tuple[ConsoleSettings, bool]] = []

    async def run(settings: ConsoleSettings, print_link: Callable[[str], None] | None) -> None:
        consoles.append((settings, print_link is not None))
        if print_link is not None:
            print_link("http://127.0.0.1:7/sign-in/link?token=t")

    monkeypatch.setattr(console_server, "run_console", run)
    monkeypatch.setattr("keyturn_workers.cli.console.configure", lambda *_: None)
    return consoles


def test_it_serves_with_its_settings(
    tmp_path: Path, served: list[tuple[ConsoleSettings, bool]]
) -> None:
    file = tmp_path / "passwords"
    result = _console(**console_env(file, CONSOLE_PORT="7"))
    assert (result.exit_code, result.output) == (0, "")
    settings, has_link = served[0]
    assert (settings.console_port, settings.console_password_file) == (7, file)
    assert not has_link


_LOOPBACK_URL = "http://127.0.0.1:8090"


@pytest.mark.parametrize(
    ("host", "public_url", "flag", "is_terminal", "has_link"),
    [
        ("127.0.0.1", "", False, True, True),
        ("::1", _LOOPBACK_URL, False, True, True),
        ("127.0.0.1", "", False, False, False),  # the output may be a log
        ("127.0.0.1", "", True, False, True),
        ("127.0.0.1", "https://console.example.com", False, True, False),  # behind a proxy
        ("0.0.0.0", _LOOPBACK_URL, False, True, False),  # noqa: S104  # of a container
        ("0.0.0.0", _LOOPBACK_URL, True, False, True),  # noqa: S104
    ],
)
def test_the_link_is_for_this_machine_and_a_terminal_unless_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: list[tuple[ConsoleSettings, bool]],
    host: str,
    public_url: str,
    flag: bool,
    is_terminal: bool,
    has_link: bool,
) -> None:
    monkeypatch.setattr(console, "_is_terminal", lambda: is_terminal)
    env = console_env(tmp_path, CONSOLE_HOST=host, CONSOLE_PUBLIC_URL=public_url)
    result = _console(*(["--sign-in-link"] if flag else []), **env)
    assert result.exit_code == 0
    assert served[0][1] is has_link
    assert ("/sign-in/link?token=t\n" in result.stdout) is has_link


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_no_link_is_printed_for_a_server(
    tmp_path: Path, served: list[tuple[ConsoleSettings, bool]], host: str
) -> None:
    env = console_env(tmp_path, CONSOLE_HOST=host, CONSOLE_PUBLIC_URL="https://console.example.com")
    result = _console("--sign-in-link", **env)
    assert result.exit_code == 2
    assert "at a loopback address" in result.stderr
    assert not served


def test_missing_settings_are_one_line() -> None:
    result = _console()
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
