"""The dashboard of the gateway: requests, latency, traffic, errors."""

from __future__ import annotations

from typing import Final

from tools.dashboards.model import Dashboard, Panel, Query, Row, Variable, stat
from tools.dashboards.queries import (
    FIRING,
    JOB,
    master_keys,
    processes,
    quantile,
    quantiles,
    rate,
    rates,
)

_REQUESTS: Final = "keyturn_gateway_requests_total"
_FIRST_BYTE: Final = "keyturn:gateway_first_byte_seconds_bucket:rate5m"

_NOW: Final = Row(
    "Now",
    (
        stat("Requests", "Requests answered in a second.", "reqps", rate(_REQUESTS)),
        stat(
            "Server errors",
            "The share of responses with 5xx, over 5 minutes.",
            "percentunit",
            f"max(keyturn:gateway_errors:ratio_rate5m{{{JOB}}})",
            red_from=0.05,
        ),
        stat(
            "First byte (p99)",
            "From a request's head to the first byte of its response, over 5 minutes.",
            "s",
            quantile(0.99, _FIRST_BYTE, JOB),
            red_from=5,
        ),
        stat(
            "In progress",
            "Requests being served by all processes.",
            "short",
            f"sum(keyturn_gateway_requests_in_flight{{{JOB}}})",
        ),
        stat(
            "Sent",
            "Bytes of objects sent in a second.",
            "Bps",
            rate("keyturn_gateway_sent_bytes_total"),
        ),
        FIRING,
    ),
)

_TRAFFIC: Final = Row(
    "Traffic",
    (
        Panel(
            "Requests, by status",
            "401 is a wrong key; 429 a project above its share; 503 a limit of the gateway, or the "
            "storage or the broker is away.",
            "reqps",
            rates(_REQUESTS, "status"),
            stacked=True,
        ),
        Panel(
            "Requests, by route and method",
            "What clients ask for.",
            "reqps",
            (Query(f"{rate(_REQUESTS, JOB, 'route, method')} > 0", "{{method}} {{route}}"),),
            stacked=True,
        ),
        Panel(
            "Turned away",
            "429: a project uses its share. 503: the limit of requests at once, or the storage or "
            "the broker is away. Add gateways if it lasts.",
            "reqps",
            rates(_REQUESTS, "status", f'{JOB},status=~"429|503"'),
        ),
        Panel(
            "First byte",
            "From a request's head to the first byte of its response. Uploads are in it with the "
            "time that the client took to send them.",
            "s",
            quantiles(_FIRST_BYTE, JOB),
        ),
        Panel(
            "First byte, by route (p99)",
            "The same by route.",
            "s",
            (Query(quantile(0.99, _FIRST_BYTE, JOB, "route, le"), "{{route}}"),),
        ),
        Panel(
            "Requests in progress",
            "Of each process, at most KEYTURN_GATEWAY_CONCURRENCY.",
            "short",
            (Query(f"keyturn_gateway_requests_in_flight{{{JOB}}}", "{{instance}}"),),
        ),
        Panel(
            "Bytes",
            "Bytes of objects sent and received.",
            "Bps",
            (
                Query(rate("keyturn_gateway_sent_bytes_total"), "sent"),
                Query(rate("keyturn_gateway_received_bytes_total"), "received"),
            ),
        ),
        Panel(
            "Failures, by code",
            "Objects that could not be served: altered, or not readable. The log names project and "
            "object key.",
            "ops",
            rates("keyturn_gateway_failures_total", "code"),
        ),
        Panel(
            "Aborted responses, by reason",
            "Responses that ended early: the client went away or read nothing, or what is stored "
            "did not authenticate.",
            "ops",
            rates("keyturn_gateway_aborted_total", "reason"),
        ),
    ),
)

DASHBOARD: Final = Dashboard(
    "Keyturn gateway",
    "The HTTP gateway: requests, latency, bytes and errors. Needs the recording rules of Keyturn.",
    (Variable("job", "Job", "keyturn_gateway_requests_in_flight"),),
    (_NOW, _TRAFFIC, master_keys(), processes()),
)
