"""The gateway's metrics: labels of fixed sets, on a separate registry (SPEC 9.6, 13)."""

from __future__ import annotations

from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keyturn_workers.gateway.metrics import GatewayMetrics

_LABELS: Final = {"route", "method", "status", "code", "reason", "le"}


def test_two_processes_share_nothing() -> None:
    one, other = GatewayMetrics(), GatewayMetrics()
    one.sent_bytes.inc(5)
    name = "keyturn_gateway_sent_bytes_total"
    assert one.registry.get_sample_value(name) == 5
    assert other.registry.get_sample_value(name) == 0


def test_failures_are_shown_before_they_happen() -> None:
    """An alert on a rise would miss the first one otherwise."""
    shown = GatewayMetrics().registry.get_sample_value
    for code in ("corrupt_object", "no_usable_wrap", "storage_unavailable", "kms_unavailable"):
        assert shown("keyturn_gateway_failures_total", {"code": code}) == 0
    # A caller's own errors are no failures.
    assert shown("keyturn_gateway_failures_total", {"code": "not_found"}) is None
    for reason in ("client_gone", "client_slow", "corrupt_object"):
        assert shown("keyturn_gateway_aborted_total", {"reason": reason}) == 0


def test_no_label_is_chosen_by_a_caller() -> None:
    """A project, a key or an id would reveal customers, and grow without a limit."""
    metrics = GatewayMetrics()
    metrics.requests.labels("objects", "GET", "200").inc()
    metrics.first_byte_s.labels("objects").observe(0.1)
    metrics.failures.labels("corrupt_object").inc()
    metrics.aborted.labels("client_gone").inc()
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert all(family.name.startswith("keyturn_gateway_") for family in families)
    assert {name for f in families for sample in f.samples for name in sample.labels} == _LABELS


def test_the_first_byte_is_measured_from_a_millisecond_to_half_a_minute() -> None:
    metrics = GatewayMetrics()
    for seconds in (0.0005, 31):
        metrics.first_byte_s.labels("objects").observe(seconds)

    def counted(le: str) -> float | None:
        labels = {"route": "objects", "le": le}
        name = "keyturn_gateway_first_byte_seconds_bucket"
        return metrics.registry.get_sample_value(name, labels)

    assert (counted("0.001"), counted("30.0"), counted("+Inf")) == (1, 1, 2)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version="),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1"),
    ],
)
def test_the_format_is_the_one_that_is_accepted(accept: str, content_type: str) -> None:
    body, served = GatewayMetrics().render(accept)
    assert served.startswith(content_type)
    assert body.endswith(b"# EOF\n") is bool(accept)
