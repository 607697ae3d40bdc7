"""`keyturn gateway` runs the gateway on the gateway's settings (SPEC 9, 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.errors import SettingsError
from keyturn_workers.cli import serve
from keyturn_workers.cli.app import app
from keyturn_workers.gateway import server
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from keyturn_workers.settings import GatewaySettings

_S3 = S3Server("http://s3.example.com:9000", "access", "secret", "us-east-1", "given")
_ENVIRONMENT = Deployment("amqp://localhost/", _S3, "bucket").gateway_env()


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """How logging was configured; that of the tests' own process stays as it is."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(serve, "configure", lambda *how: calls.append(how))
    return calls


def test_the_gateway_runs_on_its_settings(
    monkeypatch: pytest.MonkeyPatch, configured: list[tuple[str, str]]
) -> None:
    buckets: list[str] = []

    async def run_gateway(settings: GatewaySettings, tracing: object) -> None:
        assert tracing is None
        buckets.append(settings.s3_bucket)

    monkeypatch.setattr(server, "run_gateway", run_gateway)
    result = CliRunner().invoke(app, ["gateway"], env=_ENVIRONMENT)
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
    result = CliRunner().invoke(app, ["gateway"], env=_ENVIRONMENT)
    assert (result.exit_code, result.stderr) == (2, "keyturn: KEYTURN_GATEWAY_LISTEN is in use\n")
