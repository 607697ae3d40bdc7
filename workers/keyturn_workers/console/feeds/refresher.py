"""Asks control workers for what the pages show: all of it now and then, single rows at once.

SPEC 16.1, 16.2. Everything it asks for is asked again later, so nothing here is lost by a failure.
An unchanged page is answered without its rows.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from keyturn.errors import CodedError, PublisherError
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import (
    Event,
    ProjectEnrolled,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    StatusReported,
    StatusView,
    SweepCompleted,
    SweepFailed,
    SweepProgressed,
    request_id,
)
from keyturn_workers.console.feeds.requester import StatusArguments, StatusRequester
from keyturn_workers.console.model import Model, SweepRef

_log = logging.getLogger(__name__)

LIMIT: Final = 1000
INVENTORIES: Final[tuple[StatusView, ...]] = ("master_keys", "projects", "sweeps")
UNVIEWED_REFRESH_S: Final = 1800.0
AFTER_ALL_S: Final = 10.0
"""After the end of a sweep of all, all keyrings may have changed: an inventory begins this soon."""
RUNNING_S: Final = 60.0
"""Between reports of what is under way. Events say how far it is; and each request for a report
leaves a record in the audit trail."""
RUNNING_AT_ONCE: Final = 8
SINGLE_PAUSE_S: Final = 0.5
MAX_SINGLE: Final = 200
"""Rows that wait to be asked for; beyond them the next inventory has to do."""
_MAX_PAGES: Final = 1000


class Refresher:
    """Keeps the model's reports fresh.

    Args:
        requester: Requests reports.
        model: Says what is held, and what is under way.
        refresh_s: Seconds between inventories while a page is looked at.
        is_viewed: Whether one is.
        single_pause_s: Seconds between single rows.
    """

    def __init__(
        self,
        requester: StatusRequester,
        model: Model,
        *,
        refresh_s: float,
        is_viewed: Callable[[], bool],
        single_pause_s: float = SINGLE_PAUSE_S,
    ) -> None:
        self._requester = requester
        self._model = model
        self._refresh_s = refresh_s
        self._is_viewed = is_viewed
        self._single_pause_s = single_pause_s
        self._single: dict[SweepRef | str, None] = {}
        self._has_single = asyncio.Event()
        self._looked_up: dict[SweepRef, None] = {}
        self._looked = asyncio.Event()
        self._looked_at_running = asyncio.Event()
        self._running_from = 0
        self._is_over = asyncio.Event()  # a sweep of all

    # What events say.

    def notice(self, event: Event) -> None:
        """Note that an event was just published: what it names is asked for at once."""
        match event:
            case ProjectEnrolled() | RotationAccepted():
                self._want(event.project)
            case RotationCompleted() | RotationFailed() | SweepCompleted() | SweepFailed():
                self._want(SweepRef(event.project, request_id(event)))
                if event.project != ALL_PROJECTS:
                    self._want(event.project)
                else:
                    self._is_over.set()
                    self._looked.set()
            case SweepProgressed():
                self._notice_progress(SweepRef(event.project, event.sweep_id))
            case _:
                pass

    def _notice_progress(self, ref: SweepRef) -> None:
        """A sweep that is not known by a report is asked for once; of a sweep of all, the whole."""
        whole = SweepRef(ALL_PROJECTS, ref.sweep_id)
        if self._model.is_sweep_known(ref) or self._model.is_sweep_known(whole):
            return
        if ref in self._looked_up or whole in self._looked_up:
            return
        self._looked_up[ref] = None
        while len(self._looked_up) > MAX_SINGLE:
            del self._looked_up[next(iter(self._looked_up))]
        self._want(ref)

    def _want(self, what: SweepRef | str) -> None:
        if len(self._single) < MAX_SINGLE:
            self._single[what] = None
            self._has_single.set()

    # What is asked for.

    async def run_singles(self) -> None:
        """Ask for single rows, a few a second at most, for ever."""
        while True:
            await self._has_single.wait()
            if not self._single:
                self._has_single.clear()
                continue
            await self._requester.ready()
            what = next(iter(self._single))
            del self._single[what]
            await self._ask_single(what)
            await asyncio.sleep(self._single_pause_s)

    async def _ask_single(self, what: SweepRef | str) -> None:
        if isinstance(what, str):
            await self._ask(StatusArguments("projects", what))
            return
        report = await self._ask(_of_sweep(what))
        for status in (report.sweeps or ()) if report is not None else ():
            if status.part_of_all and status.project == what.project != ALL_PROJECTS:
                whole = SweepRef(ALL_PROJECTS, what.sweep_id)
                if whole not in self._looked_up:
                    self._looked_up[whole] = None
                    self._want(whole)

    async def run_inventories(self) -> None:
        """Ask for everything, now and then, for ever."""
        while True:
            began = asyncio.get_running_loop().time()
            self._is_over.clear()
            for view in INVENTORIES:
                await self.read_all(view)
            while (left_s := began + self._inventory_s() - asyncio.get_running_loop().time()) > 0:
                self._looked.clear()
                await _wait(self._looked, left_s)

    def _inventory_s(self) -> float:
        if self._is_over.is_set():
            return min(AFTER_ALL_S, self._refresh_s)
        every_s = self._refresh_s
        return every_s if self._is_viewed() else max(every_s, UNVIEWED_REFRESH_S)

    async def read_all(self, view: StatusView) -> None:
        """Read all pages of a view; a page that cannot be read ends it, until the next time."""
        after: str | None = None
        for _ in range(_MAX_PAGES):
            await self._requester.ready()
            known = self._model.digest_of_page(view, ALL_PROJECTS, after)
            report = await self._ask(StatusArguments(view, after=after, limit=LIMIT, known=known))
            if report is None or report.code is not None or report.next is None:
                return
            after = report.next

    async def run_running(self) -> None:
        """Ask for what is under way: often while a page is looked at, for ever."""
        while True:
            began = asyncio.get_running_loop().time()
            await self._requester.ready()
            for ref in self._running_refs():
                await self._ask(_of_sweep(ref))
            while (left_s := began + self._running_s() - asyncio.get_running_loop().time()) > 0:
                self._looked_at_running.clear()
                await _wait(self._looked_at_running, left_s)

    def _running_refs(self) -> list[SweepRef]:
        """Some of what is under way; each has its turn."""
        refs = [row.ref for row in self._model.running_sweeps()]
        if len(refs) <= RUNNING_AT_ONCE:
            return refs
        first = self._running_from % len(refs)
        self._running_from = first + RUNNING_AT_ONCE
        return [*refs[first:], *refs[:first]][:RUNNING_AT_ONCE]

    def _running_s(self) -> float:
        return RUNNING_S if self._is_viewed() else max(RUNNING_S, self._refresh_s)

    def look(self) -> None:
        """A person has opened a page: what is old is asked for now."""
        self._requester.resume()
        self._looked.set()
        self._looked_at_running.set()

    async def _ask(self, arguments: StatusArguments) -> StatusReported | None:
        try:
            return await self._requester.request(arguments)
        except (PublisherError, CodedError) as exc:
            _log.info("no report of %s (%s)", arguments.view, type(exc).__name__)
            return None
        except Exception:  # noqa: BLE001  # a bug that one report meets must not end all feeds
            _log.exception("a report of %s cannot be taken", arguments.view)
            return None


def _of_sweep(ref: SweepRef) -> StatusArguments:
    return StatusArguments("sweep", ref.project, sweep_id=ref.sweep_id, limit=LIMIT)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
