"""`keyturn init` and `keygen` write matching settings for their owner alone (SPEC 2, 11, 14)."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
from contextlib import contextmanager
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dotenv import dotenv_values
from typer.testing import CliRunner

from keyturn.crypto import IntakeKey, IntakePublicKey, SigningKey, from_base64, user_kek
from keyturn.settings import FILES_OF_INIT, PublisherSettings, S3Settings
from keyturn.topology import REQUESTS
from keyturn_workers.cli.app import _SUMMARIES, app
from keyturn_workers.console.actions import REQUEST_TYPES
from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.core.key_uris import VaultUri
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings
from tests.unit.keyturn_workers.cli.fakes import PRK, URI, FakeKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fakes import FakeKms

runner = CliRunner()
_FILES = ("keyturn.env", "gateway.env", "console.env", "publisher.env", "storage.env")


def _env(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


def _init(folder: Path, *more: str) -> tuple[dict[str, str], dict[str, str]]:
    result = runner.invoke(app, ["init", "--dir", str(folder), *more])
    assert result.exit_code == 0, result.stderr
    return _env(folder / "keyturn.env"), _env(folder / "publisher.env")


def _init_with(folder: Path, uri: str = URI, **env: str) -> Result:
    more = {f"KEYTURN_{name}": value for name, value in env.items()}
    return runner.invoke(app, ["init", "--dir", str(folder), "--master-key", uri], env=more)


@contextmanager
def _settings(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Iterator[None]:
    """The environment of a process that was given this file."""
    with monkeypatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield


def test_init_writes_matching_settings_for_workers_and_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_env, publisher_env = _init(tmp_path / "new")
    with _settings(monkeypatch, worker_env):
        worker = WorkerSettings.read()
    with _settings(monkeypatch, publisher_env):
        publisher, s3 = PublisherSettings.read(), S3Settings.read()
    grant = worker.publishers[publisher.publisher_name]
    assert [key.public_bytes for key in grant.keys] == [publisher.publisher_key.public_bytes]
    assert grant.allows("enroll.requested", "any-project")
    intake = worker.intake_keys[publisher.intake_public_key.id]
    assert intake.public_bytes == publisher.intake_public_key.key.public_bytes
    assert [key.id for key in publisher.event_public_key] == [key.id for key in worker.event_key]
    assert worker.deployment == publisher.deployment
    assert s3.s3_secret_access_key == worker.s3_secret_access_key


def test_a_missing_setting_names_the_files_of_init_that_have_it(tmp_path: Path) -> None:
    _init(tmp_path)
    files = {name: _env(tmp_path / name) for name in _FILES}
    for setting, named in FILES_OF_INIT.items():
        have = {name for name, env in files.items() if f"KEYTURN_{setting}" in env}
        assert set(named) == have - {"storage.env"}, setting


def test_init_says_what_each_file_is_for_and_what_comes_next(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    result = runner.invoke(app, ["init", "--dir", str(folder)], env={"COLUMNS": "80"})
    lines = result.stdout.splitlines()
    for name in (*_FILES, "console/passwords"):
        assert any(re.fullmatch(rf"{folder}/{name}  +\S.*", line) for line in lines), name
    next_at = next(at for at, line in enumerate(lines) if line.startswith("Next"))
    commands = [line.strip() for line in lines[next_at + 1 :]]
    assert f"keyturn --env-file '{folder}/keyturn.env' worker all" in commands
    for command in commands:
        _, _, path, name, *_ = shlex.split(command)
        assert Path(path).is_file()
        assert name in _SUMMARIES
    assert "guest:guest" not in result.stdout


def test_the_files_of_init_are_ignored_by_git_and_docker() -> None:
    root = Path(__file__).parents[4]
    for name, folder in ((".gitignore", "/"), (".dockerignore", "")):
        patterns = (root / name).read_text().splitlines()
        for secret in (*_FILES, "acme.key", "acme.header"):
            assert any(fnmatch(folder + secret, pattern) for pattern in patterns), (name, secret)


def test_the_gateway_of_init_may_only_upload_rotate_and_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_env, _ = _init(tmp_path)
    with _settings(monkeypatch, _env(tmp_path / "gateway.env")):
        gateway = GatewaySettings.read()
    with _settings(monkeypatch, worker_env):
        worker = WorkerSettings.read()
    assert gateway.master_keys == worker.master_keys
    grant = worker.publishers[gateway.publisher_name]
    assert [key.public_bytes for key in grant.keys] == [gateway.publisher_key.public_bytes]
    allowed = {request for request in REQUESTS if grant.allows(request, "any-project")}
    assert allowed == {"upload.requested", "rotation.requested", "delete.requested"}


def test_a_shell_reads_the_files_like_python(tmp_path: Path) -> None:
    worker_env, publisher_env = _init(tmp_path)
    for name, expected in (("keyturn.env", worker_env), ("publisher.env", publisher_env)):
        script = f"set -a; . ./{name}; env -0"
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            env={"PATH": "/bin"},
        )
        read = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
        assert {n: v for n, v in read.items() if n.startswith("KEYTURN_")} == expected


def _docker_reads(path: Path) -> dict[str, str]:
    """As `docker run --env-file` and podman read a file: each line as it is, but comments."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_docker_reads_the_files_like_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes no quotes: only JSON has some, and JSON is read with them."""
    worker_env, _ = _init(tmp_path)
    given = _docker_reads(tmp_path / "keyturn.env")
    quoted = {name for name, value in given.items() if value.startswith("'")}
    assert quoted == {"KEYTURN_MASTER_KEYS", "KEYTURN_INTAKE_KEYS", "KEYTURN_PUBLISHERS"}
    for name in ("gateway.env", "console.env", "publisher.env", "storage.env"):
        read = _docker_reads(tmp_path / name)
        assert {name for name, value in read.items() if value.startswith("'")} <= quoted
    with _settings(monkeypatch, worker_env):
        expected = WorkerSettings.read()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    read_by_docker = WorkerSettings.read()
    assert read_by_docker.master_keys == expected.master_keys
    assert read_by_docker.publishers == expected.publishers
    assert read_by_docker.intake_keys.keys() == expected.intake_keys.keys()
    assert read_by_docker.amqp_url == expected.amqp_url


def test_what_a_shell_would_change_is_quoted(tmp_path: Path) -> None:
    url = "amqp://kim:a$b;c&d@broker/"
    _init(tmp_path, "--amqp-url", url)
    assert f"KEYTURN_AMQP_URL='{url}'" in (tmp_path / "keyturn.env").read_text().splitlines()
    assert _env(tmp_path / "keyturn.env")["KEYTURN_AMQP_URL"] == url


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = runner.invoke(app, ["init", "--dir", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"keyturn: {tmp_path / 'file'}: File exists"]


def test_the_publishers_file_holds_none_of_the_operators_secrets(tmp_path: Path) -> None:
    worker_env, publisher_env = _init(tmp_path)
    operators = {"KEYTURN_MASTER_KEYS", "KEYTURN_INTAKE_KEYS", "KEYTURN_EVENT_KEY"}
    assert operators <= worker_env.keys()
    assert not operators & publisher_env.keys()
    assert "KEYTURN_PUBLISHER_KEY" not in worker_env


def test_secret_files_are_private_despite_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _init(tmp_path)
    finally:
        os.umask(before)
    for name in _FILES:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    passwords = tmp_path / "console" / "passwords"
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {passwords, *(tmp_path / name for name in _FILES)}


def test_the_console_of_init_holds_little_and_may_request_what_its_pages_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_env, _ = _init(tmp_path)
    console_env = _env(tmp_path / "console.env")
    assert not [name for name in console_env if "S3" in name or "MASTER" in name]
    with _settings(monkeypatch, console_env):
        console = ConsoleSettings.read()
    assert console.console_password_file == tmp_path / "console" / "passwords"
    with _settings(monkeypatch, worker_env):
        grant = WorkerSettings.read().publishers[console.publisher_name]
    assert [key.public_bytes for key in grant.keys] == [console.publisher_key.public_bytes]
    allowed = {request for request in REQUESTS if grant.allows(request, "*")}
    assert allowed == set(REQUEST_TYPES.values()) | {"status.requested"}


def test_the_people_of_a_console_are_kept(tmp_path: Path) -> None:
    """Even with --force: their file holds no key of the deployment."""
    _init(tmp_path)
    passwords = tmp_path / "console" / "passwords"
    passwords.write_text("precious")
    _init(tmp_path, "--force")
    assert passwords.read_text() == "precious"


@pytest.mark.parametrize("existing", _FILES)
def test_init_overwrites_nothing_without_force(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    result = runner.invoke(app, ["init", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert existing in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    first = _init(tmp_path, "--force")
    assert first != _init(tmp_path, "--force")


def test_init_uses_the_endpoints_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "KEYTURN_AMQP_URL": "amqp://u:p@broker.example:5673/v",
        "KEYTURN_S3_ENDPOINT_URL": "http://storage.example:8001",
        "KEYTURN_S3_REGION": "eu-north-1",
        "KEYTURN_S3_BUCKET": "files-of-many",
        "KEYTURN_S3_ACCESS_KEY_ID": "access-key",
        "KEYTURN_S3_SECRET_ACCESS_KEY": "secret-key",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for written in _init(tmp_path):
        assert written | given == written
    worker_env, _ = _init(tmp_path, "--force", "--s3-bucket", "another")
    assert worker_env["KEYTURN_S3_BUCKET"] == "another"


def test_init_rejects_a_value_that_cannot_be_quoted(tmp_path: Path) -> None:
    result = runner.invoke(app, ["init", "--dir", str(tmp_path / "n"), "--s3-bucket", "a'b"])
    assert result.exit_code == 2
    assert not (tmp_path / "n").exists()


def test_workers_and_gateway_name_the_key(
    kms: FakeKms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms.keys[URI] = FakeKey(PRK)
    assert _init_with(tmp_path, VAULT_TOKEN_FILE="/run/token").exit_code == 0
    assert kms.generated == 0
    for name, settings in (("keyturn.env", WorkerSettings), ("gateway.env", GatewaySettings)):
        with _settings(monkeypatch, _env(tmp_path / name)):
            read = settings.read()
        assert isinstance(read, WorkerSettings | GatewaySettings)
        held = read.master_keys["main"]
        assert isinstance(held, VaultUri)
        assert held.location == URI
        assert str(read.vault_token_file) == "/run/token"
    assert "KEYTURN_ACTIVE_MASTER_KEY" not in _env(tmp_path / "gateway.env")


def test_a_key_that_does_not_exist_is_generated(kms: FakeKms, tmp_path: Path) -> None:
    result = _init_with(tmp_path)
    assert result.exit_code == 0
    assert kms.generated == 1
    assert f"generated {URI}" in result.stderr


def test_the_settings_of_other_providers_stay_out(kms: FakeKms, tmp_path: Path) -> None:
    kms.keys[URI] = FakeKey(PRK)
    env = {
        "VAULT_ROLE_ID": "role",
        "VAULT_SECRET_ID": "given as a value",
        "KMS_TIMEOUT_S": "3",
        "PKCS11_PIN": "12345",
        "AWS_KMS_ENDPOINT_URL": "http://127.0.0.1:4566",
    }
    assert _init_with(tmp_path, **env).exit_code == 0
    for name in ("keyturn.env", "gateway.env"):
        written = _env(tmp_path / name)
        assert written["KEYTURN_VAULT_ROLE_ID"] == "role"
        assert written["KEYTURN_VAULT_SECRET_ID"] == "given as a value"
        assert written["KEYTURN_KMS_TIMEOUT_S"] == "3.0"
        assert not {"KEYTURN_PKCS11_PIN", "KEYTURN_AWS_KMS_ENDPOINT_URL"} & written.keys()
    for name in ("publisher.env", "storage.env"):
        assert not any(
            variable.startswith(("KEYTURN_VAULT", "KEYTURN_KMS", "KEYTURN_MASTER"))
            for variable in _env(tmp_path / name)
        )


@pytest.mark.parametrize(
    ("uri", "status", "said"),
    [
        (URI, 1, "access denied; the key exists already"),
        ("m1", 2, "a master key must be the base64"),
        ("pkcs11:object=m1?pin-value=12345", 2, "KEYTURN_PKCS11_PIN_FILE"),
    ],
)
def test_a_key_that_does_not_derive_writes_no_file(
    kms: FakeKms, tmp_path: Path, uri: str, status: int, said: str
) -> None:
    kms.keys[URI] = FakeKey(PRK, failure="access denied")
    result = _init_with(tmp_path / "new", uri)
    assert result.exit_code == status
    assert said in result.stderr
    assert not (tmp_path / "new").exists()


def test_existing_files_are_found_before_a_key_is_generated(kms: FakeKms, tmp_path: Path) -> None:
    (tmp_path / "storage.env").write_text("precious")
    assert _init_with(tmp_path).exit_code == 1
    assert kms.generated == 0


def test_the_json_is_that_of_the_settings(kms: FakeKms, tmp_path: Path) -> None:
    kms.keys[URI] = FakeKey(PRK)
    _init_with(tmp_path)
    assert json.loads(_env(tmp_path / "keyturn.env")["KEYTURN_MASTER_KEYS"]) == {"main": URI}


def test_keygen_generates_matching_pairs() -> None:
    def generate(*arguments: str) -> dict[str, str]:
        result = runner.invoke(app, ["keygen", *arguments, "--json"])
        assert result.exit_code == 0
        parsed: dict[str, str] = json.loads(result.stdout)
        return parsed

    intake = generate("intake-key", "--id", "k2")
    name, _, public = intake["KEYTURN_INTAKE_PUBLIC_KEY"].partition(":")
    seed = from_base64(json.loads(intake["KEYTURN_INTAKE_KEYS"])[name])
    assert name == "k2"
    assert IntakePublicKey.from_bytes(from_base64(public)).public_bytes == (
        IntakeKey.from_seed(seed).public_bytes
    )
    event = generate("event-key")
    key = SigningKey.from_seed(from_base64(event["KEYTURN_EVENT_KEY"]))
    assert key.public_bytes == from_base64(event["KEYTURN_EVENT_PUBLIC_KEY"])
    publisher = generate("publisher-key", "--name", "billing")
    key = SigningKey.from_seed(from_base64(publisher["KEYTURN_PUBLISHER_KEY"]))
    grant = json.loads(publisher["KEYTURN_PUBLISHERS"])["billing"]
    assert [from_base64(each) for each in grant["keys"]] == [key.public_bytes]
    master = generate("master-key", "--id", "m2")
    assert json.loads(master["KEYTURN_MASTER_KEYS"]).keys() == {"m2"}
    assert master["KEYTURN_ACTIVE_MASTER_KEY"] == "m2"


def test_an_event_key_is_shown_with_the_id_that_logs_name_it_by() -> None:
    result = runner.invoke(app, ["keygen", "event-key"])
    assert result.exit_code == 0
    settings = dotenv_values(stream=StringIO(result.stdout))
    key = SigningKey.from_seed(from_base64(str(settings["KEYTURN_EVENT_KEY"])))
    comments = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert len(comments) == 2
    assert all(line.endswith(f"key id {key.id}") for line in comments)


def test_keygen_generates_a_valid_api_key() -> None:
    result = runner.invoke(app, ["keygen", "api-key"])
    assert result.exit_code == 0
    user_kek(result.stdout.strip(), "acme")


def test_keygen_writes_a_private_file_and_prints_no_secret(tmp_path: Path) -> None:
    target = tmp_path / "event.env"
    result = runner.invoke(app, ["keygen", "event-key", "-o", str(target)])
    assert result.exit_code == 0
    assert str(dotenv_values(target)["KEYTURN_EVENT_KEY"]) not in result.output
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = runner.invoke(app, ["keygen", "event-key", "-o", str(target)])
    assert again.exit_code == 1
    assert "already exists" in again.stderr


# Adding keys to files.


def _keygen(*arguments: str, exit_code: int = 0) -> Result:
    result = runner.invoke(app, ["keygen", *arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.mark.parametrize("in_file", [False, True])
def test_a_master_key_is_added_and_no_other_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_file: bool
) -> None:
    """In the environment file, or in a JSON file that it names."""
    before, _ = _init(tmp_path)
    path = tmp_path / "keyturn.env"
    if in_file:
        named = tmp_path / "master-keys.json"
        named.write_text(before["KEYTURN_MASTER_KEYS"])
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(
                f"KEYTURN_MASTER_KEYS={named}" if line.startswith("KEYTURN_MASTER_KEYS") else line
                for line in lines
            )
        )
    result = _keygen("master-key", "--id", "m2", "--add-to", str(path))
    changed = tmp_path / "master-keys.json" if in_file else path
    assert (result.stdout, result.stderr) == ("", f"keyturn: added m2 to {changed}\n")
    assert changed.stat().st_mode & 0o777 == (0o644 if in_file else 0o600)
    after = _env(path)
    with _settings(monkeypatch, after):
        read = WorkerSettings.read()
    with _settings(monkeypatch, before):
        old = WorkerSettings.read()
    assert [*read.master_keys] == ["main", "m2"]
    assert read.master_keys["main"] == old.master_keys["main"]
    assert read.active_master_key == "main"
    del after["KEYTURN_MASTER_KEYS"], before["KEYTURN_MASTER_KEYS"]
    assert after == before
    again = _keygen("master-key", "--id", "m2", "--add-to", str(path), exit_code=1)
    assert "has a key m2 already; choose another --id" in again.stderr
    assert _env(path) == _env(path) | after


def test_an_intake_key_is_added_and_its_public_half_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _init(tmp_path)
    path = tmp_path / "keyturn.env"
    result = _keygen("intake-key", "--id", "i2", "--add-to", str(path))
    with _settings(monkeypatch, _env(path)):
        assert [*WorkerSettings.read().intake_keys] == ["main", "i2"]
    assert "KEYTURN_INTAKE_PUBLIC_KEY=i2:" in result.stdout
    assert "KEYTURN_INTAKE_KEYS" not in result.stdout


def test_a_publisher_is_added_and_gets_a_second_key_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _init(tmp_path)
    path = tmp_path / "keyturn.env"
    result = _keygen("publisher-key", "--name", "web", "--add-to", str(path))
    assert "KEYTURN_PUBLISHER_NAME=web" in result.stdout
    assert "KEYTURN_PUBLISHERS" not in result.stdout
    more = ("--may", "upload.requested", "--may", "delete.requested")
    _keygen("publisher-key", "--name", "admin", *more, "--add-to", str(path))
    _keygen("publisher-key", "--name", "admin", *more, "--add-to", str(path), exit_code=1)
    _keygen("publisher-key", "--name", "web", "--add-to", str(path))
    with _settings(monkeypatch, _env(path)):
        publishers = WorkerSettings.read().publishers
    assert {"dev", "gateway", "console", "web", "admin"} == {*publishers}
    assert len(publishers["web"].keys) == 2
    assert publishers["admin"].may == {"upload.requested", "delete.requested"}
    _keygen("publisher-key", "--may", "everything", exit_code=2)


def test_a_new_json_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "publishers.json"
    _keygen("publisher-key", "--name", "web", "--add-to", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*json.loads(path.read_text())] == ["web"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("missing.env", None, "does not exist; only a .json file is created"),
        ("other.env", "KEYTURN_DEPLOYMENT=dev\n", "does not have one line with KEYTURN_MASTER_K"),
        (
            "twice.env",
            "KEYTURN_MASTER_KEYS={}\nKEYTURN_MASTER_KEYS={}\n",
            "does not have one line with",
        ),
        ("broken.json", '{"main": ', "not a JSON object"),
    ],
)
def test_a_file_without_the_setting_is_left_as_it_is(
    tmp_path: Path, name: str, text: str | None, problem: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    result = _keygen("master-key", "--id", "m2", "--add-to", str(path), exit_code=1)
    assert problem in result.stderr
    assert (path.read_text() if path.exists() else None) == text
