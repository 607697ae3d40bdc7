"""The parts of a sweep of all projects that run, or did not end clean (SPEC 8.5, 16.1).

Those that ended clean are only counted. A position is `open/{project}` or `done/{project}`: first
come the parts that run, then those that ended.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from keyturn.counts import Counts
from keyturn.errors import CodedError
from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn.messages import SweepStatus
from keyturn_workers.errors import MissingError
from keyturn_workers.status.pace import BATCH, Pace
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import Sweep, find_sweep, origin_status, unreadable_sweep
from keyturn_workers.status.summaries import EtagCache
from keyturn_workers.storage import PAGE_KEYS, ObjectSummary, Storage
from keyturn_workers.sweep import Origin, SweepStore
from keyturn_workers.sweep.progress import find_origin
from keyturn_workers.sweep.record import End, PartEnd, Walk
from keyturn_workers.sweep.store import part_path, round_prefix

_OPEN: Final = "open/"
_DONE: Final = "done/"
_MAX_ENDS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Part:
    """One project's part of a sweep of all.

    Attributes:
        position: Where it is among the parts.
        row: Its row; with only ids and a code if its record does not open.
        round_id: The round that has its failures, if any.
    """

    position: str
    row: SweepStatus
    round_id: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it had not ended when the record of the sweep of all was read."""
        return self.position.startswith(_OPEN)


@dataclass(frozen=True, slots=True)
class Parts:
    """Some parts in order.

    Attributes:
        parts: Those that run, or did not end clean.
        clean: How many ended clean, in between.
        next: The position after which the next ones come; None at the end.
    """

    parts: Sequence[Part]
    clean: int
    next: str | None


class SweepParts:
    """Reads parts. Every method raises the errors of the storage where not all can be read.

    Args:
        storage: The bucket.
        store: The records of sweeps.
        pace: Waits between batches.
    """

    def __init__(self, storage: Storage, store: SweepStore, pace: Pace) -> None:
        self._storage = storage
        self._store = store
        self._pace = pace
        # Ends are created once, and looked at for each report.
        self._ends: EtagCache[PartEnd] = EtagCache(_MAX_ENDS)

    async def open(
        self, sweep: Sweep, position: str = "", limit: int | None = None
    ) -> tuple[Part, ...]:
        """The parts of this sweep of all that run, after a position: 512 at most."""
        walk = sweep.current
        if not isinstance(walk, Walk):
            return ()
        projects = [each for each in sorted(walk.open_parts) if _OPEN + each > position][:limit]
        parts: list[Part] = []
        for begin in range(0, len(projects), BATCH):
            await self._pace.next_batch()
            batch = projects[begin : begin + BATCH]
            parts += await asyncio.gather(
                *(self._open_part(sweep.origin, walk.id, each) for each in batch)
            )
        return tuple(parts)

    async def after(
        self, sweep: Sweep, position: str, limit: int, open_parts: Sequence[Part] | None = None
    ) -> Parts:
        """About `limit` parts after a position; the empty one is before all.

        `open_parts` are those that run, if they were just read.
        """
        parts: list[Part] = []
        if not position.startswith(_DONE):
            if open_parts is None:
                open_parts = await self.open(sweep, position, limit)
            parts += [part for part in open_parts if part.position > position]
            if len(parts) >= limit:
                return Parts(parts[:limit], 0, parts[limit - 1].position)
        ended = await self._ended(sweep, position, limit - len(parts))
        return Parts((*parts, *ended.parts), ended.clean, ended.next)

    async def find_ended(self, sweep_id: str, project: str) -> Part | None:
        """The part of one project that ended, whose record does not have it any more.

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
        position = _OPEN + project
        part = replace(origin, kind="part", walk_id=walk_id)
        try:
            record = (await self._store.read(project)).record
        except MissingError:
            return Part(position, origin_status(project, part))
        except RECORD_ERRORS as exc:
            return _unreadable_part(position, origin, project, exc)
        added = find_origin(record, part.name)
        if added is None:  # its end is being published, or the next step adds it again
            return Part(position, origin_status(project, part))
        sweep = Sweep(record, added)
        return Part(position, sweep.row(), sweep.round_id)

    async def _ended(self, sweep: Sweep, position: str, limit: int) -> Parts:
        walk_id, walk = sweep.round_id, sweep.current
        if walk_id is None:
            return Parts((), 0, None)
        running = set(walk.open_parts) if isinstance(walk, Walk) else set()
        name = position.removeprefix(_DONE) if position.startswith(_DONE) else ""
        listing = await self._storage.list_entries(
            round_prefix(ALL_PROJECTS, walk_id),
            after=part_path(walk_id, name) if name else "",
            limit=PAGE_KEYS,
        )
        not_clean, clean = list[Part](), 0
        for begin in range(0, len(listing.objects), BATCH):
            await self._pace.next_batch()
            batch = listing.objects[begin : begin + BATCH]
            projects = [_project_of(walk_id, row.key) for row in batch]
            parts = await asyncio.gather(
                *(
                    self._ended_part(sweep.origin, walk_id, row)
                    for project, row in zip(projects, batch, strict=True)
                    if is_project(project) and project not in running
                )
            )
            ended = [part for part in parts if part is not None]
            not_clean += [part for part in ended if not part.row.clean]
            clean += sum(part.row.clean is True for part in ended)
            is_last = begin + BATCH >= len(listing.objects)
            if len(not_clean) >= limit and not is_last:
                return Parts(not_clean, clean, _DONE + projects[-1])
        following = listing.next_after
        after = None if following is None else _DONE + _project_of(walk_id, following)
        return Parts(not_clean, clean, after)

    async def _ended_part(self, origin: Origin, walk_id: str, listed: ObjectSummary) -> Part | None:
        """A part whose end was listed; None if that has been removed since."""
        project = _project_of(walk_id, listed.key)
        position = _DONE + project
        ended = self._ends.get(listed.key, listed.etag)
        if ended is None:
            try:
                ended = await self._store.look_up_part_end(walk_id, project)
            except RECORD_ERRORS as exc:
                return _unreadable_part(position, origin, project, exc)
            if ended is None:
                return None
            self._ends.put(listed.key, listed.etag, ended)
        at, round_id = listed.last_modified, ended.round_id
        end = End(at, ended.clean, ended.counts, round_id, code=ended.code, detail=ended.detail)
        row = origin_status(project, replace(origin, kind="part", end=end))
        return Part(position, row, round_id)


def sum_counts(parts: Iterable[Part], start: Counts) -> Counts:
    """The counts of these parts, added to those of others."""
    counts = (Counts(**part.row.counts.model_dump()) for part in parts if part.row.counts)
    return sum(counts, start)


def _unreadable_part(position: str, origin: Origin, project: str, error: CodedError) -> Part:
    row = unreadable_sweep(origin.id, project, error)
    return Part(position, row.model_copy(update={"part_of_all": True}))


def _project_of(walk_id: str, s3_key: str) -> str:
    return s3_key.removeprefix(round_prefix(ALL_PROJECTS, walk_id)).removesuffix(".json")
