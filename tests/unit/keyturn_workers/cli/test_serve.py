"""`keyturn worker` and `keyturn gateway` run what they name, on the settings of it (SPEC 9, 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.cli import serve
from keyturn_workers.cli.app import app
from keyturn_workers.gateway import server
from keyturn_workers.worker import process
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from keyturn_workers.settings import GatewaySettings, WorkerSettings

_S3 = S3Server("http://s3.example.com:9000", "access", "secret", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://localhost/", _S3, "bucket")
_ENVIRONMENT = _DEPLOYMENT.worker_env()


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

    monkeypatch.setattr(server, "run_gateway", run_gateway)
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

    monkeypatch.setattr(server, "run_gateway", run_gateway)
    result = CliRunner().invoke(app, ["gateway"], env=_DEPLOYMENT.gateway_env())
    assert (result.exit_code, result.stderr) == (2, "keyturn: KEYTURN_GATEWAY_LISTEN is in use\n")
