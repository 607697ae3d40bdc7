"""What the gateway counts (SPEC 9.6, 13): Prometheus, on a registry of its own.

Labels come from sets that are known beforehand: never a project, a key, an id or anything
else that a caller chose, which would tell of customers and grow without bound.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from keyturn_workers.worker.metrics import Registry

_FIRST_BYTE_BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class GatewayMetrics:
    """The counters of one gateway process."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = Counter(
            "keyturn_gateway_requests_total",
            "Requests that were answered, by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "keyturn_gateway_requests_in_flight",
            "Requests that are being served",
            registry=self.registry,
        )
        self.first_byte_s = Histogram(
            "keyturn_gateway_first_byte_seconds",
            "From a request's headers to the first byte of its answer",
            ("route",),
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "keyturn_gateway_sent_bytes_total",
            "Bytes of objects that were sent",
            registry=self.registry,
        )
        self.received_bytes = Counter(
            "keyturn_gateway_received_bytes_total",
            "Bytes of objects that were received",
            registry=self.registry,
        )
        self.failures = Counter(
            "keyturn_gateway_failures_total",
            "Objects that could not be given out, by the code of SPEC 12",
            ("code",),
            registry=self.registry,
        )
        self.aborted = Counter(
            "keyturn_gateway_aborted_total",
            "Answers that were cut after they had begun: by the code that cut them, by "
            "client_gone or by client_slow",
            ("reason",),
            registry=self.registry,
        )

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All counters in the form that an `Accept` header asks for, and its content type."""
        return self.registry.render(accept)
