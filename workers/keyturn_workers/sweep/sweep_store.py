"""The records of sweeps in the bucket: plans, parts of a sweep of all, markers (SPEC 5.1, 8.5).

`record_paths` lists all records; `page_record_store` reads and writes those of pages.

Markers are no records: nothing seals them, and they prove nothing. They are hints that save
the recovery round from reading every plan. A forged marker resumes a sweep too early, or
keeps the records of an ended one a little longer. A sweep that lost both its marker and its
messages is found by its plan, only later.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import structlog

from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import SWEEPS_PREFIX, sweep_prefix
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import sealed_records
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import record_paths
from keyturn_workers.sweep.page_record_store import PageRecordStore
from keyturn_workers.sweep.plan import ALL, AllPlan, OpenPage, PartResult, Plan, SweepRequest

PlanT = TypeVar("PlanT", Plan, AllPlan)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredPlan(Generic[PlanT]):
    """A plan as it was read.

    Attributes:
        plan: The plan.
        etag: For the conditional change of the record.
        master_key: The name of the master key that the record is sealed under.
    """

    plan: PlanT
    etag: str
    master_key: str


@dataclass(slots=True)
class SweepFolder:
    """What a listing shows of the records of one sweep.

    Attributes:
        sweep_id: The id of the sweep.
        project: Its project, or `*`.
        touched_at: When its youngest record was written.
        changed_at: When its plan was changed last; None if it has no plan.
        etag: The ETag of its plan.
        has_results: Whether page results are left.
    """

    sweep_id: str
    project: str
    touched_at: datetime
    changed_at: datetime | None = None
    etag: str = ""
    has_results: bool = False


class SweepStore(PageRecordStore):
    """Reads and writes the records of all sweeps of one bucket.

    Every method raises the errors of the storage, `UnknownMasterKeyError` if this process lacks
    the master key of a record, `KmsUnavailableError` if its provider is away, and
    `CorruptObjectError` if a record was not written by a worker.
    """

    # Plans.

    async def read(self, sweep_id: str, project: str) -> StoredPlan[Plan]:
        """The plan of a sweep of one project; `MissingError` if there is none."""
        s3_key = record_paths.plan_path(sweep_id, project)
        plan, master_key, etag = await self._read_record(s3_key, project, Plan)
        return StoredPlan(plan, etag, master_key)

    async def read_all(self, sweep_id: str) -> StoredPlan[AllPlan]:
        """The plan of a sweep of all projects; `MissingError` if there is none."""
        s3_key = record_paths.plan_path(sweep_id, ALL)
        plan, master_key, etag = await self._read_record(s3_key, ALL, AllPlan)
        return StoredPlan(plan, etag, master_key)

    async def find_plan(self, sweep_id: str, project: str) -> Plan | AllPlan | None:
        """The plan of a sweep of either kind; None if there is none."""
        try:
            if project == ALL:
                return (await self.read_all(sweep_id)).plan
            return (await self.read(sweep_id, project)).plan
        except MissingError:
            return None

    async def create(self, plan: Plan | AllPlan, master_key: str) -> bool:
        """Create the record of a plan; False if one exists."""
        s3_key = record_paths.plan_path(plan.ask.sweep_id, plan.ask.project)
        return await self._create_record(s3_key, plan.ask.project, plan, master_key)

    async def change(self, plan: Plan | AllPlan, etag: str, master_key: str) -> bool:
        """Replace the plan that was read with this ETag; False if it changed meanwhile."""
        s3_key = record_paths.plan_path(plan.ask.sweep_id, plan.ask.project)
        body = await self._seal(s3_key, plan.ask.project, plan, master_key)
        return await sealed_records.replace(self._storage, s3_key, body, etag)

    async def remove(self, sweep_id: str, project: str) -> None:
        """Delete every record of a sweep, its plan last."""
        plan_path = record_paths.plan_path(sweep_id, project)
        async for row in self._storage.list(sweep_prefix(sweep_id, project)):
            if row.key != plan_path:
                await self._storage.delete(row.key)
        await self._storage.delete(plan_path)

    async def delete_result_if_stale(self, plan: Plan, open_page: OpenPage) -> None:
        """Delete the result of a page attempt that no step will read any more.

        The sweep ended before the result was stored, or another attempt overtook this one. Call
        this after storing the result: a step that ends the sweep later finds it by listing.
        """
        try:
            now = (await self.read(plan.ask.sweep_id, plan.ask.project)).plan
        except MissingError:
            is_stale = True
        else:
            page = now.page(open_page.page) if now.round == plan.round else None
            is_stale = now.status != "running" or page is None or page.take != open_page.take
        if is_stale:
            await self.delete_result(plan, open_page)

    # The parts of a sweep of all projects.

    async def add_part_result(
        self, sweep_id: str, project: str, result: PartResult, master_key: str
    ) -> None:
        """Store how the part of one project ended; nothing changes if a result exists."""
        s3_key = record_paths.part_result_path(sweep_id, project)
        if await self._create_record(s3_key, ALL, result, master_key):
            return
        if await self.read_part_result(sweep_id, project) is None:
            # An attacker who can write the bucket had put one there. It is deleted now.
            await self._create_record(s3_key, ALL, result, master_key)

    async def ended_parts(self, sweep_id: str, *, since: str = "") -> AsyncIterator[str]:
        """The projects from `since` on whose parts ended, in the order of `{project}.json`."""
        folder = record_paths.part_results_folder(sweep_id)
        # A name without its suffix sorts before the name itself.
        async for row in self._storage.list(folder, after=folder + since if since else ""):
            yield record_paths.parse_part_name(sweep_id, row.key)

    async def read_part_result(self, sweep_id: str, project: str) -> PartResult | None:
        """How the part of one project ended; None if it did not, or if the record is forged.

        A forged record is deleted: it would be in the way of the true one.
        """
        s3_key = record_paths.part_result_path(sweep_id, project)
        return await self._read_or_delete_forged(s3_key, ALL, PartResult)

    async def look_up_part_result(self, sweep_id: str, project: str) -> PartResult | None:
        """How the part of one project ended, if it did. Changes nothing.

        Raises:
            CorruptObjectError: the record is forged or damaged.
        """
        try:
            s3_key = record_paths.part_result_path(sweep_id, project)
            value, _, _ = await self._read_record(s3_key, ALL, PartResult)
        except MissingError:
            return None
        return value

    # Markers of running sweeps.

    async def mark_running(self, request: SweepRequest) -> None:
        """Put the marker of a sweep, before its plan is created."""
        s3_key = record_paths.running_marker(request.sweep_id, request.project)
        await self._storage.put(s3_key, b"", Headers(metadata={}))

    async def unmark_running(self, sweep_id: str, project: str) -> None:
        """Delete the marker of a sweep, after its end was published."""
        await self._storage.delete(record_paths.running_marker(sweep_id, project))

    async def running(self) -> AsyncIterator[tuple[str, str, datetime]]:
        """The sweeps with a marker: id, project, when the marker was put."""
        async for row in self._storage.list(record_paths.RUNNING_PREFIX):
            marker = record_paths.parse_running_marker(row.key)
            if marker is not None:
                yield *marker, row.last_modified

    # Which sweeps there are.

    async def changed_at(self, sweep_id: str, project: str) -> datetime | None:
        """When a plan was changed last; None if there is none."""
        try:
            head = await self._storage.head(record_paths.plan_path(sweep_id, project))
        except MissingError:
            return None
        return head.last_modified

    async def folders(self) -> AsyncIterator[SweepFolder]:
        """Every sweep that left records, by one listing."""
        folder: SweepFolder | None = None
        async for row in self._storage.list(SWEEPS_PREFIX):
            path = record_paths.parse_record_path(row.key)
            if path is None:
                continue
            if folder is None or (path.sweep_id, path.project) != (folder.sweep_id, folder.project):
                if folder is not None:
                    yield folder
                folder = SweepFolder(path.sweep_id, path.project, touched_at=row.last_modified)
            folder.touched_at = max(folder.touched_at, row.last_modified)
            if path.is_plan:
                folder.changed_at, folder.etag = row.last_modified, row.etag
            elif path.is_result:
                folder.has_results = True
        if folder is not None:
            yield folder

    async def plans(self, sweep_id: str = "") -> AsyncIterator[tuple[str, str, datetime]]:
        """All plans, or those of one sweep: id, project, when the plan was changed last."""
        async for row in self._storage.list(SWEEPS_PREFIX + sweep_id):
            path = record_paths.parse_record_path(row.key)
            if path is not None and path.is_plan:
                yield path.sweep_id, path.project, row.last_modified

    async def reseal_records(self, master_key: str) -> None:
        """Seal all records under this master key, except the plans of running sweeps.

        Those follow the keyring of their project. A record that does not open stays as it is;
        `keyturn status` reports it.
        """
        running = {(sweep_id, project) async for sweep_id, project, _ in self.running()}
        async for row in self._storage.list(SWEEPS_PREFIX):
            path = record_paths.parse_record_path(row.key)
            if path is None or (path.is_plan and (path.sweep_id, path.project) in running):
                continue
            try:
                await sealed_records.reseal(
                    self._storage, row.key, path.project, master_key, self._keys
                )
            except (CorruptObjectError, UnknownMasterKeyError) as exc:
                _log.warning("record not re-sealed", record=row.key, code=exc.code)
