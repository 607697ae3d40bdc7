"""`keyturn worker` runs the roles that its command names, on the settings of a worker (SPEC 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.errors import StorageUnavailableError
from keyturn_workers.cli import serve
from keyturn_workers.cli.app import app
from keyturn_workers.worker import process
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from keyturn_workers.settings import WorkerSettings

_S3 = S3Server("http://s3.example.com:9000", "access", "secret", "us-east-1", "given")
_ENVIRONMENT = Deployment("amqp://localhost/", _S3, "bucket").worker_env()


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
