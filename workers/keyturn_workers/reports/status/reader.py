"""The report that a `status.requested` asks for (SPEC 16.1).

If the page cannot be read now, the report's `code` says why, and the request is not retried. A
console asks again by itself, and a report of an hour ago is of no use to it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import (
    CodedError,
    MalformedRequestError,
    StorageUnavailableError,
    TooManyRequestsError,
)
from keyturn.identifiers import ALL_PROJECTS, format_time
from keyturn.messages.events import StatusReported
from keyturn.messages.requests import StatusRequested
from keyturn.messages.status import MasterKeyStatus, StatusView
from keyturn.topology import UNSIGNED_DEAD_QUEUE
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.marks import Witness
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.reports.status.attention import Facts, find_attention
from keyturn_workers.reports.status.evidence import EvidenceView
from keyturn_workers.reports.status.feeds import BrokerFeeds
from keyturn_workers.reports.status.index import Index, Snapshot
from keyturn_workers.reports.status.key_usage import ObjectsView
from keyturn_workers.reports.status.query import (
    NO_FILTER,
    RowT,
    Selection,
    filter_audit,
    filter_projects,
    filter_sweeps,
    order_projects,
    select,
)
from keyturn_workers.reports.status.records import OF_WORKER, Bounds, Pace
from keyturn_workers.reports.status.rows import short_detail
from keyturn_workers.reports.status.sweeps import SweepReader

READ_AT_ONCE: Final = 2
"""Reports that one process reads at once."""
MAX_WAITING: Final = 6
"""Reports that wait for these; further ones are answered with `too_many_requests`."""
ROWS_OF: Final[dict[StatusView, str]] = {
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
"""By view, the field of a report that holds its rows."""
_T = TypeVar("_T")
_log = structlog.get_logger()


async def read_master_keys(
    keys: OperatorKeys, active_master_key: str | None
) -> tuple[MasterKeyStatus, ...]:
    """Return a row for each master key, checked against the text that the bucket knows it by."""
    errors = await keys.check_all()
    return tuple(
        MasterKeyStatus(
            master_key=name,
            provider=keys.provider_of(name),
            active=name == active_master_key,
            code=_code(errors[name]),
        )
        for name in keys.ids
    )


def _code(error: Exception | None) -> str | None:
    if error is None:
        return None
    return error.code if isinstance(error, CodedError) else StorageUnavailableError.code


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of the process that reads a report.

    It enrolls projects under the master key with the id `active_master_key`.
    """

    deployment: str
    active_master_key: str
    event_keys: Collection[VerifyKey]


class StatusReader:
    """Reads reports, a few at once.

    A rotation must not wait for consoles. So a process reads few reports at a time, lets a few
    wait, and answers the others at once with `too_many_requests`.

    `in_hand` returns how many requests this process has in hand, those for reports included. At
    most `max_waiting` reports wait. `witness` has the marks that keyrings are compared with.
    Without `customer_keys`, objects that need a customer secret count as unreadable.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        identity: Identity,
        *,
        in_hand: Callable[[], int] = lambda: 0,
        now: Callable[[], datetime] = utc_now,
        max_waiting: int = MAX_WAITING,
        witness: Witness | None = None,
        bounds: Bounds = OF_WORKER,
        feeds: BrokerFeeds | None = None,
        customer_keys: CustomerKeys | None = None,
    ) -> None:
        self._feeds = feeds
        self._bounds = bounds
        self._wait_s = bounds.wait_s
        self._now = now
        self._max_waiting = max_waiting
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._in_hand = 0
        self._keys = keys
        self._active_master_key = identity.active_master_key
        store = SweepStore(storage, keys)
        pace = Pace(lambda: in_hand() - self._in_hand)
        self._evidence = EvidenceView(storage, identity.deployment, identity.event_keys, pace)
        self._objects = ObjectsView(storage, keys, customer_keys or GivenSecrets(), pace, bounds)
        # A command shows everything or fails.
        is_whole = bounds.wait_s is None
        self._index = Index(
            storage, keys, pace, now, witness=witness, max_rows=bounds.rows, is_whole=is_whole
        )
        self._sweeps = SweepReader(storage, store, pace, bounds=bounds)

    async def report(self, request: StatusRequested) -> StatusReported:
        """Return one page, or the reason why it cannot be read now. Raises nothing."""
        if self._in_hand >= READ_AT_ONCE + self._max_waiting:
            busy = TooManyRequestsError("this worker is reading other reports")
            return self._reported(request, _of_error(busy))
        self._in_hand += 1
        try:
            async with self._reading:
                return await self.read(request)
        except CodedError as exc:
            return self._reported(request, _of_error(exc))
        except StorageResponseError as exc:
            refused = StorageUnavailableError(
                f"the storage refused the request: {type(exc).__name__}"
            )
            return self._reported(request, _of_error(refused))
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not be retried for a week
            _log.exception("report failed", view=request.view, request_id=request.request_id)
            failed = StorageUnavailableError(f"internal failure: {type(exc).__name__}")
            return self._reported(request, _of_error(failed))
        finally:
            self._in_hand -= 1

    async def read(self, request: StatusRequested) -> StatusReported:
        """Return one page.

        Raises:
            CodedError, StorageResponseError: it cannot be read now.
        """
        # Changes during the read may be missing from the page.
        at = self._now()
        found = await self._answer(request)
        return self._reported(request, {"at": format_time(at)} | found)

    async def _answer(self, request: StatusRequested) -> dict[str, Any]:
        """Return the fields of one page."""
        project, page, limit = request.project, request.page, request.limit
        sweep_id = str(request.sweep_id)
        found: dict[str, Any]
        match request.view:
            case "projects" | "sweeps":
                found = await self._of_index(request)
            case "sweep":
                selected = await self._sweeps.sweep(sweep_id, project, page, limit)
                found = _fields("sweeps", selected)
            case "failures":
                wanted = request.filter or NO_FILTER
                failures, codes = await self._sweeps.failures(
                    sweep_id, project, wanted, page, limit
                )
                found = _fields("failures", failures) | {"codes": codes}
            case "evidence":
                files = await self._evidence.page(project, page, limit)
                found = _fields("evidence_files", files)
            case "master_keys":
                found = await self._master_keys()
            case "objects":
                rows, following = await self._objects.read(
                    project, request.after, limit, records=(request.filter or NO_FILTER).records
                )
                found = {"objects": rows, "next": following}
            case _:
                found = await self._of_broker(request, page)
        return found

    async def _of_broker(self, request: StatusRequested, page: int) -> dict[str, Any]:
        """Return a page of a view that is read from the broker."""
        feeds = self._feeds
        if feeds is None:
            raise MalformedRequestError(f"the view {request.view} is not served here")
        rows: Sequence[Any]
        match request.view:
            case "workers":
                is_complete = await feeds.read_workers(self._wait_s)
                rows = feeds.workers.rows()
                is_complete &= not feeds.workers.is_truncated
            case "totals":
                is_complete = await feeds.read_workers(self._wait_s)
                rows = feeds.workers.totals()
            case "queues":
                depths = await feeds.depths.read()
                await feeds.read_workers(self._wait_s)
                rows = feeds.workers.queues(depths.queues)
                at = {"at": format_time(depths.at)}
                return at | _fields("queues", select(rows, page, request.limit, of_all=len(rows)))
            case "attention":
                facts = await self._facts(feeds)
                rows, is_complete = find_attention(facts), facts.is_complete
            case "audit":
                return await self._audit(feeds, request, page)
            case _:
                return await feeds.dead_letters.page(request)
        selected = select(rows, page, request.limit, of_all=len(rows))
        return _fields(ROWS_OF[request.view], selected, is_complete=is_complete)

    async def _audit(
        self, feeds: BrokerFeeds, request: StatusRequested, page: int
    ) -> dict[str, Any]:
        is_read = await feeds.read_audit(self._wait_s)
        rows = feeds.audit.rows()
        matching = filter_audit(rows, request.filter or NO_FILTER)
        selected = select(matching, page, request.limit, of_all=len(rows))
        is_complete = is_read and not feeds.audit.has_older
        found = _fields("audit_records", selected, is_complete=is_complete)
        return found | {"findings": feeds.audit.findings_without_record()}

    async def _facts(self, feeds: BrokerFeeds) -> Facts:
        """Return the input of the rules, with the names of sources that cannot be read."""
        unread: dict[str, str] = {}

        async def attempt(source: str, reading: Awaitable[_T]) -> _T | None:
            try:
                return await reading
            except CodedError as exc:
                unread[source] = exc.detail
            except StorageResponseError as exc:
                unread[source] = f"the storage refused the request: {type(exc).__name__}"
            return None

        snapshot, depths, dead, keys, _, _ = await asyncio.gather(
            attempt("keyrings and sweeps", self._index.snapshot(self._wait_s)),
            attempt("queues", feeds.depths.read()),
            attempt("dead letters", feeds.dead_letters.read()),
            attempt("master keys", read_master_keys(self._keys, self._active_master_key)),
            attempt("reports of workers", feeds.read_workers(self._wait_s)),
            attempt("the audit trail", feeds.read_audit(self._wait_s)),
        )
        snapshot = snapshot or Snapshot(self._now(), is_complete=False)
        queues = {} if depths is None else depths.queues
        unsigned = queues.get(UNSIGNED_DEAD_QUEUE)
        return Facts(
            now=self._now(),
            indexed_at=format_time(snapshot.at),
            projects=snapshot.projects,
            sweeps=snapshot.sweeps,
            queues_at=None if depths is None else format_time(depths.at),
            queues=feeds.workers.queues(queues),
            depths=feeds.depths.of_queue,
            unsigned_depth=None if unsigned is None else unsigned.depth,
            workers=feeds.workers.rows(),
            master_keys=keys or (),
            dead_at=None if dead is None else format_time(dead.at),
            dead_codes=() if dead is None else dead.codes,
            audit_findings=feeds.audit.findings,
            unread=unread,
            is_complete=snapshot.is_complete,
        )

    def _select(
        self, rows: Sequence[RowT], request: StatusRequested, of_all: int
    ) -> Selection[RowT]:
        page, limit = request.page, request.limit
        return select(rows, page, limit, of_all=of_all, max_bytes=self._bounds.page_bytes)

    async def _of_index(self, request: StatusRequested) -> dict[str, Any]:
        """Return a page of projects, or of sweeps."""
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
            selected = self._select(ordered, request, of_all)
            return at | _fields("projects", selected, is_complete=snapshot.is_complete)
        known = [row for row in snapshot.sweeps if is_all or row.project == request.project]
        with_parts = not is_all
        sweeps = filter_sweeps(known, wanted, with_parts=with_parts)
        unfiltered = NO_FILTER.model_copy(update={"parts": wanted.parts})
        of_all = len(filter_sweeps(known, unfiltered, with_parts=with_parts))
        found = self._select(sweeps, request, of_all)
        return at | _fields("sweeps", found, is_complete=snapshot.is_complete)

    async def _master_keys(self) -> dict[str, Any]:
        """Return the master keys, with how many keyrings are under each."""
        snapshot = await self._index.snapshot(self._wait_s)
        under = Counter(row.master_key for row in snapshot.projects)
        rows = tuple(
            row.model_copy(update={"projects": under[row.master_key]})
            for row in await read_master_keys(self._keys, self._active_master_key)
        )
        selected = Selection(rows, len(rows), len(rows))
        return _fields("master_keys", selected, is_complete=snapshot.is_complete)

    async def close(self) -> None:
        """Stop reading."""
        await self._index.close()
        if self._feeds is not None:
            await self._feeds.close()

    def _reported(self, request: StatusRequested, found: dict[str, Any]) -> StatusReported:
        fields: dict[str, Any] = {
            "request_id": request.request_id,
            "project": request.project,
            "at": format_time(self._now()),
            "view": request.view,
            "sweep_id": request.sweep_id,
            "page": request.page,
        }
        return StatusReported(**fields | found)


def _fields(name: str, selected: Selection[Any], *, is_complete: bool = True) -> dict[str, Any]:
    return {
        name: selected.rows,
        "total": selected.total,
        "of_all": selected.of_all,
        "is_complete": selected.is_complete and is_complete,
    }


def _of_error(error: CodedError) -> dict[str, Any]:
    return {"code": error.code, "detail": short_detail(error)}
