"""The worker's metrics, which also make the spans of stages and the outcome of a delivery.

What is timed and counted for `/metrics` is what a trace shows, so the consumers and the upload
worker need no code of their own for traces.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Final, Literal

from keyturn.errors import CodedError
from keyturn.identifiers import parse_time
from keyturn.topology import PUBLISHER_EVENTS, REQUESTS
from keyturn_workers.tracing.scope import Scope, current_scope, fail
from keyturn_workers.worker.metrics import Delivery, QueueMetrics, Stage, WorkerMetrics

_TYPES: Final = frozenset((*PUBLISHER_EVENTS, *REQUESTS))


class _TracedDelivery(Delivery):
    __slots__ = ()

    def identify(self, kind: Literal["request", "round"], identity: str) -> None:
        """See `Delivery.identify`."""
        _note(f"keyturn.{kind}.id", identity)


class TracedQueueMetrics(QueueMetrics):
    """The metrics of one queue, and the spans of its deliveries."""

    delivery_type = _TracedDelivery

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """See `QueueMetrics.stage`."""
        timer = super().stage(name)
        scope = current_scope()
        return timer if scope is None else _traced(timer, scope, name)

    def count_served(self, message_type: str) -> None:
        """See `QueueMetrics.count_served`."""
        super().count_served(message_type)
        if message_type in _TYPES:
            _note("keyturn.served_as", message_type)

    def count_hint(self) -> None:
        """See `QueueMetrics.count_hint`."""
        super().count_hint()
        _note("keyturn.outcome", "served")

    def note_wait(self, requested_at: str) -> None:
        """See `QueueMetrics.note_wait`."""
        super().note_wait(requested_at)
        if current_scope() is not None:
            waited = datetime.now(UTC) - parse_time(requested_at)
            # The sender's clock may be ahead of this one.
            _note("keyturn.waited_s", max(0.0, round(waited.total_seconds(), 3)))

    def count_refused(self, error: CodedError) -> None:
        """See `QueueMetrics.count_refused`."""
        super().count_refused(error)
        _note_failure("refused", error)

    def count_retry(self, error: CodedError) -> None:
        """See `QueueMetrics.count_retry`."""
        super().count_retry(error)
        _note_failure("retried", error)

    def count_deferred(self) -> None:
        """See `QueueMetrics.count_deferred`."""
        super().count_deferred()
        _note("keyturn.outcome", "deferred")


class TracedMetrics(WorkerMetrics):
    """All metrics of one process, and the spans of what it measures."""

    queue_type = TracedQueueMetrics

    def count_page(self, counts: Mapping[str, int], failed_codes: Iterable[str]) -> None:
        """See `WorkerMetrics.count_page`."""
        super().count_page(counts, failed_codes)
        for name, count in counts.items():
            _note(f"keyturn.page.{name}", count)


@contextmanager
def _traced(timer: AbstractContextManager[None], scope: Scope, name: Stage) -> Iterator[None]:
    with timer, scope.span(name):
        yield


def _note(name: str, value: str | float) -> None:
    scope = current_scope()
    if scope is not None:
        scope.root.set_attribute(name, value)


def _note_failure(outcome: str, error: CodedError) -> None:
    scope = current_scope()
    if scope is not None:
        scope.root.set_attribute("keyturn.outcome", outcome)
        fail(scope.root, error)
