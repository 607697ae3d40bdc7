"""The views of keyrings and sweeps, a page each (SPEC 16.1).

A position is the S3 key of a record, as listed; of a sweep that is not the last one of its record,
also its number there and its id. It is opaque to those who ask.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from keyturn.errors import MarksUnavailableError
from keyturn.identifiers import ALL_PROJECTS, KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key
from keyturn.messages import ProjectStatus, SweepStatus
from keyturn_workers.keyring import MarkState, Witness
from keyturn_workers.status.page import Entry, Page, cut
from keyturn_workers.status.records import record_of
from keyturn_workers.status.summaries import Summaries, Summary
from keyturn_workers.storage import ObjectSummary, Storage
from keyturn_workers.sweep.store import record_path


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
            listed, following = await self._list_one(keyring_s3_key(project)), None
        entries = [
            Entry(s3_key, row if isinstance(row, ProjectStatus) else None)
            for s3_key, row in await self._read(listed)
        ]
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
        """The sweeps that records have, or those of one project.

        The parts of a sweep of all are rows only for one project. Errors as `projects`.
        """
        s3_key, _, within = (after or "").partition("|")
        if project == ALL_PROJECTS:
            # A key without its last letter sorts before the key itself.
            begin = s3_key[:-1] if within else s3_key
            listing = await self._storage.list_entries(
                SWEEPS_PREFIX, delimiter="/", after=begin, limit=limit
            )
            listed, following = listing.objects, listing.next_after
        else:
            listed, following = await self._list_one(record_path(project)), None
        entries: list[Entry[SweepStatus]] = []
        for key, rows in await self._read([row for row in listed if row.key >= s3_key]):
            of_record = _sweep_entries(key, rows if isinstance(rows, tuple) else (), project)
            positions = [each.position for each in of_record]
            # If the record has lost that sweep, all of it comes again: better twice than never.
            begun = positions.index(after) + 1 if after in positions else 0
            entries += of_record[begun:]
        return cut(entries, following, limit)

    async def _list_one(self, s3_key: str) -> list[ObjectSummary]:
        """The record with this S3 key, if it exists."""
        rows = [row async for row in self._storage.list(s3_key, limit=1)]
        return [row for row in rows if row.key == s3_key]

    async def _read(self, listed: Sequence[ObjectSummary]) -> list[tuple[str, Summary | None]]:
        """What each listed record says; None for what is gone, or is no record."""
        records = {row.key: record for row in listed if (record := record_of(row)) is not None}
        read = await self._summaries.read_all(tuple(records.values()))
        summaries = dict(zip(records, read, strict=True))
        return [(row.key, summaries.get(row.key)) for row in listed]


def _sweep_entries(
    s3_key: str, rows: Sequence[SweepStatus], project: str
) -> list[Entry[SweepStatus]]:
    """The sweeps of one record. The position of its end is that of the record."""
    is_shown = [project != ALL_PROJECTS or not row.part_of_all for row in rows]
    entries = [
        Entry(f"{s3_key}|{number}|{row.sweep_id}", row if shown else None)
        for number, (row, shown) in enumerate(zip(rows, is_shown, strict=True))
    ]
    return [*entries, Entry(s3_key, None)]


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
