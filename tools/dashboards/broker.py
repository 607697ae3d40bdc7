"""The dashboard of the broker, as Keyturn uses it: its queues, streams, nodes."""

from __future__ import annotations

from typing import Final

from tools.dashboards.model import Dashboard, Panel, Query, Row, Unit, Variable, stat
from tools.dashboards.queries import FIRING, JOB, VHOST, VHOSTS, queue, rate

_WORK: Final = "keyturn.(upload|control|plan|sweep)"
_RETRY: Final = "keyturn[.].*[.]retry[.].*"
_DEAD: Final = "keyturn[.].*[.]dead"
_STREAMS: Final = "keyturn[.](events|audit|workers)([.].*)?"

_NOW: Final = Row(
    "Now",
    (
        stat(
            "Messages waiting",
            "Messages of the work queues that no worker has yet.",
            "short",
            queue("messages_ready", _WORK, ""),
        ),
        stat(
            "Queues without consumers",
            "Work queues that no worker consumes.",
            "short",
            f'count(keyturn:queue_consumers:max{{{VHOST},queue=~"{_WORK}"}} == 0) or vector(0)',
            red_from=1,
        ),
        stat(
            "All dead letters",
            "Messages refused for good that wait for a decision: keyturn dead list.",
            "short",
            queue("messages_ready", _DEAD, ""),
            red_from=1,
        ),
        stat(
            "Memory used",
            "Of the limit above which the broker blocks publishers; of the fullest node.",
            "percentunit",
            f"max(rabbitmq_process_resident_memory_bytes{{{JOB}}} "
            f"/ rabbitmq_resident_memory_limit_bytes{{{JOB}}})",
            red_from=0.8,
        ),
        stat(
            "Nodes that block publishers",
            "Nodes with an alarm: too little memory or disk.",
            "short",
            f"sum(rabbitmq_alarms_memory_used_watermark{{{JOB}}}) "
            f"+ sum(rabbitmq_alarms_free_disk_space_watermark{{{JOB}}})",
            red_from=1,
        ),
        FIRING,
    ),
)

_QUEUES: Final = Row(
    "Queues",
    (
        Panel(
            "Messages ready",
            "Messages that wait for a worker, by work queue.",
            "short",
            (Query(queue("messages_ready", _WORK), "{{queue}}"),),
        ),
        Panel(
            "Messages at workers",
            "Messages that workers hold and have not acknowledged.",
            "short",
            (Query(queue("messages_unacked", _WORK), "{{queue}}"),),
        ),
        Panel(
            "Consumers",
            "Processes that consume each work queue. 0 needs attention now.",
            "short",
            (Query(queue("consumers", _WORK), "{{queue}}"),),
        ),
        Panel(
            "Waiting for a retry",
            "Messages in queues of retries: each comes again after the delay in the queue's name.",
            "short",
            (Query(f"{queue('messages', _RETRY)} > 0", "{{queue}}"),),
        ),
        Panel(
            "Dead letters by queue",
            "Messages refused for good, until they are replayed, discarded or too old.",
            "short",
            (Query(queue("messages_ready", _DEAD), "{{queue}}"),),
        ),
        Panel(
            "Messages on streams",
            "Events, audit records and reports of workers. Streams drop their oldest messages.",
            "short",
            (Query(queue("messages", _STREAMS), "{{queue}}"),),
        ),
    ),
)

_MESSAGES: Final = Row(
    "Messages",
    (
        Panel(
            "Received and delivered",
            "Of all queues of the broker, also those of other applications.",
            "ops",
            (
                Query(rate("rabbitmq_global_messages_received_total"), "received"),
                Query(rate("rabbitmq_global_messages_confirmed_total"), "confirmed"),
                Query(rate("rabbitmq_global_messages_delivered_total"), "delivered"),
                Query(rate("rabbitmq_global_messages_acknowledged_total"), "acknowledged"),
            ),
        ),
        Panel(
            "Redelivered and unroutable",
            "Redelivered: a worker ended or lost its connection. Returned: no queue takes a "
            "published message, because no worker has started yet.",
            "ops",
            (
                Query(rate("rabbitmq_global_messages_redelivered_total"), "redelivered"),
                Query(rate("rabbitmq_global_messages_unroutable_returned_total"), "returned"),
                Query(rate("rabbitmq_global_messages_unroutable_dropped_total"), "dropped"),
            ),
        ),
        Panel(
            "Moved by the broker",
            "Expired: a retry is due. Delivery limit: a message was delivered 100 times and never "
            "settled.",
            "ops",
            (
                Query(rate("rabbitmq_global_messages_dead_lettered_expired_total"), "expired"),
                Query(
                    rate("rabbitmq_global_messages_dead_lettered_delivery_limit_total"),
                    "delivery limit",
                ),
            ),
        ),
    ),
)


def _of_nodes(title: str, description: str, unit: Unit, *metrics: tuple[str, str]) -> Panel:
    queries = (
        Query(f"{metric}{{{JOB}}}", f"{{{{instance}}}} {legend}".rstrip())
        for metric, legend in metrics
    )
    return Panel(title, description, unit, tuple(queries))


_NODES: Final = Row(
    "Nodes",
    (
        _of_nodes(
            "Memory of nodes",
            "At its limit a node blocks publishers.",
            "bytes",
            ("rabbitmq_process_resident_memory_bytes", "used"),
            ("rabbitmq_resident_memory_limit_bytes", "limit"),
        ),
        _of_nodes(
            "Free disk space",
            "At its limit a node blocks publishers. Requests that wait are on this disk.",
            "bytes",
            ("rabbitmq_disk_space_available_bytes", "free"),
            ("rabbitmq_disk_space_available_limit_bytes", "limit"),
        ),
        _of_nodes(
            "Files of nodes",
            "Open files and connections, and their limit.",
            "short",
            ("rabbitmq_process_open_fds", "used"),
            ("rabbitmq_process_max_fds", "limit"),
        ),
        _of_nodes(
            "Connections and channels",
            "Now open. Each worker has a few connections.",
            "short",
            ("rabbitmq_connections", "connections"),
            ("rabbitmq_channels", "channels"),
        ),
        Panel(
            "Connections opened and closed",
            "Many in a second: clients that connect for each message, or cannot sign in.",
            "ops",
            (
                Query(rate("rabbitmq_connections_opened_total"), "opened"),
                Query(rate("rabbitmq_connections_closed_total"), "closed"),
            ),
        ),
        _of_nodes(
            "Commit latency of quorum queues",
            "How long a node takes to commit an entry of a queue's log. A slow disk shows here.",
            "s",
            ("rabbitmq_raft_entry_commit_latency_seconds", ""),
        ),
    ),
)

DASHBOARD: Final = Dashboard(
    "Keyturn broker",
    "RabbitMQ as Keyturn uses it. Needs the recording rules of Keyturn.",
    (Variable("job", "Job", "rabbitmq_connections"), VHOSTS),
    (_NOW, _QUEUES, _MESSAGES, _NODES),
)
