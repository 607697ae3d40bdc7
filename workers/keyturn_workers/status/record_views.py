"""The views of keyrings and sweeps, a page each (SPEC 16.1).

A position is the S3 key of a record, as listed. It is opaque to those who ask.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from keyturn.errors import MarksUnavailableError
from keyturn.identifiers import ALL_PROJECTS, KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key
from keyturn.messages import ProjectStatus, SweepStatus
from keyturn_workers.keyring import MarkState, Witness
from keyturn_workers.status.page import Entry, Page, RowT, cut
from keyturn_workers.status.records import Record, record_of
from keyturn_workers.status.summaries import Summaries
from keyturn_workers.storage import PAGE_KEYS, ObjectSummary, Storage

# Sweeps leave more records than plans: a page is over after so many listed ones.
_MAX_LISTINGS: Final = 10


class RecordViews:
    """Pages of keyrings and of sweeps."""

    def __init__(
        self, storage: Storage, summaries: Summaries, witness: Witness | None = None
    ) -> None:
        self._storage = storage
        self._summaries = summaries
        self._witness = witness

    async def projects(self, project: str, after: str | None, limit: int) -> Page[ProjectStatus]:
        """The keyrings, or that of one project, compared with their marks.

        A removed keyring has a row where its record would be listed.

        Raises:
            StorageUnavailableError, StorageAnswerError: not all of them can be read.
        """
        since = 0 if self._witness is None else self._witness.table.received
        if project == ALL_PROJECTS:
            listing = await self._storage.list_entries(
                KEYRINGS_PREFIX, after=after or "", limit=limit
            )
            listed, following = listing.objects, listing.next_after
        else:
            s3_key = keyring_s3_key(project)
            listed = [row async for row in self._storage.list(s3_key, limit=1)]
            listed, following = [row for row in listed if row.key == s3_key], None
        entries = await self._entries(listed, ProjectStatus)
        if self._witness is not None:
            entries = self._compared(self._witness, listed, entries, since)
            in_page = _Range(project, after or "", following)
            entries += self._removed(self._witness, in_page, {row.key for row in listed}, since)
            entries.sort(key=lambda entry: entry.position.encode())
        return cut(entries, following, limit)

    def _compared(
        self,
        witness: Witness,
        listed: Sequence[ObjectSummary],
        entries: Sequence[Entry[ProjectStatus]],
        since: int,
    ) -> list[Entry[ProjectStatus]]:
        """The entries with what the marks say; a mark that arrived meanwhile leaves it open."""
        compared: list[Entry[ProjectStatus]] = []
        for summary, entry in zip(listed, entries, strict=True):
            record, row = record_of(summary), entry.row
            mark = None if record is None else self._summaries.mark_of(record)
            if row is not None and mark is not None and _knows(witness, row.project):
                state = witness.table.find_state(row.project, mark, since)
                row = row.model_copy(update={"mark": state and state.value})
            compared.append(Entry(entry.position, row))
        return compared

    def _removed(
        self, witness: Witness, in_page: "_Range", listed: AbstractSet[str], since: int
    ) -> list[Entry[ProjectStatus]]:
        """A row for each keyring that has a mark, and would be listed on this page."""
        removed: list[Entry[ProjectStatus]] = []
        for project in witness.table.projects():
            s3_key = keyring_s3_key(project)
            if s3_key in listed or not in_page.has(project, s3_key):
                continue
            if witness.table.find_state(project, None, since) is MarkState.REMOVED:
                row = ProjectStatus(project=project, mark="removed")
                removed.append(Entry(s3_key, row))
        return removed

    async def sweeps(self, project: str, after: str | None, limit: int) -> Page[SweepStatus]:
        """The sweeps that left records, or those of one project.

        The parts of a sweep of all are rows only for one project. Errors as `projects`.
        """
        plans: list[ObjectSummary] = []
        following = after
        for _ in range(_MAX_LISTINGS):
            listing = await self._storage.list_entries(
                SWEEPS_PREFIX, after=following or "", limit=PAGE_KEYS
            )
            following = listing.next_after
            plans += [row for row in listing.objects if _is_plan(row, project)]
            if following is None or len(plans) >= limit:
                break
        if len(plans) > limit:
            del plans[limit:]
            following = plans[-1].key
        entries = await self._entries(plans, SweepStatus)
        if project == ALL_PROJECTS:
            entries = [
                Entry(each.position, None if each.row and each.row.part_of_all else each.row)
                for each in entries
            ]
        return cut(entries, following, limit)

    async def _entries(
        self, listed: Sequence[ObjectSummary], kind: type[RowT]
    ) -> list[Entry[RowT]]:
        records = {row.key: record for row in listed if (record := record_of(row)) is not None}
        read = await self._summaries.read_all(tuple(records.values()))
        rows = dict(zip(records, read, strict=True))
        entries: list[Entry[RowT]] = []
        for each in listed:
            row = rows.get(each.key)
            entries.append(Entry(each.key, row if isinstance(row, kind) else None))
        return entries


@dataclass(frozen=True, slots=True)
class _Range:
    """What a page shows: one project, or the S3 keys after one up to another, or to the end."""

    project: str
    after: str
    through: str | None

    def has(self, project: str, s3_key: str) -> bool:
        """Whether a project's keyring belongs on the page."""
        if self.project != ALL_PROJECTS:
            return project == self.project
        key = s3_key.encode()
        return key > self.after.encode() and (self.through is None or key <= self.through.encode())


def _knows(witness: Witness, project: str) -> bool:
    """Whether the newest mark of a project is known, or what a replaced stream had."""
    if witness.table.find_lost(project) is not None:
        return True
    try:
        witness.check_current(project)
    except MarksUnavailableError:
        return False
    return True


def _is_plan(listed: ObjectSummary, project: str) -> bool:
    record: Record | None = record_of(listed)
    path = None if record is None else record.sweep_path
    return path is not None and path.is_plan and project in (ALL_PROJECTS, path.project)
