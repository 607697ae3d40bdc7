"""Reports of status, asked for in process: what control workers answer consoles (SPEC 8, 16.1).

Commands show what `keyturn_workers.status` reads, all of it, with the operator's own keys. Keyrings
are compared with their marks (SPEC 5.5) where the broker can be reached: a command has no event
key of its own here, follows the stream like a gateway, and adds no marks. A census of the objects
shows which master keys are in use; whether one may be dropped is decided in
`keyturn_workers.master_key_drop_rule`.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from keyturn.crypto import VerifyKey
from keyturn.errors import (
    EventsUnavailableError,
    KeyringRolledBackError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import ALL_PROJECTS, KEYRINGS_PREFIX, format_time
from keyturn.messages import (
    ObjectGroupStatus,
    ProjectStatus,
    StatusFilter,
    StatusReported,
    StatusRequested,
    StatusView,
)
from keyturn.messages.status import STATUS_MAX_LIMIT
from keyturn.publisher.connection import BrokerAddress
from keyturn.publisher.requests import new_id
from keyturn.settings import DeploymentSettings
from keyturn.topology import MARKS_STREAM
from keyturn_workers.cli.bucket import count, optional_task
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.output import Row, printable, progress_display, quiet
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.keyring import Witness
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_key_drop_rule import KeyUsage, Surroundings, judge_drop, missing_key
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.key_usage import NONCURRENT, UNREADABLE, list_objects
from keyturn_workers.status.reader import ROWS_OF, Identity, StatusReader
from keyturn_workers.status.records import Bounds
from keyturn_workers.storage import Storage

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
# Nothing is written under it.
_LEASE_S: Final = 15
_MAX_READS: Final = 8
_MAX_FAILING: Final = 100


class Reports:
    """Answers queries about one bucket: `keyturn_workers.status` without a broker between.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        witness: The marks, if they can be read.
        bounds: How much a report reads.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        *,
        witness: Witness | None = None,
        bounds: Bounds = WHOLE,
    ) -> None:
        self._is_compared = witness is not None
        # The views that name a deployment or the active master key are not asked for here.
        identity = Identity("", "", ())
        self._reader = StatusReader(storage, keys, identity, witness=witness, bounds=bounds)

    async def pages(
        self, view: StatusView, project: str | None = None, **query: Any
    ) -> AsyncIterator[StatusReported]:
        """All pages of a view, of one project or of all.

        Raises:
            CodedError, StorageAnswerError: not all of it can be read.
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
        """All rows of a view; errors as `pages`."""
        found: list[Any] = []
        async for page in self.pages(view, project, **query):
            found += getattr(page, ROWS_OF[view]) or ()
        return found

    async def keyrings(self, project: str | None = None) -> list[ProjectStatus]:
        """All keyrings, or that of one project, compared with their marks.

        One whose mark arrived while it was read is read again. Errors as `pages`.
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
    """The marks, all of them read, and followed until the block ends.

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


# What depends on which master key.


@dataclass(slots=True)
class Records:
    """Keyrings and records of sweeps by what opens them.

    Attributes:
        under: How many there are of each kind under each master key.
        unreadable: How many of any kind do not open.
        missing_master_keys: How many name each master key that is not available.
        failing: Records of sweeps that do not open, up to a limit.
    """

    under: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    unreadable: int = 0
    missing_master_keys: Counter[str] = field(default_factory=Counter)
    failing: list[ObjectGroupStatus] = field(default_factory=list)

    def add(self, row: ObjectGroupStatus) -> None:
        """Count the records of one row."""
        if row.kind != UNREADABLE:
            self.under[row.kind, row.master_key] += row.count
            return
        self.unreadable += row.count
        if row.code == UnknownMasterKeyError.code:
            self.missing_master_keys[row.detail or ""] += row.count
        if row.record is not None and not row.record.startswith(KEYRINGS_PREFIX):
            self.failing.append(row)

    def failing_rows(self) -> list[Row]:
        """The first records of sweeps that do not open."""
        failing = sorted(self.failing, key=lambda row: row.record or "")[:_MAX_FAILING]
        return [
            {"record": row.record, "code": row.code, "detail": row.detail or ""} for row in failing
        ]


async def read_records(reports: Reports, project: str | None) -> Records:
    """Open every record of the bucket, or of one project; errors as `take_census`."""
    records = Records()
    for row in await reports.rows("objects", project, filter=StatusFilter(records=True)):
        records.add(row)
    return records


Groups = Counter[ObjectGroupStatus]
"""Objects by what they depend on; the rows have no count of their own."""


async def take_census(reports: Reports, storage: Storage, project: str | None = None) -> Groups:
    """Inspect every object of the bucket or of one project.

    Raises:
        StorageUnavailableError, StorageAnswerError, KmsUnavailableError: the census would be
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
    reports: Reports, keyrings: Sequence[ProjectStatus], groups: Groups
) -> list[ProjectStatus]:
    """The keyrings; those older than what opens among their project's objects have a code."""
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
    """A row for each group of objects, by project and kind, the newest generation first."""
    names = ("project", "kind", "generation", "master_key", "code")
    rows = [{name: getattr(g, name) for name in names} | {"objects": groups[g]} for g in groups]
    return sorted(rows, key=_object_order)


def _object_order(row: Row) -> tuple[Any, ...]:
    key, code = row["master_key"] or "", row["code"] or ""
    return row["project"] or "", row["kind"], -(row["generation"] or 0), key, code


def master_key_rows(
    settings: StatusSettings,
    records: Records,
    groups: Groups | None,
    running_sweeps: int,
    project: str | None,
) -> list[Row]:
    """A row for each available master key, and for each missing one that a record names.

    `groups` is None if objects were not inspected, `project` the only one that was inspected.
    """
    objects: Counter[str | None] = Counter()
    noncurrent: Counter[str | None] = Counter()
    unreadable = 0
    for group, number in (groups or Groups()).items():
        (noncurrent if group.kind == NONCURRENT else objects)[group.master_key] += number
        unreadable += number if group.kind == UNREADABLE else 0
    around = Surroundings(running_sweeps, unreadable, records.unreadable, project)
    active = settings.active_master_key
    rows: list[Row] = []
    for name in settings.master_keys:
        row: Row = {
            "master_key": name,
            "held": True,
            "active": None if active is None else name == active,
            "objects": None if groups is None else objects[name],
            "noncurrent": None if groups is None else noncurrent[name],
            "keyrings": records.under["keyring", name],
            "sweep_records": records.under["sweep_record", name],
        }
        of_records = row["keyrings"] + row["sweep_records"]
        usage = KeyUsage(row["objects"], row["noncurrent"] or 0, of_records, row["active"])
        verdict = judge_drop(usage, around)
        told = f"{name}: {verdict.reason}"
        rows.append(row | {"may_be_dropped": verdict.may_be_dropped, "told": told})
    for name, number in sorted(records.missing_master_keys.items()):
        row = {"master_key": name, "held": False, "may_be_dropped": None}
        rows.append(row | {"told": f"{name}: {missing_key(number)}"})
    return rows


# Times.
