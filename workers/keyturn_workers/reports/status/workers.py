"""Worker processes, queues, and the work of each minute, by the workers' reports. Pure.

SPEC 16.1: versions, leases, rates, the age of the oldest request. The newest report of each process
counts; two of them give a rate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from keyturn.identifiers import format_time, parse_time
from keyturn.messages.queue_report import QueueReport
from keyturn.messages.status import QueueStatus, TotalsStatus, WorkerStatus
from keyturn.messages.worker_reports import WorkerReported
from keyturn.topology import (
    ALL_DELAYS_S,
    CONTROL_QUEUE,
    DEAD_QUEUES,
    NOTIFICATIONS,
    PLAN_QUEUE,
    SWEEP_QUEUE,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    dead_letter_name,
    retry_name,
)

WORK_QUEUES: Final = (UPLOAD_QUEUE, CONTROL_QUEUE, SWEEP_QUEUE, PLAN_QUEUE)
RETRY_QUEUES: Final = {
    queue: tuple(retry_name(queue, delay_s) for delay_s in ALL_DELAYS_S) for queue in WORK_QUEUES
}
WATCHED_QUEUES: Final = (
    *WORK_QUEUES,
    *(name for names in RETRY_QUEUES.values() for name in names),
    *DEAD_QUEUES,
    NOTIFICATIONS,
)
HISTORY: Final = timedelta(hours=1)
MAX_WORKERS: Final = 2000
MISSED: Final = 3
"""Reports that a worker misses before it counts as gone."""
FORGOTTEN_AFTER: Final = timedelta(minutes=15)
AHEAD: Final = timedelta(minutes=5)
"""How far ahead of this process's clock a worker's may be, as for requests (SPEC 6.3)."""
_MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The broker's counts for one queue."""

    depth: int
    consumers: int


@dataclass(slots=True)
class _Worker:
    """One process: its two newest reports, and since when its clock is unknown."""

    newest: WorkerReported
    at: datetime
    before: WorkerReported | None = None
    clock_unknown_since: str | None = None


@dataclass(slots=True)
class _Minute:
    """The work of all workers in one minute: served and refused by queue, and retried."""

    served: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    retried: int = 0


class WorkerBook:
    """The worker processes that reported in the last hour.

    If `is_truncated`, workers were left out, to bound the memory.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._workers: dict[str, _Worker] = {}
        self._minutes: dict[int, _Minute] = {}
        self.is_truncated = False

    def apply(self, report: WorkerReported) -> None:
        """Apply a worker's report, unless it is not newer than the known ones."""
        at = min(parse_time(report.at), self._now() + AHEAD)
        held = self._workers.get(report.worker_id)
        if held is not None and held.at >= at:
            return
        since = None
        if not report.is_clock_known:
            since = report.at if held is None else held.clock_unknown_since or report.at
        before = None if held is None else held.newest
        self._workers[report.worker_id] = _Worker(report, at, before, since)
        if before is not None:
            self._count(before, report, at)
        if len(self._workers) > MAX_WORKERS:
            self.is_truncated = True
            del self._workers[min(self._workers, key=lambda each: self._workers[each].at)]

    def _count(self, before: WorkerReported, after: WorkerReported, at: datetime) -> None:
        """Add the work between two reports to the minute of the later one."""
        minute = self._minutes.setdefault(int(at.timestamp()) // _MINUTE_S, _Minute())
        for later, earlier in _pairs(before, after):
            for counts, number in (
                (minute.served, later.served - earlier.served),
                (minute.refused, later.refused - earlier.refused),
            ):
                counts[later.queue] = counts.get(later.queue, 0) + max(0, number)
            minute.retried += max(0, later.retried - earlier.retried)
        oldest = int((self._now() - HISTORY).timestamp()) // _MINUTE_S
        for each in [each for each in self._minutes if each < oldest]:
            del self._minutes[each]

    # Rows.

    def rows(self) -> tuple[WorkerStatus, ...]:
        """Return the workers, by their roles, then by host."""
        now = self._now()
        rows = [
            self._row(held, now)
            for held in self._workers.values()
            if held.at >= now - FORGOTTEN_AFTER
        ]
        rows.sort(key=lambda row: (row.roles, row.host, row.started_at, row.worker_id))
        return tuple(rows)

    def _row(self, held: _Worker, now: datetime) -> WorkerStatus:
        fields = {
            name: getattr(held.newest, name)
            for name in WorkerStatus.model_fields
            if name in WorkerReported.model_fields
        }
        return WorkerStatus(
            **fields,
            as_of=format_time(held.at),
            is_missing=_is_missing(held, now),
            clock_unknown_since=held.clock_unknown_since,
        )

    def queues(self, depths: Mapping[str, QueueDepth]) -> tuple[QueueStatus, ...]:
        """Return the queues, with the broker's counts, and the unsigned dead letters."""
        rows = [self._queue(queue, depths) for queue in WORK_QUEUES]
        if NOTIFICATIONS in depths:
            rows.append(self._queue(NOTIFICATIONS, depths))
        if (unsigned := depths.get(UNSIGNED_DEAD_QUEUE)) is not None:
            rows.append(QueueStatus(queue=UNSIGNED_DEAD_QUEUE, dead=unsigned.depth))
        return tuple(rows)

    def _queue(self, queue: str, depths: Mapping[str, QueueDepth]) -> QueueStatus:
        own, dead = depths.get(queue), depths.get(dead_letter_name(queue))
        served, refused = self._rates(queue)
        retrying = [depths[name].depth for name in RETRY_QUEUES.get(queue, ()) if name in depths]
        return QueueStatus(
            queue=queue,
            depth=None if own is None else own.depth,
            consumers=None if own is None else own.consumers,
            retrying=sum(retrying) if retrying else None,
            dead=None if dead is None else dead.depth,
            served_per_s=served,
            refused_per_s=refused,
            oldest_s=self._oldest_s(queue) if own is not None and own.depth else None,
        )

    def _present(self) -> Iterator[_Worker]:
        now = self._now()
        for held in self._workers.values():
            if not held.newest.is_stopping and not _is_missing(held, now):
                yield held

    def _rates(self, queue: str) -> tuple[float | None, float | None]:
        served = refused = 0.0
        is_known = False
        for held in self._present():
            if held.before is None:
                continue
            seconds = (held.at - parse_time(held.before.at)).total_seconds()
            for later, earlier in _pairs(held.before, held.newest):
                if later.queue == queue and seconds > 0:
                    is_known = True
                    served += max(0, later.served - earlier.served) / seconds
                    refused += max(0, later.refused - earlier.refused) / seconds
        return (served, refused) if is_known else (None, None)

    def _oldest_s(self, queue: str) -> float | None:
        waits = [
            report.waited_s
            for held in self._present()
            for report in held.newest.queues
            if report.queue == queue and report.waited_s is not None
        ]
        return max(waits, default=None)

    def totals(self) -> tuple[TotalsStatus, ...]:
        """Return a row for each minute of the last hour, oldest first; the last one is not over."""
        last = int(self._now().timestamp()) // _MINUTE_S
        first = last - int(HISTORY.total_seconds()) // _MINUTE_S + 1
        return tuple(
            _totals(each, self._minutes.get(each, _Minute())) for each in range(first, last + 1)
        )


def _is_missing(held: _Worker, now: datetime) -> bool:
    allowed = timedelta(seconds=MISSED * max(1.0, held.newest.interval_s))
    return not held.newest.is_stopping and now - held.at > allowed


def _pairs(
    before: WorkerReported, after: WorkerReported
) -> Iterable[tuple[QueueReport, QueueReport]]:
    """Return both reports' counts for each queue that both name: the later one first."""
    earlier = {each.queue: each for each in before.queues}
    return ((each, earlier[each.queue]) for each in after.queues if each.queue in earlier)


def _totals(number: int, minute: _Minute) -> TotalsStatus:
    served, refused = minute.served, minute.refused
    return TotalsStatus(
        at=format_time(datetime.fromtimestamp(number * _MINUTE_S, UTC)),
        uploads=served.get(UPLOAD_QUEUE, 0),
        uploads_refused=refused.get(UPLOAD_QUEUE, 0),
        control=served.get(CONTROL_QUEUE, 0),
        control_refused=refused.get(CONTROL_QUEUE, 0),
        pages=served.get(SWEEP_QUEUE, 0),
        retried=minute.retried,
    )
