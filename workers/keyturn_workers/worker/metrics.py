"""What a worker process counts and measures, for `/metrics` (SPEC 11, 13).

Each process has a registry of its own; nothing here is global. A label is one of a small
closed set: a queue, a type, a code of SPEC 12, a stage, an outcome. It is never a project, a
key, an id or anything else that a sender chose: a sender could make series without end, and
whoever reads a scrape would read names. What is of no known set is counted as `other`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from keyturn.errors import CodedError, all_errors
from keyturn.identifiers import parse_time
from keyturn.topology import DEAD_QUEUES, EVENTS, REQUESTS

# The consumers': admit, serve, tell. The upload worker's: look, open, store, settle. The
# sweep worker's: take, record.
Stage = Literal["admit", "serve", "tell", "look", "open", "store", "settle", "take", "record"]

# From a signature's check to a page of large copies.
_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120, 600)
# Why a request that is done, but for a wait, comes again: no error, so no code of SPEC 12.
WAITING: Final = "waiting"
OTHER: Final = "other"
# What becomes of an object in a take, by the names of SPEC 8.6.
OUTCOMES: Final = (
    "rewrapped",
    "encrypted",
    "current",
    "plaintext",
    "deleted",
    "foreign",
    "failed",
)


class Timed:
    """A stage under way: its seconds are noted at its end, however it ends."""

    __slots__ = ("_began", "_seconds")

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seconds.observe(time.perf_counter() - self._began)


class Delivery:
    """One message in flight, from its delivery to its end."""

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

    def admitted(self, requested_at: str) -> None:
        """From here on its age counts from the time that its request tells (SPEC 1)."""
        # Parsed when somebody asks for the age: few do.
        self._requested_at = requested_at

    def held_s(self) -> float:
        """Seconds that this process has had it."""
        return time.perf_counter() - self._began

    def age_s(self, now: datetime) -> float:
        """Seconds since the request was made; of what tells no trustworthy time, `held_s`."""
        if self._requested_at is None:
            return self.held_s()
        # The sender's clock may be ahead of this one.
        return max(0.0, (now - parse_time(self._requested_at)).total_seconds())


class QueueMetrics:
    """What is counted for the messages of one queue. Made by `WorkerMetrics.queue`."""

    def __init__(self, families: "_Families", queue: str) -> None:
        self._queue = queue
        self._in_flight: set[Delivery] = set()
        self._consumed = families.consumed.labels(queue)
        self._refused = _Bounded(families.refused, families.codes, queue)
        self._put_off = _Bounded(families.schedule_retry, families.codes | {WAITING}, queue)
        self._served = families.served
        self._seconds = families.seconds
        self._stages: dict[Stage, Histogram] = {}
        self._consuming = families.consuming
        families.in_flight.labels(queue).set_function(lambda: len(self._in_flight))
        families.oldest.labels(queue).set_function(self._oldest_s)

    @property
    def in_flight(self) -> int:
        """Messages that were taken and have not come to their end."""
        return len(self._in_flight)

    def delivery(self) -> Delivery:
        """A message that was taken: in flight while its block runs."""
        self._consumed.inc()
        return Delivery(self._in_flight)

    def stage(self, name: Stage) -> Timed:
        """Measures its block."""
        seconds = self._stages.get(name)
        if seconds is None:
            seconds = self._stages[name] = self._seconds.labels(self._queue, name)
        return Timed(seconds)

    def served(self, message_type: str) -> None:
        """A request was served, and this event told (or, where none was, of this type)."""
        self._served.inc(message_type)

    def refused(self, error: CodedError) -> None:
        """A message went to the dead letters."""
        self._refused.inc(error.code)

    def schedule_retry(self, error: CodedError) -> None:
        """A message waits for its next try."""
        self._put_off.inc(error.code)

    def waits(self) -> None:
        """A message waits by nobody's fault."""
        self._put_off.inc(WAITING)

    def consuming(self, registered: Callable[[], bool]) -> None:
        """Tell at each scrape whether the broker has this process as the queue's consumer."""
        self._consuming.labels(self._queue).set_function(registered)

    def begin_at_zero(self) -> None:
        """Show every code before it happens: a rise from nothing is no rise to Prometheus."""
        self._refused.begin_at_zero()
        self._put_off.begin_at_zero()

    def _oldest_s(self) -> float:
        now = datetime.now(UTC)
        return max((each.age_s(now) for each in self._in_flight), default=0.0)


class Registry(CollectorRegistry):
    """Leaves out when each series began: twice as many series, which no alert here needs."""

    def __init__(self) -> None:
        super().__init__(auto_describe=False)

    def add_process(self) -> None:
        """Tell of the process itself as well: memory, CPU, open files, collections, Python."""
        ProcessCollector(registry=self)
        PlatformCollector(registry=self)
        GCCollector(registry=self)

    def exposed(self, accept: str = "") -> tuple[bytes, str]:
        """All samples in the form that an `Accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterator[Metric]:
        """What is registered, without the moments of its beginning."""
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class WorkerMetrics:
    """All metrics of one process, on a registry of its own.

    Whoever is given none makes one that nobody reads.
    """

    def __init__(self) -> None:
        self._registry = Registry()
        self._families = _Families(self._registry)
        self._queues: dict[str, QueueMetrics] = {}

    def queue(self, name: str) -> QueueMetrics:
        """The metrics of one queue, the same for all who ask for it."""
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = QueueMetrics(self._families, name)
        return found

    def stored(self, size_bytes: int) -> None:
        """A put of this process stored so many bytes of plaintext."""
        self._families.stored.inc(size_bytes)

    def dead_letter_dropped(self, queue: str, reason: str) -> None:
        """A dead letter was dropped for the bound of its age or of its queue's bytes."""
        self._families.dead_dropped.labels(queue, reason).inc()

    def page_done(self, counts: Mapping[str, int], failed_codes: Iterable[str]) -> None:
        """A take of a page ended: what became of its objects, and the code of each failure."""
        self._families.pages.inc()
        for outcome in OUTCOMES:
            self._families.objects.inc(outcome, counts[outcome])
        for code in failed_codes:
            self._families.failures.inc(code)

    def add_process(self) -> None:
        """Tell of the process itself as well: memory, CPU, open files, collections, Python."""
        self._registry.add_process()

    def exposed(self, accept: str = "") -> tuple[bytes, str]:
        """All samples as they are now, in the form that an `Accept` header asks for, and its type.

        Prometheus text 0.0.4 where it asks for nothing else.
        """
        return self._registry.exposed(accept)


class _Bounded:
    """The children of a counter by its last label, which is of a closed set."""

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

    def begin_at_zero(self) -> None:
        for value in sorted(self._known):
            self.inc(value, 0)


class _Families:
    """Every metric by its name; the same list stands in docs/reference/metrics.md."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"keyturn_{name}", told, labels, registry=registry)

        def gauge(name: str, told: str) -> Gauge:
            return Gauge(f"keyturn_{name}", told, ["queue"], registry=registry)

        self.codes = frozenset(all_errors())
        self.consumed = counter("messages_consumed", "Deliveries taken.", "queue")
        served = counter("requests_served", "Requests served, by the event told.", "type")
        self.served = _Bounded(served, frozenset((*EVENTS, *REQUESTS)))
        self.refused = counter(
            "requests_refused", "Messages put into the dead letters.", "queue", "code"
        )
        self.dead_dropped = counter(
            "dead_letters_dropped",
            "Dead letters dropped for a bound of age or bytes.",
            "queue",
            "reason",
        )
        for queue in DEAD_QUEUES:
            for reason in ("age", "bytes"):
                self.dead_dropped.labels(queue, reason)
        self.schedule_retry = counter("retries", "Messages put off to come again.", "queue", "code")
        self.in_flight = gauge("messages_in_flight", "Messages being worked on.")
        self.oldest = gauge(
            "oldest_message_age_seconds",
            "Age of the oldest message being worked on, by its requested_at; 0 when idle.",
        )
        self.consuming = gauge("consuming", "1 while the broker has this process as a consumer.")
        self.seconds = Histogram(
            "keyturn_stage_seconds",
            "Seconds that a stage took, however it ended.",
            ["queue", "stage"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.stored = counter("stored_bytes", "Bytes of plaintext stored by puts.")
        self.pages = counter("sweep_pages", "Takes of pages that were done.")
        objects = counter("sweep_objects", "Objects that takes looked at.", "outcome")
        self.objects = _Bounded(objects, frozenset(OUTCOMES))
        failures = counter("sweep_failures", "What failed for one object alone.", "code")
        self.failures = _Bounded(failures, self.codes)
