"""Reports of status, read in process: the same as control workers send to consoles (SPEC 8, 16.1).

Commands show everything that `reports.status` reads, with the operator's own keys. Keyrings are
compared with their marks (SPEC 5.5) if the broker can be reached: a command has no event key of its
own, follows the stream like a gateway, and adds no marks. A census of the objects shows which
master keys are in use; `keyturn_workers.core.master_key_usage` decides whether one may be
dropped.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import (
    EventsUnavailableError,
    KeyringRolledBackError,
)
from keyturn.identifiers import ALL_PROJECTS, KEYRINGS_PREFIX, format_time
from keyturn.messages.events import StatusReported
from keyturn.messages.requests import StatusRequested
from keyturn.messages.status import (
    STATUS_MAX_LIMIT,
    ObjectGroupStatus,
    ProjectStatus,
    StatusFilter,
    StatusView,
)
from keyturn.publisher.connection import BrokerAddress
from keyturn.publisher.requests import new_id
from keyturn.settings import DeploymentSettings
from keyturn.topology import MARKS_STREAM
from keyturn_workers.cli.bucket import count, optional_task
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.output import Row, printable, progress_display, quiet
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.master_key_usage import (
    NONCURRENT,
    UNREADABLE,
    Surroundings,
    census_of,
    judge_drop,
    missing_key,
    missing_keys,
    usage_of,
)
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.mark_stream import MarkStream, following
from keyturn_workers.keys.keyring.marks import Witness
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.reports.status.key_usage import list_objects
from keyturn_workers.reports.status.reader import ROWS_OF, Identity, StatusReader
from keyturn_workers.reports.status.records import Bounds

OBJECTS_AT_ONCE: Final = 64
WHOLE: Final = Bounds(
    wait_s=None,
    at_once=OBJECTS_AT_ONCE,
    rows=sys.maxsize,
    failures=sys.maxsize,
    page_bytes=sys.maxsize,
    is_detailed=True,
)
"""A command reads everything, and shows it at once."""
_TIMEOUT_S: Final = 60.0
# No record is written under this lease.
_LEASE_S: Final = 15
_MAX_READS: Final = 8
_MAX_FAILING: Final = 100


class StatusReports:
    """Answers queries about one bucket: `keyturn_workers.reports.status` without a broker.

    `witness` has the marks, if they can be read; `bounds` limits a report. Without `customer_keys`,
    objects that need a customer secret count as unreadable.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        *,
        witness: Witness | None = None,
        bounds: Bounds = WHOLE,
        customer_keys: CustomerKeys | None = None,
    ) -> None:
        self._is_compared = witness is not None
        # The views that name a deployment or the active master key are not used here.
        identity = Identity("", "", ())
        self._reader = StatusReader(
            storage,
            keys,
            identity,
            witness=witness,
            bounds=bounds,
            customer_keys=customer_keys,
        )

    async def pages(
        self, view: StatusView, project: str | None = None, **query: Any
    ) -> AsyncIterator[StatusReported]:
        """Yield all pages of a view, of one project or of all.

        Raises:
            CodedError, StorageResponseError: not all of it can be read.
        """
        report = None
        while report is None or _has_next(report):
            if report is not None and view == "objects":
                query["after"] = report.next
            elif report is not None:
                query["page"] = (report.page or 0) + 1
            request = {
                "request_id": new_id(),
                "requested_at": format_time(datetime.now(UTC)),
                "project": project or ALL_PROJECTS,
                "view": view,
                "limit": STATUS_MAX_LIMIT,
            }
            report = await self._reader.read(StatusRequested.model_validate(request | query))
            yield report

    async def rows(self, view: StatusView, project: str | None = None, **query: Any) -> list[Any]:
        """Return all rows of a view; errors as `pages`."""
        found: list[Any] = []
        async for page in self.pages(view, project, **query):
            found += getattr(page, ROWS_OF[view]) or ()
        return found

    async def keyrings(self, project: str | None = None) -> list[ProjectStatus]:
        """Return all keyrings, or that of one project, compared with their marks.

        A keyring whose mark arrived during the read is read again. Errors as `pages`.
        """
        found: list[ProjectStatus] = await self.rows("projects", project)
        for number, row in enumerate(found):
            reads = 1
            while self._is_compared and row.mark is row.code is None and reads < _MAX_READS:
                again = await self.rows("projects", row.project)
                row, reads = again[0] if again else row, reads + 1  # noqa: PLW2901  # as read last
                found[number] = row
        return found


def _has_next(report: StatusReported) -> bool:
    if report.view == "objects":
        return report.next is not None
    return (report.page or 1) * STATUS_MAX_LIMIT < (report.total or 0)


@asynccontextmanager
async def open_marks(
    settings: DeploymentSettings, verify_keys: tuple[VerifyKey, ...]
) -> AsyncIterator[MarkStream]:
    """Yield all marks, and follow them until the block ends.

    Raises:
        CommandError: the stream cannot be read.
    """
    marks = MarkStream(
        BrokerAddress.of(settings),
        settings.deployment,
        verify_keys,
        lease_s=_LEASE_S,
        signing_key=None,
    )
    with quiet():
        async with following(marks):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await marks.load()
            except EventsUnavailableError as exc:
                raise CommandError(str(exc)) from exc
            except TimeoutError as exc:
                raise CommandError(f"{MARKS_STREAM} was not read to its end in time") from exc
            yield marks


# Master keys and their dependents.


async def read_records(reports: StatusReports, project: str | None) -> list[ObjectGroupStatus]:
    """Open every record of the bucket, or of one project; errors as `take_census`."""
    return await reports.rows("objects", project, filter=StatusFilter(records=True))


def unreadable_sweeps(records: Iterable[ObjectGroupStatus]) -> dict[str, ObjectGroupStatus]:
    """Return the records of sweeps that do not open, by S3 key."""
    unreadable = {row.record: row for row in records if row.kind == UNREADABLE and row.record}
    return {
        s3_key: row
        for s3_key, row in sorted(unreadable.items())
        if not s3_key.startswith(KEYRINGS_PREFIX)
    }


def unreadable_rows(records: Iterable[ObjectGroupStatus]) -> list[Row]:
    """Return the first records of sweeps that do not open."""
    return [
        {"record": s3_key, "code": row.code, "detail": row.detail or ""}
        for s3_key, row in islice(unreadable_sweeps(records).items(), _MAX_FAILING)
    ]


Groups = Counter[ObjectGroupStatus]
"""Objects by the keys that they depend on; the rows have no count of their own."""


async def take_census(
    reports: StatusReports, storage: Storage, project: str | None = None
) -> Groups:
    """Inspect every object of the bucket or of one project.

    Raises:
        StorageUnavailableError, StorageResponseError, KmsUnavailableError: the census would be
            incomplete.
    """
    groups: Groups = Counter()
    text = TextColumn("objects of {task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_display(*columns) as progress:
        bar = progress.add_task("", total=None)

        async def show_total() -> None:
            prefix = "" if project is None else f"{project}/"
            progress.update(bar, total=await count(list_objects(storage, prefix)))

        # A second listing is only worth it if the total is displayed.
        async with optional_task(None if progress.disable else show_total):
            pages = reports.pages("objects", project, filter=StatusFilter(records=False))
            async for page in pages:
                for row in page.objects or ():
                    groups[row.model_copy(update={"count": 0})] += row.count
                    progress.update(
                        bar, advance=row.count, description=printable(row.project or "")
                    )
    return groups


async def find_rolled_back(
    reports: StatusReports, keyrings: Sequence[ProjectStatus], groups: Groups
) -> list[ProjectStatus]:
    """Return the keyrings; those older than their project's readable objects have a code."""
    highest: dict[str | None, int] = {}
    for group in groups:
        if group.kind != NONCURRENT:
            newest = max(highest.get(group.project, 0), group.generation or 0)
            highest[group.project] = newest
    found: list[ProjectStatus] = []
    for row in keyrings:
        newest = highest.get(row.project, 0)
        if row.generation is not None and newest > row.generation:
            # It may have been rotated since: only a keyring read after the objects counts.
            now = (await reports.keyrings(row.project) or [row])[0].generation
            if now is not None and newest > now:
                code, detail = KeyringRolledBackError.code, f"an object is at generation {newest}"
                row = row.model_copy(update={"code": code, "detail": detail})  # noqa: PLW2901
        found.append(row)
    return found


def object_rows(groups: Groups) -> list[Row]:
    """Return a row for each group of objects, by project and kind, the newest generation first."""
    names = ("project", "kind", "generation", "master_key", "code")
    rows = [{name: getattr(g, name) for name in names} | {"objects": groups[g]} for g in groups]
    return sorted(rows, key=_object_order)


def _object_order(row: Row) -> tuple[Any, ...]:
    key, code = row["master_key"] or "", row["code"] or ""
    return row["project"] or "", row["kind"], -(row["generation"] or 0), key, code


def master_key_rows(
    settings: StatusSettings,
    records: Sequence[ObjectGroupStatus],
    groups: Groups | None,
    running_sweeps: int,
    project: str | None,
) -> list[Row]:
    """Return a row for each available master key, and for each missing one in a record.

    `groups` is None if objects were not inspected, `project` the only inspected project.
    """
    census = census_of(records)
    for group, number in (groups or Groups()).items():
        census += census_of([group.model_copy(update={"count": number})])
    around = Surroundings.of(census, running_sweeps, project)
    active = settings.active_master_key
    rows: list[Row] = []
    for name in settings.master_keys:
        is_active = None if active is None else name == active
        usage = usage_of(name, census, is_active=is_active, with_objects=groups is not None)
        verdict = judge_drop(usage, around)
        row: Row = {
            "master_key": name,
            "held": True,
            "active": is_active,
            "objects": usage.objects,
            "noncurrent": None if groups is None else usage.noncurrent,
            "keyrings": usage.keyrings,
            "sweep_records": usage.sweep_records,
            "may_be_dropped": verdict.may_be_dropped,
            "told": f"{name}: {verdict.reason}",
        }
        rows.append(row)
    for name, number in missing_keys(census, settings.master_keys).items():
        row = {"master_key": name, "held": False, "may_be_dropped": None}
        rows.append(row | {"told": f"{name}: {missing_key(number)}"})
    return rows
