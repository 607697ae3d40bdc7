"""Metrics of ingest, for `/metrics` (SPEC 11). The operator chooses the names of sources."""

from collections.abc import Iterable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

ObjectOutcome = Literal["requested", "stored", "refused"]
HintOutcome = Literal["followed", "foreign", "malformed"]
_OBJECTS: Final[tuple[ObjectOutcome, ...]] = ("requested", "stored", "refused")
_HINTS: Final[tuple[HintOutcome, ...]] = ("followed", "foreign", "malformed")


class IngestMetrics:
    """The metrics of one process's role `ingest`; `sources` names the watched sources."""

    def __init__(self, registry: CollectorRegistry, sources: Iterable[str]) -> None:
        self._objects = Counter(
            "keyturn_source_objects",
            "Objects of sources, by outcome.",
            ["source", "outcome"],
            registry=registry,
        )
        self._hints = Counter(
            "keyturn_notifications",
            "Notifications from storage servers, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._polled = Gauge(
            "keyturn_source_listed_timestamp_seconds",
            "Unix time at which a source was last listed to its end; 0 before that.",
            ["source"],
            registry=registry,
        )
        self._waiting = Gauge(
            "keyturn_source_objects_waiting",
            "Objects of a source without an outcome when it was last listed.",
            ["source"],
            registry=registry,
        )
        self._refused = Gauge(
            "keyturn_source_objects_refused",
            "Refused objects that are in a source, up to 2,000.",
            ["source"],
            registry=registry,
        )
        # Begin at zero: Prometheus sees no increase in a new series.
        for hint in _HINTS:
            self._hints.labels(hint)
        for source in sources:
            self.report(source, listed_at=0.0, waiting=0, refused=0)
            for outcome in _OBJECTS:
                self._objects.labels(source, outcome)

    def count(self, source: str, outcome: ObjectOutcome) -> None:
        """Count an object of a source that was requested, stored or refused."""
        self._objects.labels(source, outcome).inc()

    def count_hint(self, outcome: HintOutcome) -> None:
        """Count a notification that was followed, names no source, or is malformed."""
        self._hints.labels(outcome).inc()

    def report(self, source: str, *, listed_at: float, waiting: int, refused: int) -> None:
        """Report the state of a source by its record."""
        self._polled.labels(source).set(listed_at)
        self._waiting.labels(source).set(waiting)
        self._refused.labels(source).set(refused)
