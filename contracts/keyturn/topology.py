"""Exchanges, queues, routing keys and retry delays, in one place (SPEC 6.1, 6.2).

Plain data: workers declare it (the streams of publishers first, so that where a request is
accepted, its publisher can read the answer), and publishers only name it. The arguments of a queue
are part of its identity: the broker refuses a second declaration that differs, so they never
change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

EXCHANGE: Final = "keyturn"

UPLOAD_QUEUE: Final = "keyturn.upload"
CONTROL_QUEUE: Final = "keyturn.control"
SWEEP_QUEUE: Final = "keyturn.sweep"
PLAN_QUEUE: Final = "keyturn.plan"  # a sweep's steps, which never wait behind pages
EVENTS_STREAM: Final = "keyturn.events"
AUDIT_STREAM: Final = "keyturn.audit"
AUDIT_RECORDED: Final = "audit.recorded"
WORKERS_STREAM: Final = "keyturn.workers"
WORKER_REPORTED: Final = "worker.reported"
MARKS_STREAM: Final = "keyturn.marks"
KEYRING_MARKED: Final = "keyring.marked"
# The queue, and the exchange that feeds it: storage servers' notices of new objects (SPEC 17.4).
NOTIFICATIONS: Final = "keyturn.notifications"
# Between the exchange and the streams of single publishers, each bound by its header.
PUBLISHER_EVENTS_EXCHANGE: Final = "keyturn.publisher-events"
# Dead letters that no known publisher signed, bounded on their own (SPEC 6.9).
UNSIGNED_DEAD_QUEUE: Final = "keyturn.unsigned.dead"
# An exclusive queue, held as a lock by a reader of dead letters: another would see only half.
DEAD_LOCK: Final = "keyturn.dead.lock"

UPLOAD_REQUESTS: Final = ("upload.requested",)
CONTROL_REQUESTS: Final = (
    "enroll.requested",
    "rotation.requested",
    "sweep.requested",
    "delete.requested",
    "status.requested",
    "dead_letters.requested",
    "recover.requested",
    "erase.requested",
)
REQUESTS: Final = UPLOAD_REQUESTS + CONTROL_REQUESTS
EVENTS: Final = (
    "project.enrolled",
    "enroll.rejected",
    "upload.stored",
    "upload.rejected",
    "rotation.accepted",
    "rotation.rejected",
    "rotation.completed",
    "rotation.failed",
    "sweep.progressed",
    "sweep.completed",
    "sweep.failed",
    "sweep.rejected",
    "object.deleted",
    "delete.rejected",
    "status.rejected",
    "dead_letters.moved",
    "dead_letters.rejected",
    "project.recovered",
    "recover.rejected",
    "project.erased",
    "erase.rejected",
)
STATUS_REPORTED: Final = "status.reported"
# The events in the streams of single publishers. Reports go only to their own publisher, not to
# `keyturn.events`: a console asks for many, and they state no occurrence.
PUBLISHER_EVENTS: Final = (*EVENTS, STATUS_REPORTED)

REQUEST_ID_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "enroll.requested": "request_id",
        "upload.requested": "upload_id",
        "rotation.requested": "rotation_id",
        "sweep.requested": "sweep_id",
        "delete.requested": "request_id",
        "status.requested": "request_id",
        "dead_letters.requested": "request_id",
        "recover.requested": "request_id",
        "erase.requested": "request_id",
    }
)
REJECTED_EVENTS: Final[Mapping[str, str]] = MappingProxyType(
    {request: request.replace(".requested", ".rejected") for request in REQUESTS}
)

PUBLISHER_HEADER: Final = "keyturn-publisher"
SIGNATURE_HEADER: Final = "keyturn-signature"
EVENT_KEY_HEADER: Final = "keyturn-event-key"  # the id of the key that signed an event
TRACEPARENT_HEADER: Final = "traceparent"  # unsigned: a link for traces at most (SPEC 6.11)
# Added by workers; removed when a dead letter is replayed.
CODE_HEADER: Final = "keyturn-code"
DETAIL_HEADER: Final = "keyturn-detail"
ATTEMPT_HEADER: Final = "keyturn-attempt"
NOT_BEFORE_HEADER: Final = "keyturn-not-before"
RETRY_MAC_HEADER: Final = "keyturn-retry-mac"
DEAD_AT_HEADER: Final = "keyturn-dead-at"  # when a worker put the letter there (SPEC 1)
# On a letter whose body was not kept: the body's SHA-256, in 64 hex digits (SPEC 6.9).
BODY_DROPPED_HEADER: Final = "keyturn-body-dropped"
WORKER_HEADERS: Final = (
    CODE_HEADER,
    DETAIL_HEADER,
    DEAD_AT_HEADER,
    BODY_DROPPED_HEADER,
    ATTEMPT_HEADER,
    NOT_BEFORE_HEADER,
    RETRY_MAC_HEADER,
)

# SPEC 12, and SPEC 7.5 for unknown_project: seconds before the 1st, 2nd, … retry.
RETRY_DELAYS_S: Final = (1, 5, 30, 120, 600)
UNKNOWN_PROJECT_DELAYS_S: Final = (1, 5, 9)
ALL_DELAYS_S: Final = tuple(sorted({*RETRY_DELAYS_S, *UNKNOWN_PROJECT_DELAYS_S}))

EVENTS_MAX_BYTES: Final = 4 * 1024**3
EVENTS_MAX_AGE: Final = "14D"
_SEGMENT_BYTES: Final = 64 * 1024**2
# The default for the audit trail.
AUDIT_MAX_AGE_S: Final = 365 * 24 * 3600
AUDIT_MAX_BYTES: Final = 4 * 1024**3
# One stream for each publisher: smaller, since there may be many.
PUBLISHER_EVENTS_MAX_BYTES: Final = 512 * 1024**2
WORKERS_MAX_BYTES: Final = 64 * 1024**2
WORKERS_MAX_AGE: Final = "1D"
_WORKERS_SEGMENT_BYTES: Final = 4 * 1024**2
_PUBLISHER_SEGMENT_BYTES: Final = 16 * 1024**2
_AUDIT_SEGMENT_BYTES: Final = 16 * 1024**2
_MARKS_SEGMENT_BYTES: Final = 64 * 1024**2
# Each crash of a worker costs a message one delivery. A series of failed deployments can use up the
# broker's default of 20, and the message would be dead-lettered.
DELIVERY_LIMIT: Final = 100
# Notifications are hints: the next listing of the source finds the objects of dropped ones.
NOTIFICATIONS_MAX_BYTES: Final = 64 * 1024**2
_NOTIFICATION_DELIVERIES: Final = 5
_CONSUMER_TIMEOUT_MS: Final = 6 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, and the routing keys that bind it to the exchange."""

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    bindings: tuple[str, ...] = ()

    @property
    def is_stream(self) -> bool:
        """True if it keeps messages after they were read."""
        return self.arguments.get("x-queue-type") == "stream"


def dead_letter_name(queue: str) -> str:
    """Return the name of a queue's dead-letter queue (SPEC 6.2)."""
    return f"{queue}.dead"


DEAD_QUEUES: Final = (
    *map(dead_letter_name, (UPLOAD_QUEUE, CONTROL_QUEUE, SWEEP_QUEUE, PLAN_QUEUE)),
    UNSIGNED_DEAD_QUEUE,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy for queues. An operator sets it: a worker cannot."""

    name: str
    pattern: str
    definition: Mapping[str, str | int]


def _bounds(days: int, mebibytes: int) -> dict[str, str | int]:
    return {
        "message-ttl": days * 24 * 3600 * 1000,
        "max-length-bytes": mebibytes * 1024**2,
        "overflow": "drop-head",
    }


# A flood of unsigned messages pushes out no signed ones.
DEAD_POLICIES: Final = (
    Policy("keyturn-dead", r"^keyturn\.(upload|control|plan|sweep)\.dead$", _bounds(30, 256)),
    Policy("keyturn-unsigned-dead", r"^keyturn\.unsigned\.dead$", _bounds(7, 64)),
)
"""The bounds of the dead letters, unless the operator chooses others (SPEC 6.9)."""


def publisher_stream(publisher: str) -> str:
    """Return the stream of the events of one publisher's own requests (SPEC 6.8)."""
    return f"{EVENTS_STREAM}.{publisher}"


def retry_name(queue: str, delay_s: int) -> str:
    """Return the queue where a message waits `delay_s` seconds for its next attempt."""
    return f"{queue}.retry.{delay_s}s"


def _work_queue(name: str, bindings: tuple[str, ...]) -> Queue:
    return Queue(
        name,
        {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": _CONSUMER_TIMEOUT_MS,
            **_dead_letters_to(dead_letter_name(name)),
        },
        bindings,
    )


def _dead_letters_to(queue: str) -> dict[str, str | int]:
    # at-least-once needs reject-publish; without it a message in transit between the queues is lost
    # when the broker dies.
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _dead_queue(name: str) -> Queue:
    # No delivery limit: inspecting a dead letter counts as a delivery, and a limit without a
    # dead-letter exchange drops messages. No limit of age or size either: those are policies, which
    # can change, and an argument would override them (SPEC 6.9).
    return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": -1})


def _retry_queue(name: str, delay_s: int) -> Queue:
    return Queue(
        retry_name(name, delay_s),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": delay_s * 1000,
            **_dead_letters_to(name),
        },
    )


def publisher_queue(publisher: str) -> Queue:
    """Return the stream of one publisher's events: a copy of its part of `keyturn.events`.

    The headers exchange feeds it, by `publisher_binding` (SPEC 6.8).
    """
    return Queue(
        publisher_stream(publisher),
        {
            "x-queue-type": "stream",
            "x-max-length-bytes": PUBLISHER_EVENTS_MAX_BYTES,
            "x-max-age": EVENTS_MAX_AGE,
            "x-stream-max-segment-size-bytes": _PUBLISHER_SEGMENT_BYTES,
        },
    )


def publisher_binding(publisher: str) -> Mapping[str, str]:
    """Return the arguments that bind a publisher's stream to the headers exchange."""
    return {"x-match": "all", PUBLISHER_HEADER: publisher}


def audit_queue(max_age_s: int = AUDIT_MAX_AGE_S, max_bytes: int = AUDIT_MAX_BYTES) -> Queue:
    """Return the stream of the audit trail, with the bounds of the settings (SPEC 15.3).

    It receives only `audit.recorded`, and no other stream does: publishers must not read what
    operators do.
    """
    return Queue(
        AUDIT_STREAM,
        {
            "x-queue-type": "stream",
            "x-max-length-bytes": max_bytes,
            "x-max-age": f"{max_age_s}s",
            "x-stream-max-segment-size-bytes": _AUDIT_SEGMENT_BYTES,
        },
        (AUDIT_RECORDED,),
    )


def workers_queue() -> Queue:
    """Return the stream of workers' reports about themselves (SPEC 16.2).

    Short-lived: each worker reports every few seconds, and only the newest reports matter.
    """
    return Queue(
        WORKERS_STREAM,
        {
            "x-queue-type": "stream",
            "x-max-length-bytes": WORKERS_MAX_BYTES,
            "x-max-age": WORKERS_MAX_AGE,
            "x-stream-max-segment-size-bytes": _WORKERS_SEGMENT_BYTES,
        },
        (WORKER_REPORTED,),
    )


def marks_queue() -> Queue:
    """Return the stream of the marks of keyrings (SPEC 5.5).

    It has no bound of age or size: the newest mark of a project may be years old, and only it shows
    that the project's keyring was rolled back.
    """
    return Queue(
        MARKS_STREAM,
        {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": _MARKS_SEGMENT_BYTES},
        (KEYRING_MARKED,),
    )


def notifications_queue() -> Queue:
    """Return the queue of storage servers' notifications of new objects (SPEC 17.4).

    Bounded, and without dead letters: nothing in it is signed, and a flood affects no other queue.
    The exchange of the same name feeds it, whatever the routing key.
    """
    return Queue(
        NOTIFICATIONS,
        {
            "x-queue-type": "quorum",
            "x-delivery-limit": _NOTIFICATION_DELIVERIES,
            "x-max-length-bytes": NOTIFICATIONS_MAX_BYTES,
            "x-overflow": "drop-head",
        },
    )


def queues() -> tuple[Queue, ...]:
    """Return all queues but the audit trail's, in the order of their declaration: streams last.

    A stream is bound only to its own keys, never to `#`: a stream that received requests would
    satisfy `mandatory` and lose them.
    """
    work = (
        _work_queue(UPLOAD_QUEUE, UPLOAD_REQUESTS),
        _work_queue(CONTROL_QUEUE, CONTROL_REQUESTS),
        _work_queue(SWEEP_QUEUE, ()),
        _work_queue(PLAN_QUEUE, ()),
    )
    dead = tuple(map(_dead_queue, DEAD_QUEUES))
    retry = tuple(_retry_queue(queue.name, s) for queue in work for s in ALL_DELAYS_S)
    events = Queue(
        EVENTS_STREAM,
        {
            "x-queue-type": "stream",
            "x-max-length-bytes": EVENTS_MAX_BYTES,
            "x-max-age": EVENTS_MAX_AGE,
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
        EVENTS,
    )
    # Dead-letter and retry queues are declared before the work queues that refer to them.
    return (*dead, *retry, *work, notifications_queue(), workers_queue(), marks_queue(), events)
