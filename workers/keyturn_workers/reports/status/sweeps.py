"""One sweep: its progress, the parts of a sweep of all, and its failures (SPEC 8.5, 16.1).

Parts that ended clean are only counted. Of the other parts, and of failures, a bounded number is
read, some at each query; a report says whether these are all.
"""

import asyncio
import math
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from keyturn.counts import Counts
from keyturn.errors import CodedError
from keyturn.identifiers import ALL_PROJECTS, format_time, is_project
from keyturn.messages.status import CodeCount, FailureStatus, StatusFilter, SweepStatus
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.core.sweep_record import End, Failure, Origin, PartEnd, Walk
from keyturn_workers.core.sweep_transitions import find_origin
from keyturn_workers.keys.sweep_records import (
    SweepStore,
    parse_record_path,
    part_path,
    round_prefix,
)
from keyturn_workers.reports.status.query import (
    RowT,
    Selection,
    filter_failures,
    order_parts,
    select,
)
from keyturn_workers.reports.status.records import (
    BATCH,
    OF_WORKER,
    RECORD_ERRORS,
    Bounds,
    EtagCache,
    Pace,
)
from keyturn_workers.reports.status.rows import Sweep, find_sweep, origin_status, unreadable_sweep

MAX_PARTS: Final = 20_000
_MAX_CACHED: Final = 50_000
_MAX_COUNTED: Final = 100
_LISTINGS_AT_ONCE: Final = 20
_RECOUNT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Part:
    """One project's part of a sweep of all; or a sweep of one project.

    `row` has only ids and a code if the record does not open. `round_id` is the round that has its
    failures. If `is_open`, it had not ended when the record of the sweep of all was read.
    """

    row: SweepStatus
    round_id: str | None = None
    is_open: bool = False


@dataclass(slots=True)
class Parts:
    """The parts of a sweep of all.

    `parts` run, or did not end clean; `clean` is the number of those that did. If `is_complete`,
    these are all.
    """

    parts: list[Part] = field(default_factory=list)
    clean: int = 0
    is_complete: bool = True


@dataclass(slots=True)
class _Count:
    number: int = 0
    after: str = ""
    begun_s: float = 0.0
    known: int | None = None


class SweepReader:
    """Reads one sweep. Methods raise the errors of the storage if it cannot be read.

    `clock_s` is monotonic; for tests.
    """

    def __init__(
        self,
        storage: Storage,
        store: SweepStore,
        pace: Pace,
        *,
        bounds: Bounds = OF_WORKER,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._store = store
        self._pace = pace
        self._bounds = bounds
        self._clock_s = clock_s
        # Both are created once, and read again and again.
        self._ends: EtagCache[PartEnd] = EtagCache(_MAX_CACHED)
        cached = max(_MAX_CACHED, bounds.failures)
        self._failures: EtagCache[tuple[Failure, ...]] = EtagCache(cached)
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    async def sweep(
        self, sweep_id: str, project: str, page: int, limit: int
    ) -> Selection[SweepStatus]:
        """Return the sweep, before a page of its parts; no rows if no record has it."""
        try:
            sweep = find_sweep(await self._store.find(project), sweep_id)
            if sweep is None:
                part = await self.find_ended(sweep_id, project)
                rows = () if part is None else (part.row,)
                return Selection(rows, len(rows), len(rows))
        except RECORD_ERRORS as exc:
            return Selection((unreadable_sweep(sweep_id, project, exc),), 1, 1)
        if project != ALL_PROJECTS:
            is_counted = sweep.origin.is_open and self._bounds.counts_objects
            expected = await self._count_objects(project) if is_counted else None
            row = sweep.row(expected=expected).model_copy(update=sweep.round_details())
            return Selection((row,), 1, 1)
        found = await self.parts(sweep)
        open_rows = [part.row for part in found.parts if part.is_open]
        whole = sweep.row(sum_counts(open_rows, sweep.counts)).model_copy(
            update=sweep.round_details() | {"parts_clean": found.clean}
        )
        parts = order_parts(part.row for part in found.parts)
        selected = self._select(parts, page, limit, of_all=len(parts))
        return Selection(
            (whole, *selected.rows),
            selected.total,
            selected.of_all,
            is_complete=selected.is_complete and found.is_complete,
        )

    async def failures(
        self, sweep_id: str, project: str, wanted: StatusFilter, page: int, limit: int
    ) -> tuple[Selection[FailureStatus], tuple[CodeCount, ...]]:
        """Return a page of the matching failures, and the total number for each code."""
        rows, is_complete = await self._all_failures(sweep_id, project)
        matching = filter_failures(rows, wanted)
        selected = self._select(matching, page, limit, of_all=len(rows))
        codes = Counter(row.code for row in rows)
        counts = tuple(CodeCount(code=code, count=count) for code, count in codes.most_common())
        return replace(selected, is_complete=is_complete and selected.is_complete), counts

    def _select(
        self, rows: Sequence[RowT], page: int, limit: int, *, of_all: int
    ) -> Selection[RowT]:
        return select(rows, page, limit, of_all=of_all, max_bytes=self._bounds.page_bytes)

    async def _all_failures(self, sweep_id: str, project: str) -> tuple[list[FailureStatus], bool]:
        """Return the failures in the order of their pages, and whether these are all."""
        sweep = find_sweep(await self._store.find(project), sweep_id)
        found = Parts()
        if sweep is None:
            part = await self.find_ended(sweep_id, project)
            found.parts = [] if part is None else [part]
        elif project == ALL_PROJECTS:
            found = await self.parts(sweep)
        else:
            found.parts = [Part(sweep.row(), sweep.round_id)]
        rows: list[FailureStatus] = []
        is_complete, deadline = found.is_complete, self._deadline()
        for part in found.parts:
            is_complete &= await self._add_failures(part, rows, deadline)
        return rows, is_complete

    def _deadline(self) -> float:
        wait_s = self._bounds.wait_s
        return math.inf if wait_s is None else self._clock_s() + wait_s

    # Failures.

    async def _add_failures(self, part: Part, rows: list[FailureStatus], deadline: float) -> bool:
        """Add the failures of one part; return True if these are all."""
        project, round_id = part.row.project, part.round_id
        if part.row.status is None and part.row.code is not None:
            rows.append(FailureStatus(project=project, code=part.row.code))
        elif round_id is not None:
            async for s3_key in self._store.failure_records(project, round_id):
                path = parse_record_path(s3_key)
                if path is None or not path.is_failures:
                    continue
                is_known = self._failures.get(s3_key, "") is not None
                is_late = not is_known and self._clock_s() > deadline
                if is_late or len(rows) >= self._bounds.failures:
                    return False
                rows += await self._failures_of(project, s3_key)
        return True

    async def _failures_of(self, project: str, s3_key: str) -> list[FailureStatus]:
        failures = self._failures.get(s3_key, "")
        if failures is None:
            await self._pace.next_batch()
            try:
                failures = await self._store.read_failures(project, s3_key)
            except MissingError:
                return []  # the folder of its round has been removed since
            except RECORD_ERRORS as exc:
                return [FailureStatus(project=project, code=exc.code)]
            self._failures.put(s3_key, "", failures, len(failures))
        return [FailureStatus(project=project, key=each.key, code=each.code) for each in failures]

    # The parts of a sweep of all.

    async def parts(self, sweep: Sweep) -> Parts:
        """Return the parts that run, and those that ended and are not clean."""
        walk, found = sweep.current, Parts()
        running = sorted(walk.open_parts) if isinstance(walk, Walk) else []
        for begin in range(0, len(running), BATCH):
            await self._pace.next_batch()
            batch = running[begin : begin + BATCH]
            found.parts += await asyncio.gather(
                *(self._open_part(sweep.origin, str(sweep.round_id), each) for each in batch)
            )
        if sweep.round_id is not None:
            await self._add_ended(sweep.origin, sweep.round_id, frozenset(running), found)
        return found

    async def _add_ended(
        self, origin: Origin, walk_id: str, running: frozenset[str], found: Parts
    ) -> None:
        deadline, batch = self._deadline(), list[ObjectSummary]()

        async def add() -> None:
            await self._pace.next_batch()
            parts = await asyncio.gather(*(self._ended_part(origin, walk_id, row) for row in batch))
            ended = [part for part in parts if part is not None]
            found.parts += [part for part in ended if not part.row.clean]
            found.clean += sum(part.row.clean is True for part in ended)
            batch.clear()

        async for row in self._storage.list(round_prefix(ALL_PROJECTS, walk_id)):
            project = _project_of(walk_id, row.key)
            if not is_project(project) or project in running:
                continue
            if self._clock_s() > deadline and self._ends.get(row.key, row.etag) is None:
                found.is_complete = False
                break
            batch.append(row)
            if len(batch) == BATCH:
                await add()
            if len(found.parts) >= MAX_PARTS:
                found.is_complete = False
                break
        await add()

    async def find_ended(self, sweep_id: str, project: str) -> Part | None:
        """Return the part of one project that ended, which its record no longer has.

        Raises:
            CodedError: the record of the sweeps of all does not open.
        """
        sweep = find_sweep(await self._store.find(ALL_PROJECTS), sweep_id)
        if sweep is None or sweep.round_id is None:
            return None
        s3_key = part_path(sweep.round_id, project)
        async for row in self._storage.list(s3_key, limit=1):
            if row.key == s3_key:
                return await self._ended_part(sweep.origin, sweep.round_id, row)
        return None

    async def _open_part(self, origin: Origin, walk_id: str, project: str) -> Part:
        part = replace(origin, kind="part", walk_id=walk_id)
        try:
            record = (await self._store.read(project)).record
        except MissingError:
            return Part(origin_status(project, part), is_open=True)
        except RECORD_ERRORS as exc:
            return replace(_unreadable_part(origin, project, exc), is_open=True)
        added = find_origin(record, part.name)
        if added is None:  # its end is being published, or the next step adds it again
            return Part(origin_status(project, part), is_open=True)
        sweep = Sweep(record, added)
        return Part(sweep.row(), sweep.round_id, is_open=True)

    async def _ended_part(self, origin: Origin, walk_id: str, listed: ObjectSummary) -> Part | None:
        """Return a part whose end was listed; None if that has been removed since."""
        project = _project_of(walk_id, listed.key)
        ended = self._ends.get(listed.key, listed.etag)
        if ended is None:
            try:
                ended = await self._store.look_up_part_end(walk_id, project)
            except RECORD_ERRORS as exc:
                part = _unreadable_part(origin, project, exc)
                ended_at = format_time(listed.last_modified)
                return replace(part, row=part.row.model_copy(update={"ended_at": ended_at}))
            if ended is None:
                return None
            self._ends.put(listed.key, listed.etag, ended)
        at, round_id = listed.last_modified, ended.round_id
        end = End(at, ended.clean, ended.counts, round_id, code=ended.code, detail=ended.detail)
        return Part(origin_status(project, replace(origin, kind="part", end=end)), round_id)

    # The number of objects.

    async def _count_objects(self, project: str) -> int | None:
        """Return how many objects the project had some minutes ago; None while that is not known.

        A project may have millions of objects, and no single report may take as long as listing
        them all. So each report continues where the last one stopped.
        """
        count = self._counts.pop(project, None) or _Count(begun_s=self._clock_s())
        self._counts[project] = count
        while len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        if count.known is not None and self._clock_s() - count.begun_s < _RECOUNT_S:
            return count.known
        most = sys.maxsize if self._bounds.wait_s is None else _LISTINGS_AT_ONCE
        for _ in range(most):
            page = await self._storage.list_entries(f"{project}/", after=count.after)
            count.number += len(page.objects)
            if page.next_after is None:
                count.known, count.number, count.after = count.number, 0, ""
                count.begun_s = self._clock_s()
                break
            count.after = page.next_after
        return count.known


def sum_counts(rows: Iterable[SweepStatus], start: Counts) -> Counts:
    """Return the counts of these sweeps, added to `start`."""
    return sum((row.counts for row in rows if row.counts is not None), start)


def _unreadable_part(origin: Origin, project: str, error: CodedError) -> Part:
    row = unreadable_sweep(origin.id, project, error)
    return Part(row.model_copy(update={"part_of_all": True}))


def _project_of(walk_id: str, s3_key: str) -> str:
    return s3_key.removeprefix(round_prefix(ALL_PROJECTS, walk_id)).removesuffix(".json")
