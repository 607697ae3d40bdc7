"""Without traces OpenTelemetry is not even imported; with them its variables are checked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keyturn_workers.settings import GatewaySettings
from keyturn_workers.tracing import open_tracing
from tools.harness.deployment import Deployment
from tools.servers import S3Server

_BUILT = """
import sys
import keyturn.publisher, keyturn_workers.gateway.server, keyturn_workers.worker.process
# FastStream looks by itself whether `opentelemetry.semconv` is there.
loaded = {"opentelemetry.trace", "opentelemetry.context", "opentelemetry.sdk"} & set(sys.modules)
assert not loaded, loaded
"""
_WITHOUT_EXTRA = """
import sys
sys.modules["opentelemetry"] = None
from keyturn_workers.cli import main
sys.exit(main())
"""
_WITH_EXTRA = """
import sys
from keyturn_workers.cli import main
sys.exit(main())
"""
_S3 = S3Server("http://127.0.0.1:1", "access", "s3-secret-canary", "us-east-1", "given")
_MISSING = (
    "keyturn: KEYTURN_TRACING is on, but OpenTelemetry is not installed: "
    "pip install 'keyturn-workers[otel]'"
)
_DEPLOYMENT = Deployment("amqp://kim:amqp-secret-canary@127.0.0.1:1/", _S3, "bucket")


def _run(program: str, *command: str, **env: str) -> tuple[int, list[str]]:
    """The exit status of `keyturn`, and the lines that it wrote."""
    named = _DEPLOYMENT.gateway_env() if "gateway" in command else _DEPLOYMENT.worker_env()
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        env={"PATH": os.environ["PATH"], **named, "KEYTURN_TRACING": "true", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("disabled", ["", "true", "TRUE "])
def test_off_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch, disabled: str) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    settings = GatewaySettings.model_construct(tracing=bool(disabled))
    with open_tracing(settings, "keyturn-gateway") as tracing:
        assert tracing is None


@pytest.mark.slow
def test_off_opentelemetry_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", _BUILT], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("worker", "upload"), ("gateway",)], ids=" ".join)
def test_a_missing_extra_is_one_line(command: tuple[str, ...]) -> None:
    assert _run(_WITHOUT_EXTRA, *command) == (1, [_MISSING])


@pytest.mark.slow
def test_a_malformed_variable_is_one_line() -> None:
    status, lines = _run(
        _WITH_EXTRA, "worker", "upload", OTEL_EXPORTER_OTLP_ENDPOINT="kim:secret@collector"
    )
    assert status == 2
    assert lines == [
        "keyturn: OTEL_EXPORTER_OTLP_ENDPOINT is malformed: not an http:// or https:// URL"
    ]
