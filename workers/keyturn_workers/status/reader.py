"""The report that a `status.requested` asks for (SPEC 16.1).

What cannot be read now is the report: its `code` says why, and the request is not tried again. A
console asks again by itself, and a report of an hour ago is of no use to it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from keyturn.crypto import VerifyKey
from keyturn.errors import (
    CodedError,
    MalformedRequestError,
    StorageUnavailableError,
    TooManyRequestsError,
)
from keyturn.identifiers import ALL_PROJECTS, format_time
from keyturn.messages import StatusReported, StatusRequested, StatusView
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.keyring import Witness
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.evidence_view import EvidenceView
from keyturn_workers.status.failures_view import FailuresView
from keyturn_workers.status.index import WAIT_S, Index
from keyturn_workers.status.master_keys_view import read_master_keys
from keyturn_workers.status.object_counter import ObjectCounter
from keyturn_workers.status.objects_view import ObjectsView
from keyturn_workers.status.pace import Pace
from keyturn_workers.status.page import Page, digest
from keyturn_workers.status.query import (
    NO_FILTER,
    Selection,
    filter_projects,
    filter_sweeps,
    order_projects,
    select,
)
from keyturn_workers.status.record_views import RecordViews
from keyturn_workers.status.rows import short_detail
from keyturn_workers.status.summaries import Summaries
from keyturn_workers.status.sweep_parts import SweepParts
from keyturn_workers.status.sweep_view import SweepView
from keyturn_workers.status.sweeps import SweepReader
from keyturn_workers.storage import Storage
from keyturn_workers.sweep import SweepStore

READ_AT_ONCE: Final = 2
"""Reports that one process reads at once."""
MAX_WAITING: Final = 6
"""Reports that wait for that; further ones are answered with `too_many_requests`."""

_FIELDS: Final[dict[StatusView, str]] = {
    "projects": "projects",
    "sweeps": "sweeps",
    "sweep": "sweeps",
    "failures": "failures",
    "evidence": "evidence_files",
    "master_keys": "master_keys",
    "objects": "objects",
    "workers": "workers",
    "queues": "queues",
    "totals": "totals",
    "attention": "attention",
    "audit": "audit_records",
    "dead_letters": "dead_letters",
}

_log = structlog.get_logger()


def _nothing() -> int:
    return 0


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a report says about the process that reads it.

    Attributes:
        deployment: Its deployment.
        active_master_key: The id of the master key that it enrolls projects under.
        event_keys: The public event keys that it knows.
    """

    deployment: str
    active_master_key: str
    event_keys: Collection[VerifyKey]


class StatusReader:
    """Reads reports, a few at once.

    A rotation must not wait for consoles. So a process reads few reports at a time, lets a few
    wait, and answers the others at once with `too_many_requests`.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        identity: What reports say about this process.
        in_hand: How many requests this process has in hand, those for reports included.
        now: The time.
        max_waiting: How many reports may wait for those that are read.
        witness: The marks that keyrings are compared with.
        wait_s: How long a report waits for the index to be renewed; None waits for the end.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        identity: Identity,
        *,
        in_hand: Callable[[], int] = _nothing,
        now: Callable[[], datetime] = _utc_now,
        max_waiting: int = MAX_WAITING,
        witness: Witness | None = None,
        wait_s: float | None = WAIT_S,
    ) -> None:
        self._wait_s = wait_s
        self._now = now
        self._max_waiting = max_waiting
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._in_hand = 0
        self._keys = keys
        self._active_master_key = identity.active_master_key
        store = SweepStore(storage, keys)
        pace = Pace(lambda: in_hand() - self._in_hand)
        parts = SweepParts(storage, store, pace)
        self._records = RecordViews(storage, Summaries(storage, keys, pace), witness)
        self._sweep = SweepView(store, parts, ObjectCounter(storage))
        self._failures = FailuresView(store, parts)
        self._evidence = EvidenceView(storage, identity.deployment, identity.event_keys, pace)
        self._objects = ObjectsView(storage, keys, pace)
        self._index = Index(storage, keys, pace, now, witness=witness)
        self._sweeps = SweepReader(storage, store, pace, reading_s=wait_s)

    async def report(self, request: StatusRequested) -> StatusReported:
        """One page, or the reason why it cannot be read now. Raises nothing."""
        if self._in_hand >= READ_AT_ONCE + self._max_waiting:
            busy = TooManyRequestsError("this worker is reading other reports")
            return self._reported(request, _of_error(busy))
        self._in_hand += 1
        try:
            async with self._reading:
                # What changes while it is read may be missing from it.
                at = self._now()
                if request.page is not None:
                    found = await self._answer(request, request.page)
                else:  # of a console of an earlier version
                    found = _of_page(request, await self._read(request))
            return self._reported(request, {"at": format_time(at)} | found)
        except CodedError as exc:
            return self._reported(request, _of_error(exc))
        except StorageAnswerError as exc:
            refused = StorageUnavailableError(f"the storage refuses: {type(exc).__name__}")
            return self._reported(request, _of_error(refused))
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not be retried for a week
            _log.exception("report failed", view=request.view, request_id=request.request_id)
            failed = StorageUnavailableError(f"internal failure: {type(exc).__name__}")
            return self._reported(request, _of_error(failed))
        finally:
            self._in_hand -= 1

    async def _answer(self, request: StatusRequested, page: int) -> dict[str, Any]:
        """The fields of one page."""
        match request.view:
            case "projects" | "sweeps":
                return await self._of_index(request, page)
            case "sweep":
                selected = await self._sweeps.sweep(
                    str(request.sweep_id), request.project, page, request.limit
                )
                return _fields("sweeps", selected)
            case "failures":
                failures, codes = await self._sweeps.failures(
                    str(request.sweep_id),
                    request.project,
                    request.filter or NO_FILTER,
                    page,
                    request.limit,
                )
                return _fields("failures", failures) | {"codes": codes}
            case "evidence":
                files = await self._evidence.page(request.project, page, request.limit)
                return _fields("evidence_files", files)
            case "master_keys":
                return await self._master_keys()
            case "objects":
                objects = await self._objects.read(request.project, request.after, request.limit)
                return {"objects": objects.rows, "next": objects.next}
            case view:
                raise MalformedRequestError(f"the view {view} is not served here")

    async def _of_index(self, request: StatusRequested, page: int) -> dict[str, Any]:
        """A page of projects, or of sweeps."""
        is_all = request.project == ALL_PROJECTS
        if is_all:
            snapshot = await self._index.snapshot(self._wait_s)
        else:
            snapshot = await self._index.of_project(request.project)
        wanted = request.filter or NO_FILTER
        at = {"at": format_time(snapshot.at)}
        if request.view == "projects":
            of_all = len(snapshot.projects)
            projects = filter_projects(snapshot.projects, wanted, self._now())
            ordered = order_projects(projects, request.order)
            selected = select(ordered, page, request.limit, of_all=of_all)
            return at | _fields("projects", selected, is_complete=snapshot.is_complete)
        known = [row for row in snapshot.sweeps if is_all or row.project == request.project]
        with_parts = not is_all
        sweeps = filter_sweeps(known, wanted, with_parts=with_parts)
        unfiltered = NO_FILTER.model_copy(update={"parts": wanted.parts})
        of_all = len(filter_sweeps(known, unfiltered, with_parts=with_parts))
        found = select(sweeps, page, request.limit, of_all=of_all)
        return at | _fields("sweeps", found, is_complete=snapshot.is_complete)

    async def _master_keys(self) -> dict[str, Any]:
        """The master keys, with how many keyrings are under each."""
        snapshot = await self._index.snapshot(self._wait_s)
        under = Counter(row.master_key for row in snapshot.projects)
        rows = tuple(
            row.model_copy(update={"projects": under[row.master_key]})
            for row in await read_master_keys(self._keys, self._active_master_key)
        )
        selected = Selection(rows, len(rows), len(rows))
        return _fields("master_keys", selected, is_complete=snapshot.is_complete)

    async def _read(self, request: StatusRequested) -> Page[Any]:
        project, after, limit = request.project, request.after, request.limit
        page: Page[Any]
        match request.view:
            case "projects":
                page = await self._records.projects(project, after, limit)
            case "sweeps":
                page = await self._records.sweeps(project, after, limit)
            case "sweep":
                page = await self._sweep.read(str(request.sweep_id), project, after, limit)
            case "failures":
                page = await self._failures.read(str(request.sweep_id), project, after, limit)
            case "evidence":
                page = await self._evidence.read(project, after, limit)
            case "master_keys":
                page = Page(await read_master_keys(self._keys, self._active_master_key), None)
            case "objects":
                page = await self._objects.read(project, after, limit)
            case view:
                raise MalformedRequestError(f"the view {view} is not served here")
        return page

    async def close(self) -> None:
        """End what is being read."""
        await self._index.close()

    def _reported(self, request: StatusRequested, found: dict[str, Any]) -> StatusReported:
        fields: dict[str, Any] = {
            "request_id": request.request_id,
            "project": request.project,
            "at": format_time(self._now()),
            "view": request.view,
            "sweep_id": request.sweep_id,
            "page": request.page,
            "after": request.after,
        }
        return StatusReported(**fields | found)


def _fields(name: str, selected: Selection[Any], *, is_complete: bool = True) -> dict[str, Any]:
    return {
        name: selected.rows,
        "total": selected.total,
        "of_all": selected.of_all,
        "is_complete": selected.is_complete and is_complete,
    }


def _of_page(request: StatusRequested, page: Page[Any]) -> dict[str, Any]:
    of_rows = digest(page.rows)
    found = {"next": page.next, "digest": of_rows}
    if of_rows == request.known:
        return found | {"unchanged": True}
    return found | {_FIELDS[request.view]: page.rows}


def _of_error(error: CodedError) -> dict[str, Any]:
    return {"code": error.code, "detail": short_detail(error)}
