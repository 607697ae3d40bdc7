"""The view of one sweep: its progress, and its parts (SPEC 8.5, 16.1)."""

from typing import Final

from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import SweepStatus
from keyturn_workers.status.object_counter import ObjectCounter
from keyturn_workers.status.page import Entry, Page, cut
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import Sweep, find_sweep, unreadable_sweep
from keyturn_workers.status.sweep_parts import SweepParts, sum_counts
from keyturn_workers.sweep import SweepStore

# The position of the sweep of all itself, before its parts.
_MAIN: Final = "main"


class SweepView:
    """One sweep, and of a sweep of all the parts that run or did not end clean."""

    def __init__(self, store: SweepStore, parts: SweepParts, counter: ObjectCounter) -> None:
        self._store = store
        self._parts = parts
        self._counter = counter

    async def read(
        self, sweep_id: str, project: str, after: str | None, limit: int
    ) -> Page[SweepStatus]:
        """A page; without rows if no record has the sweep.

        Raises:
            StorageUnavailableError, StorageAnswerError: it cannot be read.
        """
        try:
            sweep = find_sweep(await self._store.find(project), sweep_id)
            if sweep is None:
                part = await self._parts.find_ended(sweep_id, project)
                return Page(() if part is None else (part.row,), None)
        except RECORD_ERRORS as exc:
            return Page((unreadable_sweep(sweep_id, project, exc),), None)
        if project == ALL_PROJECTS:
            return await self._of_all(sweep, after, limit)
        expected = await self._counter.count(project) if sweep.origin.is_open else None
        return Page((sweep.row(expected=expected),), None)

    async def _of_all(self, sweep: Sweep, after: str | None, limit: int) -> Page[SweepStatus]:
        entries: list[Entry[SweepStatus]] = []
        open_parts = None
        if after is None:
            open_parts = await self._parts.open(sweep)
            entries.append(Entry(_MAIN, sweep.row(sum_counts(open_parts, sweep.counts))))
        position = "" if after is None or after == _MAIN else after
        parts = await self._parts.after(sweep, position, limit, open_parts)
        entries += [Entry(part.position, part.row) for part in parts.parts]
        return cut(entries, parts.next, limit)
