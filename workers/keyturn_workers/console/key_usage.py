"""What depends on each master key: a census of the whole bucket, and what follows from it.

A person starts the census. Its pages are those of the view `objects` (SPEC 16.1), read one after
the other; only their sums are kept, until the console restarts. One that was stopped goes on where
it stopped. Whether a key can be dropped is decided by the same rule as for `keyturn status`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import CodedError, PublisherError
from keyturn.identifiers import parse_time
from keyturn.messages import MasterKeyStatus, StatusRejected, StatusReported
from keyturn_workers.console.ask import Asker, Query
from keyturn_workers.master_key_drop_rule import (
    DropVerdict,
    KeyUsage,
    Surroundings,
    judge_drop,
    missing_key,
)

KEYS_PER_PAGE: Final = 1000
RESUMABLE: Final = timedelta(days=1)
"""A count that stopped longer ago begins anew: it would say little about now."""
_PAUSE_S: Final = 5.0
_NONCURRENT: Final = "noncurrent"
_UNREADABLE: Final = "unreadable"
_RECORDS: Final = ("keyring", "sweep_record")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """What is counted together."""

    kind: str
    master_key: str
    code: str


@dataclass(frozen=True, slots=True)
class Census:
    """A count of the bucket, as far as it came.

    Attributes:
        started_at: When its first page was read.
        as_of: When its newest page was read.
        ended_at: The same, once it is complete.
        inspected: Objects, versions and records counted so far.
        next: Where its next page begins.
        problem: The code with which its last page could not be read.
    """

    started_at: datetime | None = None
    as_of: datetime | None = None
    ended_at: datetime | None = None
    counts: Mapping[Group, int] = field(default_factory=dict)
    next: str | None = None
    problem: str = ""

    @property
    def inspected(self) -> int:
        """Objects, versions and records counted so far."""
        return sum(self.counts.values())

    def is_resumable(self, now: datetime) -> bool:
        """Whether the count goes on where it stopped."""
        as_of = self.as_of
        return self.next is not None and as_of is not None and now - as_of < RESUMABLE

    def plus(self, report: StatusReported) -> "Census":
        """The count with a further page."""
        at = parse_time(report.at)
        counts = Counter(self.counts)
        for row in report.objects or ():
            counts[Group(row.kind, row.master_key or "", row.code or "")] += row.count
        return Census(
            started_at=self.started_at or at,
            as_of=at,
            ended_at=at if report.next is None else None,
            counts=counts,
            next=report.next,
        )


class CensusTaker:
    """Counts once at a time, in the background. Used from one event loop.

    Attributes:
        newest: The newest count: also one that is not complete.
        complete: The newest complete one.
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
        """Whether it counts now."""
        return self._task is not None and not self._task.done()

    def start(self, actor: str) -> None:
        """Begin a count, or go on with the one that stopped; nothing if one is under way."""
        if self.is_running:
            return
        if not self.newest.is_resumable(self._clock()):
            self.newest = Census()
        self._task = asyncio.create_task(self._count(actor))

    def cancel(self) -> None:
        """Stop; what was counted stays."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop, and wait for it."""
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
            if answer.code is not None:  # such as that the storage is away
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
        status: What the control worker that answered says; None if it does not hold the key.
        projects: How many keyrings are sealed under it.
        objects: What a complete count found under it; None before there is one. The same for
            older versions and for records.
        safe_to_drop: None if that is not known.
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
        """Whether new projects are enrolled under it."""
        return self.status is not None and self.status.active

    @property
    def is_used(self) -> bool:
        """Whether anything is known to be under it."""
        return bool(self.projects or self.objects or self.noncurrent or self.records)


def key_rows(
    keys: Sequence[MasterKeyStatus],
    census: Census | None,
    *,
    running_sweeps: int | None,
    is_complete: bool,
) -> tuple[KeyRow, ...]:
    """The keys that are held, the active one first; then those that only records name.

    Args:
        keys: What a control worker holds, with the keyrings under each.
        census: The newest complete count.
        running_sweeps: Sweeps and rotations under way; None if that is not known.
        is_complete: Whether all keyrings were read.
    """
    by_key: dict[str, Counter[str]] = {}
    unreadable: Counter[str] = Counter()
    for group, count in census.counts.items() if census is not None else ():
        if group.master_key:
            by_key.setdefault(group.master_key, Counter())[group.kind] += count
        if group.kind == _UNREADABLE or (group.kind in _RECORDS and group.code):
            unreadable[group.kind] += count
    around = Surroundings(
        running_sweeps=running_sweeps or 0,
        unreadable_objects=unreadable[_UNREADABLE],
        unreadable_records=sum(unreadable[kind] for kind in _RECORDS),
    )
    is_known = is_complete and running_sweeps is not None
    held = sorted(keys, key=lambda key: (not key.active, key.master_key))
    rows = [
        _row(key, by_key.get(key.master_key, Counter()), census, around, is_known=is_known)
        for key in held
    ]
    missing = sorted(by_key.keys() - {key.master_key for key in keys})
    return (*rows, *(_missing_row(name, by_key[name]) for name in missing))


def _row(
    key: MasterKeyStatus,
    counts: Counter[str],
    census: Census | None,
    around: Surroundings,
    *,
    is_known: bool,
) -> KeyRow:
    projects = key.projects or 0
    records = max(projects, counts["keyring"]) + counts["sweep_record"]
    objects = None if census is None else _objects(counts)
    usage = KeyUsage(objects, counts[_NONCURRENT], records, key.active)
    verdict = judge_drop(usage, around)
    if verdict.may_be_dropped and not is_known:
        verdict = DropVerdict(None, "not all keyrings and sweeps were read yet")
    return KeyRow(
        master_key=key.master_key,
        status=key,
        projects=projects,
        objects=objects,
        noncurrent=None if census is None else counts[_NONCURRENT],
        records=None if census is None else sum(counts[kind] for kind in _RECORDS),
        safe_to_drop=verdict.may_be_dropped,
        reason=verdict.reason,
    )


def _missing_row(name: str, counts: Counter[str]) -> KeyRow:
    records = sum(counts[kind] for kind in _RECORDS)
    return KeyRow(
        name,
        None,
        counts["keyring"],
        _objects(counts),
        counts[_NONCURRENT],
        records,
        safe_to_drop=False,
        reason=missing_key(records),
    )


def _objects(counts: Mapping[str, int]) -> int:
    others = (_NONCURRENT, _UNREADABLE, *_RECORDS)
    return sum(count for kind, count in counts.items() if kind not in others)
