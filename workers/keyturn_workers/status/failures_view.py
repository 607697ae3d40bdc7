"""The view of what one sweep could not bring to the desired state (SPEC 8.5, 16.1).

A failure's position is `{part before}|{part}|{record}|{count}`: after so many failures of that
record of that part. Of a sweep of one project both parts are empty.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Self

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import FailureStatus
from keyturn_workers.errors import MissingError
from keyturn_workers.status.page import Entry, Page, cut
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import Sweep, find_sweep
from keyturn_workers.status.sweep_parts import Part, SweepParts
from keyturn_workers.sweep import SweepStore
from keyturn_workers.sweep.store import parse_record_path, round_prefix

# In place of a record of failures: that the record of a part does not open.
_UNREADABLE: Final = "unreadable"


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
        """A page; without rows if the sweep has no failures, or no record has it.

        Raises:
            CodedError: its record does not open, or the storage is away.
            StorageAnswerError: the storage refuses.
        """
        position = _Position() if after is None else _Position.parse(after)
        sweep = find_sweep(await self._store.find(project), sweep_id)
        if sweep is None:
            part = await self._parts.find_ended(sweep_id, project)
        elif project == ALL_PROJECTS:
            return await self._of_all(sweep, position, limit)
        else:
            part = Part("", sweep.row(), sweep.round_id)
        if part is None:
            return Page((), None)
        entries = await self._of_part(replace(part, position=""), position, limit)
        return cut(entries, None if len(entries) < limit else entries[-1].position, limit)

    async def _of_all(self, sweep: Sweep, position: _Position, limit: int) -> Page[FailureStatus]:
        parts = await self._parts.after(sweep, position.before, limit)
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
        """The failures of one part after a position."""
        project, round_id = part.row.project, part.round_id
        if part.row.status is None and part.row.code is not None:
            at = _Position(start.before, part.position, _UNREADABLE, 1)
            if start.record != _UNREADABLE:
                yield at, FailureStatus(project=project, code=part.row.code)
        elif round_id is not None:
            # Failures of another round are outdated: those of this one come from the beginning.
            is_of_round = start.record.startswith(round_prefix(project, round_id))
            since = start.record if is_of_round else ""
            async for s3_key in self._store.failure_records(project, round_id, since=since):
                path = parse_record_path(s3_key)
                if path is None or not path.is_failures:
                    continue
                rows = await self._rows(project, s3_key)
                begun = start.count if s3_key == start.record else 0
                for number, row in enumerate(rows[begun:], begun + 1):
                    yield _Position(start.before, part.position, s3_key, number), row

    async def _rows(self, project: str, s3_key: str) -> list[FailureStatus]:
        try:
            failures = await self._store.read_failures(project, s3_key)
        except MissingError:
            return []  # the folder of its round has been removed since
        except RECORD_ERRORS as exc:
            return [FailureStatus(project=project, code=exc.code)]
        return [FailureStatus(project=project, key=each.key, code=each.code) for each in failures]
