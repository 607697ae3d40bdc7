"""The views of keyrings and sweeps, a page each (SPEC 16.1).

A position is the S3 key of a record, as listed. It is opaque to those who ask.
"""

from collections.abc import Sequence
from typing import Final

from keyturn.identifiers import ALL_PROJECTS, KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key
from keyturn.messages import ProjectStatus, SweepStatus
from keyturn_workers.status.page import Entry, Page, RowT, cut
from keyturn_workers.status.records import Record, record_of
from keyturn_workers.status.summaries import Summaries
from keyturn_workers.storage import PAGE_KEYS, ObjectSummary, Storage

# Sweeps leave more records than plans: a page is over after so many listed ones.
_MAX_LISTINGS: Final = 10


class RecordViews:
    """Pages of keyrings and of sweeps."""

    def __init__(self, storage: Storage, summaries: Summaries) -> None:
        self._storage = storage
        self._summaries = summaries

    async def projects(self, project: str, after: str | None, limit: int) -> Page[ProjectStatus]:
        """The keyrings, or that of one project.

        Raises:
            StorageUnavailableError, StorageAnswerError: not all of them can be read.
        """
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
        return cut(entries, following, limit)

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


def _is_plan(listed: ObjectSummary, project: str) -> bool:
    record: Record | None = record_of(listed)
    path = None if record is None else record.sweep_path
    return path is not None and path.is_plan and project in (ALL_PROJECTS, path.project)
