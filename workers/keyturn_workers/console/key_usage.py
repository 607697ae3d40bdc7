"""A census of the bucket: what depends on each master key, and which key can be dropped.

A person starts the census. It reads the pages of the view `objects` (SPEC 16.1) one after the other
and keeps only their sums, until the console restarts. A stopped count resumes where it stopped.
`keyturn status` decides by the same rule whether a key can be dropped.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import CodedError, PublisherError
from keyturn.identifiers import parse_time
from keyturn.messages.events import StatusRejected, StatusReported
from keyturn.messages.status import MasterKeyStatus
from keyturn_workers.console.ask import Asker, Query
from keyturn_workers.core.master_key_usage import (
    DropVerdict,
    KeyCensus,
    Surroundings,
    census_of,
    judge_drop,
    missing_key,
    missing_keys,
    usage_of,
)

KEYS_PER_PAGE: Final = 1000
RESUMABLE: Final = timedelta(days=1)
"""A count that stopped longer ago starts again: it would say little about the present."""
_PAUSE_S: Final = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Census:
    """A count of the bucket, maybe partial.

    Attributes:
        started_at: The time of its first page.
        as_of: The time of its newest page.
        ended_at: The same, once the count is complete.
        inspected: Objects, versions and records counted so far.
        next: The cursor of its next page.
        problem: The error code of its last page.
    """

    started_at: datetime | None = None
    as_of: datetime | None = None
    ended_at: datetime | None = None
    counts: KeyCensus = field(default_factory=dict)
    next: str | None = None
    problem: str = ""

    @property
    def inspected(self) -> int:
        """Objects, versions and records counted so far."""
        return sum(self.counts.values())

    def is_resumable(self, now: datetime) -> bool:
        """Return whether the count can resume where it stopped."""
        as_of = self.as_of
        return self.next is not None and as_of is not None and now - as_of < RESUMABLE

    def plus(self, report: StatusReported) -> "Census":
        """Return the count with a further page."""
        at = parse_time(report.at)
        return Census(
            started_at=self.started_at or at,
            as_of=at,
            ended_at=at if report.next is None else None,
            counts=Counter(self.counts) + census_of(report.objects or ()),
            next=report.next,
        )


class CensusTaker:
    """Counts once at a time, in the background. Used from one event loop.

    `newest` is the newest count, maybe partial; `complete` is the newest complete one.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        pause_s: float = _PAUSE_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._asker = asker
        self._pause_s = pause_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.newest = Census()
        self.complete: Census | None = None

    @property
    def is_running(self) -> bool:
        """True while a count is under way."""
        return self._task is not None and not self._task.done()

    def start(self, actor: str) -> None:
        """Start a count or resume the stopped one; do nothing if one is under way."""
        if self.is_running:
            return
        if not self.newest.is_resumable(self._clock()):
            self.newest = Census()
        self._task = asyncio.create_task(self._count(actor))

    def cancel(self) -> None:
        """Stop; the partial count is kept."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop, and wait for the end."""
        self.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _count(self, actor: str) -> None:
        while True:
            query = Query("objects", after=self.newest.next, limit=KEYS_PER_PAGE)
            try:
                answer = await self._asker.read(query, actor=actor)
            except PublisherError as exc:
                _log.info("key census paused", problem=str(exc))
                await asyncio.sleep(self._pause_s)
                continue
            except CodedError as exc:
                self.newest = replace(self.newest, problem=exc.code)
                return
            if isinstance(answer, StatusRejected):
                self.newest = replace(self.newest, problem=answer.code)
                return
            if answer.code is not None:  # e.g. the storage is unavailable
                self.newest = replace(self.newest, problem=answer.code)
                await asyncio.sleep(self._pause_s)
                continue
            self.newest = self.newest.plus(answer)
            if self.newest.ended_at is not None:
                self.complete = self.newest
                return


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One master key, and what still depends on it.

    Attributes:
        status: The key's status by the control worker that answered; None if it lacks the key.
        projects: The number of keyrings sealed under it.
        objects: Objects under it by a complete count; None before there is one. The same for older
            versions and for records.
        safe_to_drop: None if unknown.
        reason: Why it can or cannot be dropped, in one sentence.
    """

    master_key: str
    status: MasterKeyStatus | None
    projects: int
    objects: int | None
    noncurrent: int | None
    records: int | None
    safe_to_drop: bool | None
    reason: str

    @property
    def is_active(self) -> bool:
        """True if new projects are enrolled under it."""
        return self.status is not None and self.status.active

    @property
    def is_used(self) -> bool:
        """True if anything is known to be under it."""
        return bool(self.projects or self.objects or self.noncurrent or self.records)


def key_rows(
    keys: Sequence[MasterKeyStatus],
    census: Census | None,
    *,
    running_sweeps: int | None,
    is_complete: bool,
) -> tuple[KeyRow, ...]:
    """Return the available keys, the active one first; then keys that only records name.

    `keys` are a control worker's, `census` is the newest complete count. `running_sweeps` counts
    sweeps and rotations under way (None: unknown); `is_complete` is true if all keyrings were read.
    """
    counts: KeyCensus = {} if census is None else census.counts
    around = Surroundings.of(counts, running_sweeps or 0)
    is_known = is_complete and running_sweeps is not None
    held = sorted(keys, key=lambda key: (not key.active, key.master_key))
    rows = [_row(key, census, around, is_known=is_known) for key in held]
    missing = missing_keys(counts, {key.master_key for key in keys})
    return (*rows, *(_missing_row(name, counts, missing[name]) for name in missing))


def _row(
    key: MasterKeyStatus, census: Census | None, around: Surroundings, *, is_known: bool
) -> KeyRow:
    projects = key.projects or 0
    counts: KeyCensus = {} if census is None else census.counts
    usage = usage_of(key.master_key, counts, is_active=key.active, with_objects=census is not None)
    # Projects may have been enrolled since the count.
    verdict = judge_drop(replace(usage, keyrings=max(projects, usage.keyrings)), around)
    if verdict.may_be_dropped and not is_known:
        verdict = DropVerdict(None, "not all keyrings and sweeps have been read yet")
    return KeyRow(
        master_key=key.master_key,
        status=key,
        projects=projects,
        objects=usage.objects,
        noncurrent=None if census is None else usage.noncurrent,
        records=None if census is None else usage.records,
        safe_to_drop=verdict.may_be_dropped,
        reason=verdict.reason,
    )


def _missing_row(name: str, counts: KeyCensus, records: int) -> KeyRow:
    usage = usage_of(name, counts, is_active=None)
    return KeyRow(
        name,
        None,
        usage.keyrings,
        usage.objects,
        usage.noncurrent,
        records,
        safe_to_drop=False,
        reason=missing_key(records),
    )
