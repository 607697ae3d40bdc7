"""The view of what one sweep could not bring to the desired state (SPEC 8.5, 16.1).

A failure's position is `{part before}|{part}|{record}|{count}`: after so many failures of that
record of that part. Of a sweep of one project both parts are empty.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, Self

from keyturn.errors import CodedError, MalformedRequestError
from keyturn.messages import FailureStatus
from keyturn_workers.errors import MissingError
from keyturn_workers.status.page import Entry, Page, cut
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.sweep_parts import Part, SweepParts
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.record_paths import parse_record_path
from keyturn_workers.sweep.sweep_store import SweepStore

_MAX_SUCCESSORS: Final = 100
# In place of a record: that a part's plan does not open.
_PLAN: Final = "plan"


@dataclass(frozen=True, slots=True)
class _Position:
    before: str = ""
    part: str = ""
    record: str = ""
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        match text.split("|"):
            case [before, part, record, count] if count.isdecimal():
                return cls(before, part, record, int(count))
        raise MalformedRequestError("after is no position of this view")

    def __str__(self) -> str:
        return f"{self.before}|{self.part}|{self.record}|{self.count}"


class FailuresView:
    """The failures of one sweep, and of a sweep of all those of its parts."""

    def __init__(self, store: SweepStore, parts: SweepParts) -> None:
        self._store = store
        self._parts = parts

    async def read(
        self, sweep_id: str, project: str, after: str | None, limit: int
    ) -> Page[FailureStatus]:
        """A page; without rows if the sweep has no failures, or left no records.

        Raises:
            CodedError: its plan does not open, or the storage is away.
            StorageAnswerError: the storage refuses.
        """
        position = _Position() if after is None else _Position.parse(after)
        plan = await self._store.find_plan(sweep_id, project)
        if isinstance(plan, AllPlan):
            return await self._of_all(plan, position, limit)
        if plan is None:
            return Page((), None)
        entries = await self._of_part(Part("", project, plan), position, limit)
        return cut(entries, None if len(entries) < limit else entries[-1].position, limit)

    async def _of_all(self, plan: AllPlan, position: _Position, limit: int) -> Page[FailureStatus]:
        parts = await self._parts.after(plan, position.before, limit)
        entries: list[Entry[FailureStatus]] = []
        before = position.before
        for part in parts.parts:
            # Another part may be first now: the one that the last page ended in has ended clean.
            start = position if part.position == position.part else _Position(before, part.position)
            entries += await self._of_part(part, start, limit - len(entries))
            if len(entries) >= limit:
                return cut(entries, entries[-1].position, limit)
            before = part.position
        following = None if parts.next is None else str(_Position(parts.next))
        return cut(entries, following, limit)

    async def _of_part(
        self, part: Part, start: _Position, limit: int
    ) -> list[Entry[FailureStatus]]:
        """At most `limit` failures of one part."""
        entries: list[Entry[FailureStatus]] = []
        async with aclosing(self._failures(part, start)) as failures:
            async for position, row in failures:
                entries.append(Entry(str(position), row))
                if len(entries) >= limit:
                    break
        return entries

    async def _failures(
        self, part: Part, start: _Position
    ) -> AsyncGenerator[tuple[_Position, FailureStatus], None]:
        """The failures of one part after a position, without those that a new round outdated."""
        if isinstance(part.plan, CodedError):
            at = _Position(start.before, part.position, _PLAN, 1)
            if start.record != _PLAN:
                yield at, FailureStatus(project=part.project, code=part.plan.code)
        elif part.plan is not None:
            with suppress(MissingError):
                plan = await last_successor(self._store, part.plan)
                async for s3_key in self._store.failure_records(plan, since=start.record):
                    path = parse_record_path(s3_key)
                    if path is None or not path.is_failures:
                        continue
                    rows = await self._rows(plan, s3_key, part.project)
                    begun = start.count if s3_key == start.record else 0
                    for number, row in enumerate(rows[begun:], begun + 1):
                        yield _Position(start.before, part.position, s3_key, number), row

    async def _rows(self, plan: Plan, s3_key: str, project: str) -> list[FailureStatus]:
        try:
            failures = await self._store.read_failures(plan, s3_key)
        except RECORD_ERRORS as exc:
            return [FailureStatus(project=project, code=exc.code)]
        return [FailureStatus(project=project, key=each.key, code=each.code) for each in failures]


async def last_successor(store: SweepStore, plan: Plan) -> Plan:
    """The sweep that ends this one: itself, or the last one that took it over.

    Raises:
        MissingError: its records are gone.
    """
    for _ in range(_MAX_SUCCESSORS):
        if plan.successor is None:
            break
        plan = (await store.read(plan.successor, plan.ask.project)).plan
    return plan
