"""The metrics of a worker process, for `/metrics` (SPEC 11, 13).

Each process has its own registry; nothing here is global. A label's values are a small closed
set: queues, types, codes of SPEC 12, stages, outcomes. They are never a project, an object key,
an id or any other text from a sender: a sender could create series without end, and a scrape
would reveal names. A value outside its set is counted as `other`.
"""

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)

from keyturn.errors import CodedError, all_errors
from keyturn.identifiers import parse_time
from keyturn.messages.queue_report import QueueReport
from keyturn.topology import (
    CONTROL_QUEUE,
    PUBLISHER_EVENTS,
    REQUESTS,
    SWEEP_QUEUE,
    UPLOAD_QUEUE,
)
from keyturn_workers.process.metrics_registry import Registry

# The consumers': admit, serve, tell. The upload worker's: look, open, store, settle. The
# sweep worker's: take, record.
Stage = Literal["admit", "serve", "tell", "look", "open", "store", "settle", "take", "record"]

# From a signature's check to a page of large copies.
_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120, 600)
# From an idle queue to a backlog of a day.
_WAIT_BUCKETS_S: Final = (0.005, 0.02, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600, 21600, 86400)
# A request that was deferred without an error, so without a code of SPEC 12.
WAITING: Final = "waiting"
OTHER: Final = "other"
# The outcomes for an object on a page, by the names of SPEC 8.6.
OUTCOMES: Final = (
    "rewrapped",
    "encrypted",
    "current",
    "plaintext",
    "deleted",
    "foreign",
    "failed",
)


class Delivery:
    """One message in flight, from its delivery to its acknowledgment."""

    __slots__ = ("_began", "_in_flight", "_requested_at")

    def __init__(self, in_flight: "set[Delivery]") -> None:
        self._in_flight = in_flight
        self._began = time.perf_counter()
        self._requested_at: str | None = None

    def __enter__(self) -> Self:
        self._in_flight.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._in_flight.discard(self)

    def mark_admitted(self, requested_at: str) -> None:
        """Count its age from the request's `requested_at` from now on (SPEC 1)."""
        # Parsed only when a scrape asks for the age.
        self._requested_at = requested_at

    def identify(self, kind: Literal["request", "round"], identity: str) -> None:
        """Name the message's subject, for traces only: never a label of a metric.

        `identity` is the verified id of a request, or the well-formed id of a page's round.
        """

    def held_s(self) -> float:
        """Seconds since this process received the message."""
        return time.perf_counter() - self._began

    def age_s(self, now: datetime) -> float:
        """Seconds since the request was made; `held_s` if no trustworthy time is known."""
        if self._requested_at is None:
            return self.held_s()
        # The sender's clock may be ahead of this one.
        return max(0.0, (now - parse_time(self._requested_at)).total_seconds())


class QueueMetrics:
    """The metrics of one queue. Created by `WorkerMetrics.queue`."""

    delivery_type: type[Delivery] = Delivery

    def __init__(self, families: "_Families", queue: str) -> None:
        self._queue = queue
        self._in_flight: set[Delivery] = set()
        self._consumed = families.consumed.labels(queue)
        self._refused = _LabeledCounter(families.refused, families.codes, queue)
        self._retries = _LabeledCounter(families.retries, families.codes | {WAITING}, queue)
        self._families = families
        self._served = families.served
        self._seconds = families.seconds
        self._waits: Histogram | None = None
        self._stages: dict[Stage, Histogram] = {}
        self._consuming = families.consuming
        self._is_active: Callable[[], bool] | None = None
        # For the process's own reports: a counter of Prometheus cannot be read.
        self._totals: Counts[str] = Counts()
        self._waited_s: float | None = None
        families.in_flight.labels(queue).set_function(lambda: len(self._in_flight))
        families.oldest.labels(queue).set_function(self._oldest_s)

    @property
    def in_flight(self) -> int:
        """Messages that were delivered, but not acknowledged or returned yet."""
        return len(self._in_flight)

    def delivery(self) -> Delivery:
        """Count a delivery: in flight while its block runs."""
        self._consumed.inc()
        return self.delivery_type(self._in_flight)

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """Measure the block, however it ends."""
        seconds = self._stages.get(name)
        if seconds is None:
            seconds = self._stages[name] = self._seconds.labels(self._queue, name)
        return seconds.time()

    def count_served(self, message_type: str) -> None:
        """Count a served request by its event's type, or its own type if it has no event."""
        self._served.inc(message_type)
        self.count_hint()

    def count_hint(self) -> None:
        """Count a served message without a type of its own, such as a page of a sweep."""
        self._totals["served"] += 1

    def note_wait(self, requested_at: str) -> None:
        """Record the age of a request at its first delivery: the delay of the queue."""
        # The sender's clock may be ahead of this one.
        waited_s = max(0.0, time.time() - parse_time(requested_at).timestamp())
        self._waited_s = waited_s
        if self._waits is None:
            self._waits = self._families.waits.labels(self._queue)
        self._waits.observe(waited_s)

    def count_refused(self, error: CodedError) -> None:
        """Count a message that became a dead letter."""
        self._refused.inc(error.code)
        self._totals["refused"] += 1

    def count_retry(self, error: CodedError) -> None:
        """Count a message that waits for its next attempt."""
        self._retries.inc(error.code)
        self._totals["retried"] += 1

    def count_deferred(self) -> None:
        """Count a message that waits without having failed."""
        self._retries.inc(WAITING)

    def track_consumer(self, is_active: Callable[[], bool]) -> None:
        """Report at each scrape if this process is an active consumer of the queue."""
        self._consuming.labels(self._queue).set_function(is_active)
        self._is_active = is_active

    def report(self) -> QueueReport | None:
        """This process's report on the queue (SPEC 16.2); None if it does not consume it."""
        if self._is_active is None:
            return None
        return QueueReport(
            queue=self._queue,
            served=self._totals["served"],
            refused=self._totals["refused"],
            retried=self._totals["retried"],
            in_flight=self.in_flight,
            oldest_s=round(self._oldest_s(), 3) if self._in_flight else None,
            waited_s=None if self._waited_s is None else round(self._waited_s, 3),
            is_consuming=self._is_active(),
        )

    def initialize(self) -> None:
        """Export every code at zero: Prometheus sees no increase in a new series."""
        self._refused.initialize()
        self._retries.initialize()
        self._families.initialize(self._queue)

    def _oldest_s(self) -> float:
        now = datetime.now(UTC)
        return max((each.age_s(now) for each in self._in_flight), default=0.0)


class WorkerMetrics:
    """All metrics of one process, on its own registry."""

    queue_type: type[QueueMetrics] = QueueMetrics

    def __init__(self) -> None:
        self.registry = Registry()
        self._families = _Families(self.registry)
        self._queues: dict[str, QueueMetrics] = {}

    def queue(self, name: str) -> QueueMetrics:
        """The metrics of one queue, always the same instance."""
        metrics = self._queues.get(name)
        if metrics is None:
            metrics = self._queues[name] = self.queue_type(self._families, name)
        return metrics

    def report_queues(self) -> tuple[QueueReport, ...]:
        """This process's report on each queue that it consumes."""
        reports = (queue.report() for queue in self._queues.values())
        return tuple(report for report in reports if report is not None)

    def count_stored_bytes(self, size_bytes: int) -> None:
        """Count the plaintext that a put stored."""
        self._families.stored.inc(size_bytes)

    def track_audit(self, pending: Callable[[], int]) -> None:
        """Report at each scrape the number of audit records that the broker has not confirmed."""
        self._families.audit_pending.set_function(pending)

    def count_skipped_mark(self) -> None:
        """Count a signed mark on the stream with a field that no worker writes."""
        self._families.skipped_marks.inc()

    def report_rolled_back(self, keyrings: int) -> None:
        """Report the number of keyrings that a mark contradicts, by the last scan of all."""
        self._families.rolled_back.set(keyrings)

    def count_page(self, counts: Mapping[str, int], failed_codes: Iterable[str]) -> None:
        """Count a processed page: its objects' outcomes, and the code of each failure."""
        self._families.pages.inc()
        for outcome in OUTCOMES:
            self._families.objects.inc(outcome, counts[outcome])
        for code in failed_codes:
            self._families.failures.inc(code)


class _LabeledCounter:
    """The children of a counter by its last label, whose values are a closed set."""

    def __init__(self, counter: Counter, known: frozenset[str], *labels: str) -> None:
        self._counter = counter
        self._known = known
        self._labels = labels
        self._children: dict[str, Counter] = {}

    def inc(self, value: str, amount: int = 1) -> None:
        name = value if value in self._known else OTHER
        child = self._children.get(name)
        if child is None:
            child = self._children[name] = self._counter.labels(*self._labels, name)
        child.inc(amount)

    def initialize(self) -> None:
        for value in sorted(self._known):
            self.inc(value, 0)


class _Families:
    """Every metric by its name; docs/reference/metrics.md has the same list."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"keyturn_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(f"keyturn_{name}", help_text, ["queue"], registry=registry)

        self.codes = frozenset(all_errors())
        self.consumed = counter("messages_consumed", "Deliveries received.", "queue")
        served = counter("requests_served", "Requests served, by the event published.", "type")
        self.served = _LabeledCounter(served, frozenset((*PUBLISHER_EVENTS, *REQUESTS)))
        self.refused = counter(
            "requests_refused", "Messages that became dead letters.", "queue", "code"
        )
        self.retries = counter("retries", "Messages scheduled for a retry.", "queue", "code")
        self.in_flight = gauge("messages_in_flight", "Messages being processed.")
        self.oldest = gauge(
            "oldest_message_age_seconds",
            "Age of the oldest message being processed, by its requested_at; 0 when idle.",
        )
        self.consuming = gauge("consuming", "1 while the broker has this process as a consumer.")
        self.seconds = Histogram(
            "keyturn_stage_seconds",
            "Duration of a stage in seconds, whatever its outcome.",
            ["queue", "stage"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.waits = Histogram(
            "keyturn_queue_wait_seconds",
            "From a request's requested_at to its first delivery, in seconds.",
            ["queue"],
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self.audit_pending = Gauge(
            "keyturn_audit_records_pending",
            "Audit records that the broker has not confirmed.",
            registry=registry,
        )
        self.rolled_back = Gauge(
            "keyturn_worker_keyrings_rolled_back",
            "Keyrings that no worker uses, as of the last scan of all keyrings.",
            registry=registry,
        )
        self.skipped_marks = counter(
            "skipped_marks", "Signed marks of keyrings with a field that no worker writes."
        )
        self.stored = counter("stored_bytes", "Bytes of plaintext stored by puts.")
        self.pages = counter("sweep_pages", "Pages processed.")
        objects = counter("sweep_objects", "Objects of processed pages.", "outcome")
        self.objects = _LabeledCounter(objects, frozenset(OUTCOMES))
        failures = counter("sweep_failures", "Failures of single objects.", "code")
        self.failures = _LabeledCounter(failures, self.codes)

    def initialize(self, queue: str) -> None:
        """Export at zero the counters of a consumer of this queue that have no queue label."""
        if queue in (UPLOAD_QUEUE, CONTROL_QUEUE):
            self.waits.labels(queue)
            for event in sorted((*PUBLISHER_EVENTS, *REQUESTS)):
                if event.startswith("upload.") is (queue == UPLOAD_QUEUE):
                    self.served.inc(event, 0)
        elif queue == SWEEP_QUEUE:
            self.objects.initialize()
            self.failures.initialize()
