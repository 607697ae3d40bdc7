"""OpenTelemetry's variables: what the SDK would silently ignore stops the process, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from keyturn.errors import SettingsError
from keyturn_workers.tracing.environment import (
    check_environment,
    is_disabled,
    receiver,
    root_ratio,
)

if TYPE_CHECKING:
    from pathlib import Path


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
    assert receiver(environ) == expected


@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("TRUE ", True), ("false", False)])
def test_its_own_switch_turns_it_off(value: str, disabled: bool) -> None:
    assert is_disabled({"OTEL_SDK_DISABLED": value}) is disabled
    assert not is_disabled({})


@pytest.mark.parametrize(
    ("environ", "ratio"),
    [
        ({}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
        (
            {"OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            0.01,
        ),
    ],
)
def test_the_share_of_traces_without_a_parent(
    environ: dict[str, str], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK reads the same sampler from the same variables."""
    check_environment(environ)
    assert root_ratio(environ) == ratio
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    sampler = TracerProvider(shutdown_on_exit=False).sampler
    bound = TraceIdRatioBased.get_bound_for_rate(ratio)
    limit = TraceIdRatioBased.TRACE_ID_LIMIT
    for trace_id in {0, max(bound - 1, 0), min(bound, limit), limit}:
        decision = sampler.should_sample(None, trace_id, "process").decision
        assert (decision is Decision.RECORD_AND_SAMPLE) is (trace_id < bound)
