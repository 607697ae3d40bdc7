"""The gateway's Prometheus metrics, on a separate registry (SPEC 9.6, 13).

Labels have fixed sets of values. A project, a key, an id or anything else that a caller chooses
would reveal customers, and grow without a limit.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from keyturn.errors import all_errors
from keyturn_workers.gateway.problems import status_for_code
from keyturn_workers.process.metrics_registry import Registry

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
_SERVER_ERROR: Final = 500


class GatewayMetrics:
    """The metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = Counter(
            "keyturn_gateway_requests_total",
            "Requests served, by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "keyturn_gateway_requests_in_flight",
            "Requests in progress",
            registry=self.registry,
        )
        self.first_byte_s = Histogram(
            "keyturn_gateway_first_byte_seconds",
            "From a request's headers to the first byte of its response",
            ("route",),
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "keyturn_gateway_sent_bytes_total",
            "Bytes of objects sent",
            registry=self.registry,
        )
        self.received_bytes = Counter(
            "keyturn_gateway_received_bytes_total",
            "Bytes of objects received",
            registry=self.registry,
        )
        self.failures = Counter(
            "keyturn_gateway_failures_total",
            "Requests that failed, by the error code of SPEC 12",
            ("code",),
            registry=self.registry,
        )
        self.aborted = Counter(
            "keyturn_gateway_aborted_total",
            "Responses reset after they had started, by error code, client_gone or client_slow",
            ("reason",),
            registry=self.registry,
        )
        # Every code at zero: Prometheus sees no increase in a series that is new.
        codes = [code for code in sorted(all_errors()) if status_for_code(code) >= _SERVER_ERROR]
        for code in codes:
            self.failures.labels(code)
        for reason in ("client_gone", "client_slow", *codes):
            self.aborted.labels(reason)
