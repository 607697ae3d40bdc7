"""The view of one sweep: its progress, and its parts (SPEC 8.5, 16.1)."""

from typing import Final

from keyturn.errors import CodedError
from keyturn.messages import SweepStatus
from keyturn_workers.status.object_counter import ObjectCounter
from keyturn_workers.status.page import Entry, Page, cut
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import sweep_status, unreadable_sweep
from keyturn_workers.status.sweep_parts import Part, SweepParts
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.sweep_store import SweepStore

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
        """A page; without rows if the sweep left no records.

        Raises:
            StorageUnavailableError, StorageAnswerError: it cannot be read.
        """
        try:
            plan = await self._store.find_plan(sweep_id, project)
        except RECORD_ERRORS as exc:
            return Page((unreadable_sweep(sweep_id, project, exc),), None)
        if plan is None:
            return Page((), None)
        if isinstance(plan, AllPlan):
            return await self._of_all(plan, after, limit)
        is_running = plan.status == "running"
        expected = await self._counter.count(project) if is_running else None
        return Page((sweep_status(plan, expected=expected),), None)

    async def _of_all(self, plan: AllPlan, after: str | None, limit: int) -> Page[SweepStatus]:
        entries: list[Entry[SweepStatus]] = []
        live = None
        if after is None:
            live = await self._parts.live(plan)
            running = (part.plan.counts for part in live if isinstance(part.plan, Plan))
            entries.append(Entry(_MAIN, sweep_status(plan, sum(running, plan.sums))))
        position = "" if after is None or after == _MAIN else after
        parts = await self._parts.after(plan, position, limit, live)
        entries += [Entry(part.position, _part_row(plan, part)) for part in parts.parts]
        return cut(entries, parts.next, limit)


def _part_row(of_all: AllPlan, part: Part) -> SweepStatus:
    if isinstance(part.plan, Plan):
        return sweep_status(part.plan)
    if isinstance(part.plan, CodedError):
        row = unreadable_sweep(of_all.ask.sweep_id, part.project, part.plan)
    else:
        row = SweepStatus(sweep_id=of_all.ask.sweep_id, project=part.project, status="failed")
    return row.model_copy(update={"part_of_all": True})
