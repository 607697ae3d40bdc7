"""The dashboard of uploads: how many, how long they wait and take, and what fails."""

from __future__ import annotations

from typing import Final

from tools.dashboards.model import Dashboard, Panel, Query, Row, Variable, stat
from tools.dashboards.queries import (
    FIRING,
    JOB,
    VHOSTS,
    processes,
    quantile,
    quantiles,
    queue,
    rate,
    rates,
)

_UPLOAD: Final = f'{JOB},queue="keyturn.upload"'
_SERVED: Final = "keyturn_requests_served_total"
_STORED: Final = rate(_SERVED, f'{JOB},type="upload.stored"')
_STAGES: Final = "keyturn:stage_seconds_bucket:rate5m"

_NOW: Final = Row(
    "Now",
    (
        stat("Stored", "Uploads stored in a second.", "ops", _STORED),
        stat(
            "Waiting",
            "Requests that no worker has yet. If it grows for long, add upload workers.",
            "short",
            queue("messages_ready", "keyturn.upload", ""),
            red_from=10000,
        ),
        stat(
            "Workers",
            "Processes that the broker has as consumers of the queue of uploads.",
            "short",
            f"sum(keyturn_consuming{{{_UPLOAD}}})",
        ),
        stat(
            "Oldest request",
            "Age of the oldest request that a worker is processing; 0 when idle.",
            "s",
            f"max(keyturn_oldest_message_age_seconds{{{_UPLOAD}}})",
            red_from=3600,
        ),
        stat(
            "Dead letters",
            "Refused uploads that wait for a decision: keyturn dead list.",
            "short",
            queue("messages_ready", "keyturn.upload.dead", ""),
            red_from=1,
        ),
        FIRING,
    ),
)

_THROUGHPUT: Final = Row(
    "Throughput",
    (
        Panel(
            "Uploads",
            "Deliveries, and what became of them. More deliveries than results are retries.",
            "ops",
            (
                Query(rate("keyturn_messages_consumed_total", _UPLOAD), "delivered"),
                Query(_STORED, "stored"),
                Query(rate("keyturn_requests_refused_total", _UPLOAD), "refused"),
                Query(rate("keyturn_retries_total", _UPLOAD), "retried"),
            ),
        ),
        Panel(
            "Plaintext stored",
            "Bytes of plaintext stored in a second.",
            "Bps",
            (Query(rate("keyturn_stored_bytes_total"), "stored"),),
        ),
        Panel(
            "Queue of uploads",
            "Requests on the broker. Those for a retry wait in queues of their own.",
            "short",
            (
                Query(queue("messages_ready", "keyturn.upload", ""), "ready"),
                Query(queue("messages_unacked", "keyturn.upload", ""), "at workers"),
                Query(queue("messages_ready", "keyturn[.]upload[.]retry[.].*", ""), "for a retry"),
            ),
        ),
        Panel(
            "In progress",
            "Uploads that each worker is processing, at most KEYTURN_UPLOAD_CONCURRENCY. At its "
            "limit for long: add upload workers.",
            "short",
            (Query(f"keyturn_messages_in_flight{{{_UPLOAD}}}", "{{instance}}"),),
            width=12,
        ),
        Panel(
            "Stored by worker",
            "The broker spreads uploads evenly. A worker that stores fewer is slow.",
            "ops",
            (Query(rate(_SERVED, f'{JOB},type="upload.stored"', "instance"), "{{instance}}"),),
            width=12,
            stacked=True,
        ),
    ),
)

_LATENCY: Final = Row(
    "Latency",
    (
        Panel(
            "Wait on the queue",
            "From a request's requested_at to its first delivery, by the clocks of publisher and "
            "worker. High with few in progress: too few workers.",
            "s",
            quantiles("keyturn:queue_wait_seconds_bucket:rate5m", _UPLOAD),
        ),
        Panel(
            "Duration of an upload",
            "The work itself, without the wait: from the admitted request to the stored object.",
            "s",
            quantiles(_STAGES, f'{_UPLOAD},stage="serve"'),
        ),
        Panel(
            "Stages (p99)",
            "store is the storage; look and settle are the target and the keyring; tell is the "
            "broker.",
            "s",
            (Query(quantile(0.99, _STAGES, _UPLOAD, "stage, le"), "{{stage}}"),),
        ),
    ),
)

_FAILURES: Final = Row(
    "Failures",
    (
        Panel(
            "Refused, by code",
            "Uploads refused for good: dead letters. bad_signature and not_permitted mean an "
            "unauthorized sender, or a key that was changed on one side only.",
            "ops",
            rates("keyturn_requests_refused_total", "code", _UPLOAD),
            width=12,
        ),
        Panel(
            "Retried, by code",
            "Uploads that come again later. waiting is not an error.",
            "ops",
            rates("keyturn_retries_total", "code", _UPLOAD),
            width=12,
        ),
    ),
)

DASHBOARD: Final = Dashboard(
    "Keyturn uploads",
    "Uploads: throughput, wait, duration and failures. Needs the recording rules of Keyturn.",
    (Variable("job", "Job", "keyturn_consuming"), VHOSTS),
    (_NOW, _THROUGHPUT, _LATENCY, _FAILURES, processes()),
)
