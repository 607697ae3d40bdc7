"""The parts of a sweep of all projects that run, or did not end clean (SPEC 8.5, 16.1).

Those that ended clean are only counted. A position is `live/{project}` or `done/{project}`: first
come the parts that run, then those that ended.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn.errors import CodedError
from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import sealed_records
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.pace import BATCH, Pace
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.summaries import EtagCache
from keyturn_workers.storage import PAGE_KEYS, ObjectSummary, Storage
from keyturn_workers.sweep.plan import AllPlan, PartResult, Plan, from_json
from keyturn_workers.sweep.record_paths import parse_part_name, part_results_folder
from keyturn_workers.sweep.sweep_store import SweepStore

_LIVE: Final = "live/"
_DONE: Final = "done/"
_MAX_RESULTS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Part:
    """One project's part of a sweep of all: its plan, or why that does not open.

    `plan` is None for a part that failed before it had one: its keyring did not open.
    """

    position: str
    project: str
    plan: Plan | CodedError | None


@dataclass(frozen=True, slots=True)
class Parts:
    """Some parts in order, and the position after which the next ones come; None at the end."""

    parts: Sequence[Part]
    next: str | None


class SweepParts:
    """Reads parts. Every method raises the errors of the storage where not all can be read.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        store: The records of sweeps.
        pace: Waits between batches.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        store: SweepStore,
        pace: Pace,
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._store = store
        self._pace = pace
        # Results are created once, and looked at for each report.
        self._clean: EtagCache[bool] = EtagCache(_MAX_RESULTS)

    async def live(self, plan: AllPlan) -> tuple[Part, ...]:
        """The parts that run: up to 512."""
        return await self._read(_LIVE, plan.ask.sweep_id, sorted(plan.live))

    async def after(
        self, plan: AllPlan, position: str, limit: int, live: Sequence[Part] | None = None
    ) -> Parts:
        """About `limit` parts after a position; the empty one is before all.

        `live` are the parts that run, if they were just read.
        """
        parts: list[Part] = []
        if not position.startswith(_DONE):
            if live is None:
                names = [name for name in sorted(plan.live) if _LIVE + name > position]
                live = await self._read(_LIVE, plan.ask.sweep_id, names[:limit])
            parts += [part for part in live if part.position > position]
            if len(parts) >= limit:
                return Parts(parts[:limit], parts[limit - 1].position)
        ended = await self._ended(plan, position, limit - len(parts))
        return Parts((*parts, *ended.parts), ended.next)

    async def _ended(self, plan: AllPlan, position: str, limit: int) -> Parts:
        sweep_id, parts = plan.ask.sweep_id, list[Part]()
        folder = part_results_folder(sweep_id)
        name = position.removeprefix(_DONE) if position.startswith(_DONE) else ""
        listing = await self._storage.list_entries(
            folder, after=f"{folder}{name}.json" if name else "", limit=PAGE_KEYS
        )
        for begin in range(0, len(listing.objects), BATCH):
            await self._pace.next_batch()
            batch = listing.objects[begin : begin + BATCH]
            failed = [project async for project in self._not_clean(plan, batch)]
            parts += await self._read(_DONE, sweep_id, failed)
            last = begin + BATCH >= len(listing.objects)
            if len(parts) >= limit and not last:
                return Parts(parts, _DONE + parse_part_name(sweep_id, batch[-1].key))
        following = listing.next_after
        return Parts(
            parts, None if following is None else _DONE + parse_part_name(sweep_id, following)
        )

    async def _not_clean(
        self, plan: AllPlan, listed: Sequence[ObjectSummary]
    ) -> AsyncIterator[str]:
        """The projects whose listed results are not clean, or do not open."""
        named = [(parse_part_name(plan.ask.sweep_id, row.key), row) for row in listed]
        ended = [(name, row) for name, row in named if is_project(name) and name not in plan.live]
        clean = await asyncio.gather(*(self._is_clean(row) for _, row in ended))
        for (project, _), is_clean in zip(ended, clean, strict=True):
            if not is_clean:
                yield project

    async def _is_clean(self, listed: ObjectSummary) -> bool:
        kept = self._clean.get(listed.key, listed.etag)
        if kept is not None:
            return kept
        try:
            head, body = await self._storage.read(listed.key)
            _, content = await sealed_records.parse(body, listed.key, ALL_PROJECTS, self._keys)
            clean = from_json(PartResult, content).clean
        except MissingError:
            return True  # the records of its sweep have been removed since they were listed
        except (*RECORD_ERRORS, ValueError):
            return False
        self._clean.put(listed.key, head.etag, clean)
        return clean

    async def _read(self, stage: str, sweep_id: str, projects: Sequence[str]) -> tuple[Part, ...]:
        parts: list[Part] = []
        for begin in range(0, len(projects), BATCH):
            await self._pace.next_batch()
            batch = projects[begin : begin + BATCH]
            plans = await asyncio.gather(*(self._plan(sweep_id, each) for each in batch))
            parts += [
                Part(stage + project, project, plan)
                for project, plan in zip(batch, plans, strict=True)
            ]
        return tuple(parts)

    async def _plan(self, sweep_id: str, project: str) -> Plan | CodedError | None:
        try:
            return (await self._store.read(sweep_id, project)).plan
        except MissingError:
            return None
        except RECORD_ERRORS as exc:
            return exc
