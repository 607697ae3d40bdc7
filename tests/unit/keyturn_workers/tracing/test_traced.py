"""The parts of a process with traces."""

from __future__ import annotations

import pytest

from keyturn_workers.tracing.traced import TracedInstrumentation, broker_attributes
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.unit.keyturn_workers.tracing.recorder import Recorder


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("amqp://kim:secret@broker.example.com/vhost", "broker.example.com", 5672),
        ("amqps://kim:secret@broker.example.com", "broker.example.com", 5671),
        ("amqp://kim:secret@10.0.0.7:5673/%2f", "10.0.0.7", 5673),
    ],
)
def test_the_broker_is_host_and_port(url: str, host: str, port: int) -> None:
    attributes = broker_attributes(url)
    assert attributes == {"server.address": host, "server.port": port}
    assert "secret" not in str(attributes)


def test_the_metrics_are_metrics() -> None:
    parts = TracedInstrumentation(Recorder().sampling, "amqp://broker")
    assert isinstance(parts.metrics(), WorkerMetrics)
