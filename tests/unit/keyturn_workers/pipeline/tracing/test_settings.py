"""Without traces OpenTelemetry is not imported; with them a wrong variable is named and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import SettingsError
from keyturn_workers.pipeline.tracing.settings import check_environment
from keyturn_workers.pipeline.tracing.startup import open_tracing
from keyturn_workers.process.settings import GatewaySettings
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from pathlib import Path

_BUILT = """
import sys
import keyturn.publisher, keyturn_workers.gateway.server, keyturn_workers.pipeline.worker.process
# FastStream looks by itself whether `opentelemetry.semconv` is there.
loaded = {"opentelemetry.trace", "opentelemetry.context", "opentelemetry.sdk"} & set(sys.modules)
assert not loaded, loaded
"""
_WITHOUT_EXTRA = """
import sys
sys.modules["opentelemetry"] = None
from keyturn_workers.cli.app import main
sys.exit(main())
"""
_WITH_EXTRA = """
import sys
from keyturn_workers.cli.app import main
sys.exit(main())
"""
_S3 = S3Server("http://127.0.0.1:1", "access", "s3-secret-canary", "us-east-1", "given")
_MISSING = (
    "keyturn: KEYTURN_TRACING is on, but OpenTelemetry is not installed: "
    "pip install 'keyturn-workers[otel]'"
)
_DEPLOYMENT = Deployment("amqp://kim:amqp-secret-canary@127.0.0.1:1/", _S3, "bucket")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_SAMPLER": "always_on"},
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example.com:4318/prefix"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:4318/v1/traces"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "2.5", "OTEL_BSP_SCHEDULE_DELAY": "50"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_TRACES_SAMPLER_ARG": ""},
    ],
)
def test_good_values_pass(environ: dict[str, str]) -> None:
    check_environment(environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER", "always_off "),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://kim:secret@host:port"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "inf"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/ca.pem"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
    ],
)
def test_a_bad_value_is_named_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_environment({name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("ratio", [None, "", "1.5", "-0.1", "1 %", "nan"])
def test_a_ratio_is_a_number_from_0_to_1(ratio: str | None) -> None:
    """The SDK would record every trace instead."""
    environ = {"OTEL_TRACES_SAMPLER": "traceidratio"}
    if ratio is not None:
        environ["OTEL_TRACES_SAMPLER_ARG"] = ratio
    with pytest.raises(SettingsError, match="OTEL_TRACES_SAMPLER_ARG"):
        check_environment(environ)


def test_a_certificate_must_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    check_environment({"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem")})
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_CERTIFICATE"):
        check_environment({"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path)})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://kim:secret@example.com"}, "example.com"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://one:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://two:2/v1/traces?token=secret",
            },
            "two:2",
        ),
    ],
)  # fmt: skip
def test_the_receiver_is_shown_without_a_password(environ: dict[str, str], expected: str) -> None:
    assert check_environment(environ) == expected


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
