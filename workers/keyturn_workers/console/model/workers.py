"""Worker processes and queues, by the workers' reports and the broker's counts. Pure.

SPEC 16.2: depth, consumers, rates, the age of the oldest request, versions, length of the lease.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.identifiers import parse_time
from keyturn.messages import QueueReport, WorkerReported
from keyturn.topology import (
    ALL_DELAYS_S,
    CONTROL_QUEUE,
    DEAD_QUEUES,
    PLAN_QUEUE,
    SWEEP_QUEUE,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    dead_letter_name,
    retry_name,
)
from keyturn_workers.console.model.rows import QueueDepth, QueueRow, QueueSnapshot, WorkerRow

WORK_QUEUES: Final = (UPLOAD_QUEUE, CONTROL_QUEUE, SWEEP_QUEUE, PLAN_QUEUE)
ROLE_QUEUES: Final = {UPLOAD_QUEUE: "upload", CONTROL_QUEUE: "control", SWEEP_QUEUE: "sweep"}
RETRY_QUEUES: Final = {
    queue: tuple(retry_name(queue, delay_s) for delay_s in ALL_DELAYS_S) for queue in WORK_QUEUES
}
WATCHED_QUEUES: Final = (
    *WORK_QUEUES,
    *(name for names in RETRY_QUEUES.values() for name in names),
    *DEAD_QUEUES,
)
MAX_WORKERS: Final = 2000
MISSED: Final = 3
"""Reports that a worker misses before it counts as gone."""
FORGOTTEN_AFTER: Final = timedelta(minutes=15)
_DEPTHS_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class _Observed:
    """One worker: its two newest reports, and since when its clock is unknown."""

    row: WorkerRow
    before: WorkerRow | None = None


class WorkerBook:
    """The worker processes, and the queues that they serve.

    Args:
        now: The clock.

    Attributes:
        is_truncated: Whether workers were left out, to bound the memory.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._workers: dict[str, _Observed] = {}
        self._snapshot: QueueSnapshot | None = None
        self._depths: dict[str, list[tuple[datetime, int]]] = {}
        self.is_truncated = False

    # What comes in.

    def apply(self, report: WorkerReported) -> bool:
        """Take over a worker's report; False if a newer one is known."""
        row = _row(report)
        held = self._workers.get(row.worker_id)
        if held is None:
            self._workers[row.worker_id] = _Observed(row)
            self._bound()
            return True
        if _rank(row) <= _rank(held.row):
            # Kept for the rates, if it is newer than the one that they are computed from.
            if _rank(row) < _rank(held.row) and (
                held.before is None or _rank(held.before) < _rank(row)
            ):
                self._workers[row.worker_id] = _with_clock(held.row, row)
            return False
        self._workers[row.worker_id] = _with_clock(row, held.row)
        return True

    def _bound(self) -> None:
        while len(self._workers) > MAX_WORKERS:
            self.is_truncated = True
            oldest = min(self._workers, key=lambda each: _rank(self._workers[each].row))
            del self._workers[oldest]

    def apply_queues(self, snapshot: QueueSnapshot) -> bool:
        """Take over what the broker says; False if something newer is known."""
        for each in snapshot.queues:
            depths = self._depths.setdefault(each.queue, [])
            if (snapshot.at, each.depth) not in depths:
                depths.append((snapshot.at, each.depth))
                depths.sort()
                del depths[:-_DEPTHS_KEPT]
        if self._snapshot is not None and self._snapshot.at >= snapshot.at:
            return False
        self._snapshot = snapshot
        return True

    def expire(self) -> bool:
        """Forget workers that stopped or vanished a while ago; whether there were any."""
        oldest = self._now() - FORGOTTEN_AFTER
        gone = [worker_id for worker_id, held in self._workers.items() if held.row.as_of < oldest]
        for worker_id in gone:
            del self._workers[worker_id]
        return bool(gone)

    # What pages ask.

    def rows(self) -> tuple[WorkerRow, ...]:
        """The workers, by their roles, then by host."""
        now = self._now()
        rows = [self._current(held.row, now) for held in self._workers.values()]
        rows.sort(key=lambda row: (row.roles, row.host, row.started_at, row.worker_id))
        return tuple(row for row in rows if row.as_of >= now - FORGOTTEN_AFTER)

    def _current(self, row: WorkerRow, now: datetime) -> WorkerRow:
        allowed = timedelta(seconds=MISSED * max(1.0, row.interval_s))
        return replace(row, is_missing=not row.is_stopping and now - row.as_of > allowed)

    def queues(self) -> tuple[QueueRow, ...]:
        """The queues of requests."""
        depths = {each.queue: each for each in self._snapshot.queues} if self._snapshot else {}
        return tuple(self._queue(queue, depths) for queue in WORK_QUEUES)

    def _queue(self, queue: str, depths: dict[str, QueueDepth]) -> QueueRow:
        own, dead = depths.get(queue), depths.get(dead_letter_name(queue))
        served, refused = self._rates(queue)
        retrying = [depths[name].depth for name in RETRY_QUEUES[queue] if name in depths]
        return QueueRow(
            queue=queue,
            depth=None if own is None else own.depth,
            consumers=None if own is None else own.consumers,
            retrying=sum(retrying) if retrying else None,
            served_per_s=served,
            refused_per_s=refused,
            oldest_s=self._oldest_s(queue) if own is not None and own.depth else None,
            dead_depth=None if dead is None else dead.depth,
            as_of=None if self._snapshot is None else self._snapshot.at,
        )

    def unsigned_depth(self) -> int | None:
        """How many messages there are that no known publisher signed."""
        for each in self._snapshot.queues if self._snapshot else ():
            if each.queue == UNSIGNED_DEAD_QUEUE:
                return each.depth
        return None

    def _rates(self, queue: str) -> tuple[float | None, float | None]:
        served = refused = 0.0
        is_known = False
        now = self._now()
        for held in self._workers.values():
            if held.before is None or not self._current(held.row, now).is_present:
                continue
            later, earlier = _report_of(held.row, queue), _report_of(held.before, queue)
            seconds = (held.row.as_of - held.before.as_of).total_seconds()
            if later is None or earlier is None or seconds <= 0:
                continue
            is_known = True
            served += max(0, later.served - earlier.served) / seconds
            refused += max(0, later.refused - earlier.refused) / seconds
        return (served, refused) if is_known else (None, None)

    def _oldest_s(self, queue: str) -> float | None:
        now = self._now()
        waits = [
            report.waited_s
            for held in self._workers.values()
            if self._current(held.row, now).is_present
            and (report := _report_of(held.row, queue)) is not None
            and report.waited_s is not None
        ]
        return max(waits, default=None)

    def depths(self, queue: str) -> tuple[tuple[datetime, int], ...]:
        """The depths of a queue that are known, by time."""
        return tuple(self._depths.get(queue, ()))

    @property
    def as_of(self) -> datetime | None:
        """When the newest worker reported."""
        return max((held.row.as_of for held in self._workers.values()), default=None)

    def __len__(self) -> int:
        return len(self._workers)


def _rank(row: WorkerRow) -> tuple[datetime, bool, str]:
    return (row.as_of, row.is_stopping, repr(row.queues))


def _with_clock(row: WorkerRow, before: WorkerRow) -> _Observed:
    """The newest report with the one before; its clock may be unknown for longer."""
    since = row.clock_unknown_since
    if since is not None and before.clock_unknown_since is not None:
        since = min(since, before.clock_unknown_since)
    return _Observed(replace(row, clock_unknown_since=since), before)


def _report_of(row: WorkerRow, queue: str) -> QueueReport | None:
    return next((each for each in row.queues if each.queue == queue), None)


def _row(report: WorkerReported) -> WorkerRow:
    at = parse_time(report.at)
    return WorkerRow(
        worker_id=report.worker_id,
        roles=report.roles,
        host=report.host,
        version=report.version,
        started_at=parse_time(report.started_at),
        interval_s=report.interval_s,
        is_stopping=report.is_stopping,
        lease_s=report.lease_s,
        is_clock_known=report.is_clock_known,
        active_master_key=report.active_master_key,
        master_keys=report.master_keys,
        event_keys=report.event_keys,
        intake_keys=report.intake_keys,
        queues=report.queues,
        as_of=at,
        clock_unknown_since=None if report.is_clock_known else at,
    )
