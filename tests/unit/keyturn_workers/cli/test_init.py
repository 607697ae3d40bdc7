"""`keyturn init`: valid settings, readable only by their owner (SPEC 11, 14)."""

from __future__ import annotations

import os
import stat
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dotenv import dotenv_values
from typer.testing import CliRunner

from keyturn.settings import PublisherSettings, S3Settings
from keyturn.topology import REQUESTS
from keyturn_workers.cli.app import app
from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.settings import GatewaySettings, WorkerSettings

runner = CliRunner()
_FILES = ("keyturn.env", "gateway.env", "console.env", "publisher.env", "storage.env")


def _env(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


def _init(folder: Path, *more: str) -> tuple[dict[str, str], dict[str, str]]:
    result = runner.invoke(app, ["init", "--dir", str(folder), *more])
    assert result.exit_code == 0, result.stderr
    return _env(folder / "keyturn.env"), _env(folder / "publisher.env")


def test_init_writes_matching_settings_for_workers_and_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_env, publisher_env = _init(tmp_path / "new")
    with monkeypatch.context() as patch:
        for name, value in worker_env.items():
            patch.setenv(name, value)
        worker = WorkerSettings.read()
    with monkeypatch.context() as patch:
        for name, value in publisher_env.items():
            patch.setenv(name, value)
        publisher, s3 = PublisherSettings.read(), S3Settings.read()
    grant = worker.publishers[publisher.publisher_name]
    assert [key.public_bytes for key in grant.keys] == [publisher.publisher_key.public_bytes]
    assert grant.allows("enroll.requested", "any-project")
    intake = worker.intake_keys[publisher.intake_public_key.id]
    assert intake.public_bytes == publisher.intake_public_key.key.public_bytes
    assert [key.id for key in publisher.event_public_key] == [key.id for key in worker.event_key]
    assert worker.deployment == publisher.deployment
    assert s3.s3_secret_access_key == worker.s3_secret_access_key


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
    with monkeypatch.context() as patch:
        for name, value in _env(tmp_path / "gateway.env").items():
            patch.setenv(name, value)
        gateway = GatewaySettings.read()
    with monkeypatch.context() as patch:
        for name, value in worker_env.items():
            patch.setenv(name, value)
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
    with monkeypatch.context() as patch:
        for name, value in worker_env.items():
            patch.setenv(name, value)
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
    with monkeypatch.context() as patch:
        for name, value in console_env.items():
            patch.setenv(name, value)
        console = ConsoleSettings.read()
    assert console.console_password_file == tmp_path / "console" / "passwords"
    with monkeypatch.context() as patch:
        for name, value in worker_env.items():
            patch.setenv(name, value)
        grant = WorkerSettings.read().publishers[console.publisher_name]
    assert [key.public_bytes for key in grant.keys] == [console.publisher_key.public_bytes]
    allowed = {request for request in REQUESTS if grant.allows(request, "*")}
    assert allowed == set(REQUESTS) - {"upload.requested", "enroll.requested"}


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
