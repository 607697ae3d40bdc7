"""How commands fail: exit statuses and one line (SPEC 11, 12, 14)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from keyturn.errors import AlreadyExistsError, SettingsError, StorageUnavailableError, all_errors
from keyturn.publisher import BrokerUnavailableError, WaitTimeoutError
from keyturn.settings import S3Settings
from keyturn_workers.cli import errors
from keyturn_workers.cli.app import app
from keyturn_workers.cli.bucket import naming_storage
from keyturn_workers.core.errors import PreconditionError, RefusedError, RequestFailedError

if TYPE_CHECKING:
    from pathlib import Path

runner = CliRunner()
_REFUSED = "connection refused: check the host and port in KEYTURN_AMQP_URL, and that it is running"

_USAGE = [
    (["ls"], "Missing argument"),
    (["frob"], "No such command 'frob'"),
    (["ls", "Not A Project"], "malformed_request: a project id"),
    (["inspect", "acme", "../etc/passwd"], "malformed_request: a key has no empty"),
    (["ls", "acme"], "KEYTURN_GATEWAY_URL is missing"),
    (["ls", "acme", "--limit", "0"], "--limit"),
    (["doctor"], "KEYTURN_S3_BUCKET is missing"),
    (["worker", "upload"], "KEYTURN_AMQP_URL is missing"),
    (["dead", "list"], "KEYTURN_AMQP_URL is missing"),
    (["dead", "replay"], "name ids or use --all"),
    (["dead", "replay", "x", "--all"], "name ids or use --all"),
    (["dead", "show", "x", "--json"], "KEYTURN_AMQP_URL is missing"),
    (["dead", "discard", "x"], "needs --yes"),
    (["enroll", "acme"], "KEYTURN_AMQP_URL is missing"),
    (["upload", "acme", "nowhere.txt"], "KEYTURN_AMQP_URL is missing"),
    (["upload", "acme", "x", "--metadata", "novalue"], "--metadata must be name=value"),
    (["upload", "acme", "x", "--metadata", "enc-algo=x"], "malformed_request: metadata names"),
    (["upload", "acme", "x", "--content-type", "a\nb"], "malformed_request: content_type"),
    (["download", "acme", "k", "--as-operator", "--api-key-file", "f"], "cannot be used together"),
    (["download", "acme", "k", "--as-operator"], "--as-operator requires --reason"),
    (["download", "acme", "k", "--customer-secret-file", "f"], "requires --as-operator"),
    (["audit", "tail"], "KEYTURN_AMQP_URL is missing"),
    (["audit", "verify", "nowhere"], "KEYTURN_EVENT_PUBLIC_KEY is missing"),
    (["--env-file", "nowhere.env", "ls", "acme"], "nowhere.env: No such file"),
    (["keygen", "master-key", "--id", "No Name"], "1 to 32 characters"),
]


@pytest.mark.parametrize(("arguments", "message"), _USAGE, ids=[" ".join(a) for a, _ in _USAGE])
def test_wrong_usage_and_missing_settings_exit_2_with_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("keyturn: ")
    assert result.stdout == ""


def test_a_malformed_setting_is_named_and_its_value_is_not_shown(tmp_path: Path) -> None:
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
    env = {"KEYTURN_S3_BUCKET": "bucket", "KEYTURN_MASTER_KEYS": f'{{"m1": "{secret}"}}'}
    target = tmp_path / "x"
    result = runner.invoke(
        app,
        ["download", "acme", "k", "--as-operator", "--reason", "why", "-o", str(target)],
        env=env,
    )
    assert result.exit_code == 2
    assert "KEYTURN_MASTER_KEYS is malformed" in result.stderr
    assert secret not in result.output


def test_an_api_key_of_the_wrong_form_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("too short but secret")
    arguments = ["download", "acme", "k", "-o", str(tmp_path / "x"), "--api-key-file", str(file)]
    result = runner.invoke(app, arguments, env={"KEYTURN_GATEWAY_URL": "http://127.0.0.1:1"})
    assert result.exit_code == 2
    assert "an API key is 32 to 512 characters" in result.stderr
    assert "too short but secret" not in result.output


def test_without_a_terminal_there_is_no_prompt(tmp_path: Path) -> None:
    arguments = ["download", "acme", "k", "-o", str(tmp_path / "x")]
    result = runner.invoke(app, arguments, env={"KEYTURN_GATEWAY_URL": "http://127.0.0.1:1"})
    assert result.exit_code == 2
    assert "no API key" in result.stderr


@pytest.mark.parametrize("code", sorted(all_errors()))
def test_every_error_code_exits_1(code: str) -> None:
    line, status = errors.describe(all_errors()[code]("why"))
    assert (line, status) == (f"{code}: why", 1)


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (SettingsError("KEYTURN_X is missing"), "KEYTURN_X is missing", 2),
        (errors.CommandError("no"), "no", 1),
        (WaitTimeoutError("no event"), "no event", 1),
        (ExceptionGroup("g", [AlreadyExistsError("k")]), "already_exists: k", 1),
        (PermissionError(13, "Permission denied", "f"), "f: Permission denied", 1),
        (OSError(28, "No space left on device"), "No space left on device", 1),
        (OSError("amqp://user:password@host"), "internal error: OSError", 1),
        (TimeoutError(), "a server did not respond in time", 1),
        (KeyError("amqp://user:password@host"), "internal error: KeyError", 1),
        (
            ConnectionRefusedError("amqp://user:password@host"),
            f"the broker cannot be reached ({_REFUSED})",
            1,
        ),
    ],
)
def test_every_other_error_is_one_line_without_foreign_text(
    error: Exception, line: str, status: int
) -> None:
    assert errors.describe(error) == (line, status)


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("amqp://user:password@host"), BrokerUnavailableError("away")]
)
def test_an_unreachable_broker_is_reported_with_its_endpoint_and_no_secret(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_AMQP_URL", "amqp://user:password@broker.example:5673/v?x=hidden")
    line, status = errors.describe(error)
    assert line.endswith(" at amqp://broker.example:5673")
    assert "password" not in line
    assert status == 1


@pytest.mark.parametrize("url", ["", "amqp://", "amqp://host:port/", "nonsense"])
def test_a_malformed_broker_url_is_left_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTURN_AMQP_URL", url)
    line, _ = errors.describe(ConnectionRefusedError())
    assert line == f"the broker cannot be reached ({_REFUSED})"


@pytest.mark.parametrize(
    "command", [["ls", "acme", "--as-operator"], ["inspect", "acme", "k"], ["doctor"]]
)
def test_an_unreachable_storage_is_reported_with_its_endpoint(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "files")
    monkeypatch.setenv("KEYTURN_S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("KEYTURN_S3_SECRET_ACCESS_KEY", "not-to-show")
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: storage_unavailable: ")
    assert result.stderr.endswith("(the storage at http://127.0.0.1:1, bucket files)\n")
    assert "not-to-show" not in result.output


def test_an_interrupt_exits_130_silently(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert errors.run(interrupted) == 130
    assert capsys.readouterr().err == ""


def test_an_interrupted_command_exits_130_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("keyturn_workers.cli.objects.asyncio.run", interrupted)
    # Otherwise the coroutine would never be awaited, and Python would warn.
    monkeypatch.setattr("keyturn_workers.cli.objects._inspect", lambda *_, **__: None)
    result = runner.invoke(app, ["inspect", "acme", "k"], env={"KEYTURN_S3_BUCKET": "bucket"})
    assert (result.exit_code, result.output) == (130, "")


def test_an_aborted_prompt_exits_1_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def abort() -> None:
        raise typer.Abort

    assert errors.run(abort) == 1
    assert capsys.readouterr().err == "keyturn: aborted\n"


@pytest.mark.slow
def test_a_closed_pipe_ends_the_command_silently() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "keyturn_workers", "keygen", "api-key"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RefusedError("list: SignatureDoesNotMatch"), " (check KEYTURN_S3_SECRET_ACCESS_KEY)"),
        (
            RefusedError("read: InvalidAccessKeyId"),
            " (the storage does not know KEYTURN_S3_ACCESS_KEY_ID)",
        ),
        (PreconditionError("put: 412"), ""),
    ],
)
def test_a_refusal_by_the_storage_names_the_setting(error: Exception, hint: str) -> None:
    assert errors.describe(error) == (f"the storage rejected the request: {error}{hint}", 1)


def test_a_missing_bucket_names_the_setting_and_the_address() -> None:
    settings = S3Settings(s3_bucket="files", s3_endpoint_url="http://127.0.0.1:9000")
    with pytest.raises(StorageUnavailableError) as raised, naming_storage(settings):
        raise RequestFailedError("list: NoSuchBucket")
    assert raised.value.detail == (
        "list: NoSuchBucket (the bucket in KEYTURN_S3_BUCKET does not exist) (the storage at "
        "http://127.0.0.1:9000, bucket files)"
    )


@pytest.mark.parametrize(
    "group", [[], *([name] for name in ("worker", "keys", "keygen", "dead", "audit", "evidence"))]
)
def test_a_group_alone_lists_its_commands(group: list[str]) -> None:
    result = runner.invoke(app, group)
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout == runner.invoke(app, [*group, "--help"]).stdout
