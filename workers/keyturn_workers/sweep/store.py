"""The records of sweeps, under `.keyturn/sweeps/` (SPEC 5.1, 8.5).

    {sweep_id}/{project}/sweep.json                         the plan
    {sweep_id}/{project}/results/{round}-{page}-{take}.json  what one take found, written once
    {sweep_id}/{project}/failures/{round}-{page}.json        of proven pages with failures
    {sweep_id}/{project}/tags/{round}-{page}-{take}-{n}.json tags noted before they are dropped
    {sweep_id}/_all/sweep.json                              a sweep of all projects
    {sweep_id}/_all/done/{project}.json                     its parts that ended
    _running/{sweep_id}/{project}                           a mark, until the end is told

Every record is sealed and bound to its key: an attacker who writes the bucket can remove one,
which means that its work is done again, but cannot make one up.

The marks are no records: nothing seals them, and they prove nothing. They are hints that spare
the periodic round the reading of every plan. A forged mark makes a sweep look stalled, so that
it goes on sooner, or keeps the records of an ended one a little longer; without its mark, a
sweep whose messages were lost as well is found by its plan, only later.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

import structlog

from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import (
    ALL_PROJECTS_FOLDER,
    SWEEPS_PREFIX,
    is_project,
    is_uuid,
    sweep_folder,
)
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import sealed_records
from keyturn_workers.storage import Headers, Storage
from keyturn_workers.sweep.plan import (
    ALL,
    AllPlan,
    Ended,
    Failure,
    OpenPage,
    Plan,
    Result,
    SweepRequest,
    from_json,
    to_json,
)

PLAN_NAME: Final = "sweep.json"
_RESULTS: Final = "results/"
_FAILURES: Final = "failures/"
_TAGS: Final = "tags/"
_DONE: Final = "done/"
# Behind no id of a sweep: an id is a UUID.
_RUNNING: Final = f"{SWEEPS_PREFIX}_running/"
_RESULT: Final = re.compile(r"(?P<round>\d{6})-(?P<page>\d{8})-(?P<take>\d{6})\.json")
# Small records that are read or removed at once.
_CONCURRENCY: Final = 16

_T = TypeVar("_T")
PlanT = TypeVar("PlanT", Plan, AllPlan)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing(Generic[PlanT]):
    """A plan as it was read: `etag` for the conditional change, `master_key` it stands under."""

    plan: PlanT
    etag: str
    master_key: str


class SweepStore:
    """Reads and writes the records of all sweeps of one bucket.

    Errors, of every method: those of the storage, `UnknownMasterKeyError` where this process
    lacks a record's master key, `CorruptObjectError` where a record was not written by us.
    """

    def __init__(self, storage: Storage, master_keys: Mapping[str, Secret]) -> None:
        self._storage = storage
        self._master_keys = master_keys

    # The plan of one project's sweep.

    async def read(self, sweep_id: str, project: str) -> Standing[Plan]:
        """The plan; `MissingError` where there is none."""
        key = sweep_folder(sweep_id, project) + PLAN_NAME
        plan, master_key, etag = await self._read(key, project, Plan)
        return Standing(plan, etag, master_key)

    async def read_all(self, sweep_id: str) -> Standing[AllPlan]:
        """The plan of a sweep of all; `MissingError` where there is none."""
        key = sweep_folder(sweep_id, ALL) + PLAN_NAME
        plan, master_key, etag = await self._read(key, ALL, AllPlan)
        return Standing(plan, etag, master_key)

    async def create(self, plan: Plan | AllPlan, master_key: str) -> bool:
        """Put a new plan; False where one stands already."""
        key = self._plan_key(plan)
        return await sealed_records.create(self._storage, key, self._sealed(key, plan, master_key))

    async def change(self, plan: Plan | AllPlan, etag: str, master_key: str) -> bool:
        """Put a plan over the one that was read with this ETag; False where that one changed."""
        key = self._plan_key(plan)
        return await sealed_records.replace(
            self._storage, key, self._sealed(key, plan, master_key), etag
        )

    async def remove(self, sweep_id: str, project: str) -> None:
        """Remove everything of a sweep; its plan goes last."""
        folder = sweep_folder(sweep_id, project)
        async for row in self._storage.list(folder):
            if row.key != folder + PLAN_NAME:
                await self._storage.delete(row.key)
        await self._storage.delete(folder + PLAN_NAME)

    # What takes found.

    async def add_result(self, plan: Plan, live: OpenPage, result: Result, master_key: str) -> bool:
        """Put what this take of a page found; False where another worker's stands already."""
        key = self._result_key(plan, live)
        if await self._add(key, plan.ask.project, result, master_key):
            return True
        if (await self._result(plan, live.page, key))[1] is not None:
            return False
        # Somebody who writes the bucket had put it there; it is gone now.
        return await self._add(key, plan.ask.project, result, master_key)

    async def forget_if_over(self, plan: Plan, live: OpenPage) -> None:
        """Remove a result that no step will look at any more.

        It came after the sweep's end, or of an attempt at the page that another one overtook.
        To be called after it was put: a step that ends the sweep later finds it in its listing.
        """
        try:
            now = (await self.read(plan.ask.sweep_id, plan.ask.project)).plan
        except MissingError:
            over = True
        else:
            page = now.page(live.page) if now.round == plan.round else None
            over = now.status != "running" or page is None or page.take != live.take
        if over:
            await self._storage.delete(self._result_key(plan, live))

    async def results(self, plan: Plan) -> dict[int, Result]:
        """The results that stand for the live pages' current takes, by page."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project) + _RESULTS
        wanted = {
            (plan.round, live.page, live.take) for live in plan.live if live.sent_at is not None
        }
        if not wanted:
            return {}
        found: list[tuple[int, str]] = []
        async for row in self._storage.list(f"{folder}{plan.round:06}-"):
            name = _RESULT.fullmatch(row.key.removeprefix(folder))
            if name is not None:
                at = (int(name["round"]), int(name["page"]), int(name["take"]))
                if at in wanted:
                    found.append((at[1], row.key))
        read = await self._each(self._result(plan, page, key) for page, key in found)
        return {page: result for page, result in read if result is not None}

    async def _result(self, plan: Plan, page: int, key: str) -> tuple[int, Result | None]:
        try:
            result, master_key, _ = await self._read(key, plan.ask.project, Result)
        except MissingError:
            return page, None
        except (CorruptObjectError, UnknownMasterKeyError):
            # Somebody who writes the bucket put it there: the page is taken as not done.
            await self._storage.delete(key)
            return page, None
        # One under a master key that is being rotated out proves nothing for the new one.
        if master_key != plan.state.master_key:
            result = replace(result, state=None)
        return page, result

    async def forget(self, plan: Plan, pages: Iterable[OpenPage]) -> None:
        """Remove results and noted tags of proven pages."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project)
        keys = [
            f"{folder}{_RESULTS}{plan.round:06}-{live.page:08}-{take:06}.json"
            for live in pages
            for take in range(live.take + 1)
        ]
        await self._each(self._storage.delete(key) for key in keys)

    async def forget_all_results(self, plan: Plan) -> None:
        """Remove what is left of results, of every round."""
        await self.forget_results(plan.ask.sweep_id, plan.ask.project)

    # Failures, for people.

    async def add_failures(
        self, plan: Plan, page: int, failures: tuple[Failure, ...], master_key: str
    ) -> None:
        """Keep the failures of a proven page."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project)
        key = f"{folder}{_FAILURES}{plan.round:06}-{page:08}.json"
        await self._add(key, plan.ask.project, _Failures(failures), master_key)

    async def failures(self, plan: Plan) -> AsyncIterator[Failure]:
        """All failures of the last round, in the order of pages."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project)
        async for row in self._storage.list(f"{folder}{_FAILURES}{plan.round:06}-"):
            page, _, _ = await self._read(row.key, plan.ask.project, _Failures)
            for failure in page.failures:
                yield failure

    # Tags that a copy drops.

    async def note_tags(
        self, plan: Plan, live: OpenPage, tags: Mapping[str, Mapping[str, str]], master_key: str
    ) -> str:
        """Note objects' tags before copies that drop them; gives the note's key."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project)
        at = f"{plan.round:06}-{live.page:08}-{live.take:06}-{uuid4().hex}"
        key = f"{folder}{_TAGS}{at}.json"
        note = _Tags({name: dict(value) for name, value in tags.items()})
        await self._add(key, plan.ask.project, note, master_key)
        return key

    async def noted_tags(
        self, plan: Plan, live: OpenPage | None = None
    ) -> AsyncIterator[tuple[str, dict[str, dict[str, str]]]]:
        """Notes that still stand, of one page of this round or of all: key, tags by object."""
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project) + _TAGS
        at = "" if live is None else f"{plan.round:06}-{live.page:08}-"
        async for row in self._storage.list(folder + at):
            note = await self._own(row.key, plan.ask.project, _Tags)
            if note is not None:
                yield row.key, note.tags

    async def forget_note(self, key: str) -> None:
        """Remove a note whose tags stand again."""
        await self._storage.delete(key)

    # The parts of a sweep of all.

    async def add_ended(self, ask_id: str, project: str, ended: Ended, master_key: str) -> None:
        """Keep how a project's part ended."""
        key = f"{sweep_folder(ask_id, ALL)}{_DONE}{project}.json"
        if not await self._add(key, ALL, ended, master_key) and not await self.read_ended(
            ask_id, project
        ):
            # Somebody who writes the bucket had put it there; it is gone now.
            await self._add(key, ALL, ended, master_key)

    async def ended(self, sweep_id: str, *, since: str = "") -> AsyncIterator[str]:
        """The projects from `since` on whose parts ended, in the order of `{project}.json`."""
        folder = sweep_folder(sweep_id, ALL) + _DONE
        # A name without its ending stands before the name itself.
        async for row in self._storage.list(folder, after=folder + since if since else ""):
            yield row.key.removeprefix(folder).removesuffix(".json")

    async def read_ended(self, sweep_id: str, project: str) -> Ended | None:
        """How a project's part ended; None where it did not, whatever stands there."""
        key = f"{sweep_folder(sweep_id, ALL)}{_DONE}{project}.json"
        return await self._own(key, ALL, Ended)

    # Which sweeps there are.

    async def mark_running(self, ask: SweepRequest) -> None:
        """Let `running` show the sweep; before its plan is put."""
        key = _marker(ask.sweep_id, ask.project)
        await self._storage.put(key, b"", Headers(metadata={}))

    async def unmark_running(self, sweep_id: str, project: str) -> None:
        """The sweep's end is told."""
        await self._storage.delete(_marker(sweep_id, project))

    async def running(self) -> AsyncIterator[tuple[str, str, datetime]]:
        """Sweeps that are under way, or whose end is not told: id, project, marked when."""
        async for row in self._storage.list(_RUNNING):
            sweep_id, _, folder = row.key.removeprefix(_RUNNING).partition("/")
            if is_uuid(sweep_id) and (folder == ALL_PROJECTS_FOLDER or is_project(folder)):
                project = ALL if folder == ALL_PROJECTS_FOLDER else folder
                yield sweep_id, project, row.last_modified

    async def changed_at(self, sweep_id: str, project: str) -> datetime | None:
        """When a plan was changed last, or None where there is none."""
        try:
            head = await self._storage.head(sweep_folder(sweep_id, project) + PLAN_NAME)
        except MissingError:
            return None
        return head.last_modified

    async def folders(self) -> AsyncIterator["Folder"]:
        """Every sweep that left records, by one listing."""
        folder: Folder | None = None
        async for row in self._storage.list(SWEEPS_PREFIX):
            named = _named_in(row.key)
            if named is None:
                continue
            if folder is None or named != (folder.sweep_id, folder.project):
                if folder is not None:
                    yield folder
                folder = Folder(*named, touched_at=row.last_modified)
            folder.touched_at = max(folder.touched_at, row.last_modified)
            if _plan_of(row.key) == named:
                folder.changed_at, folder.etag = row.last_modified, row.etag
            elif f"/{_RESULTS}" in row.key:
                folder.has_results = True
        if folder is not None:
            yield folder

    async def plan_of(self, sweep_id: str, project: str) -> Plan | AllPlan | None:
        """The plan of a sweep of either kind; None where there is none."""
        try:
            if project == ALL:
                return (await self.read_all(sweep_id)).plan
            return (await self.read(sweep_id, project)).plan
        except MissingError:
            return None

    async def forget_results(self, sweep_id: str, project: str) -> None:
        """Remove the results of a sweep that ended, or whose plan is gone."""
        async for row in self._storage.list(sweep_folder(sweep_id, project) + _RESULTS):
            await self._storage.delete(row.key)

    async def plans(self, sweep_id: str = "") -> AsyncIterator[tuple[str, str, datetime]]:
        """All plans, or those of one sweep: id, project, when it was changed last."""
        async for row in self._storage.list(SWEEPS_PREFIX + sweep_id):
            if (named := _plan_of(row.key)) is not None:
                yield *named, row.last_modified

    async def reseal_ended(self, master_key: str) -> None:
        """Seal the records of sweeps under this master key.

        But for the plans of those under way, which follow their project's keyring by
        themselves. What does not open stays as it is: the census of `keyturn status` tells.
        """
        running = {(sweep_id, project) async for sweep_id, project, _ in self.running()}
        async for row in self._storage.list(SWEEPS_PREFIX):
            named = _named_in(row.key)
            if named is None or (_plan_of(row.key) == named and named in running):
                continue
            try:
                await sealed_records.reseal(
                    self._storage, row.key, named[1], master_key, self._master_keys
                )
            except (CorruptObjectError, UnknownMasterKeyError) as exc:
                _log.warning("record not re-sealed", record=row.key, code=exc.code)

    # How it is done.

    def _plan_key(self, plan: Plan | AllPlan) -> str:
        return sweep_folder(plan.ask.sweep_id, plan.ask.project) + PLAN_NAME

    def _result_key(self, plan: Plan, live: OpenPage) -> str:
        folder = sweep_folder(plan.ask.sweep_id, plan.ask.project)
        return f"{folder}{_RESULTS}{plan.round:06}-{live.page:08}-{live.take:06}.json"

    def _sealed(self, key: str, plan: Plan | AllPlan, master_key: str) -> bytes:
        return sealed_records.build(
            key, plan.ask.project, master_key, to_json(plan), self._master_keys
        )

    async def _add(self, key: str, project: str, value: Any, master_key: str) -> bool:
        body = sealed_records.build(key, project, master_key, to_json(value), self._master_keys)
        return await sealed_records.create(self._storage, key, body)

    async def _read(self, key: str, project: str, kind: type[_T]) -> tuple[_T, str, str]:
        head, body = await self._storage.read(key)
        master_key, rest = sealed_records.parse(body, key, project, self._master_keys)
        try:
            return from_json(kind, rest), master_key, head.etag
        except ValueError as exc:
            raise CorruptObjectError("the record is not of its kind") from exc

    async def _own(self, key: str, project: str, kind: type[_T]) -> _T | None:
        """A record that must be ours: what somebody else put there goes, and is None."""
        try:
            value, _, _ = await self._read(key, project, kind)
        except MissingError:
            return None
        except CorruptObjectError:
            await self._storage.delete(key)
            return None
        return value

    async def _each(self, calls: Iterable[Any]) -> list[Any]:
        limit = asyncio.Semaphore(_CONCURRENCY)

        async def one(call: Any) -> Any:
            async with limit:
                return await call

        return await asyncio.gather(*(one(call) for call in calls))


@dataclass(slots=True)
class Folder:
    """What a listing shows of one sweep: `changed_at` and `etag` are its plan's, if it has one.

    `touched_at` is when the youngest of its records was written.
    """

    sweep_id: str
    project: str
    touched_at: datetime
    changed_at: datetime | None = None
    etag: str = ""
    has_results: bool = False


@dataclass(frozen=True, slots=True)
class _Failures:
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class _Tags:
    tags: dict[str, dict[str, str]]


def _marker(sweep_id: str, project: str) -> str:
    return _RUNNING + sweep_folder(sweep_id, project).removeprefix(SWEEPS_PREFIX).removesuffix("/")


def _named_in(s3_key: str) -> tuple[str, str] | None:
    """The sweep's id and its project in the key of any of its records."""
    sweep_id, _, rest = s3_key.removeprefix(SWEEPS_PREFIX).partition("/")
    folder = rest.partition("/")[0]
    project = ALL if folder == ALL_PROJECTS_FOLDER else folder
    if not is_uuid(sweep_id) or not (project == ALL or is_project(project)):
        return None
    return sweep_id, project


def _plan_of(s3_key: str) -> tuple[str, str] | None:
    """The sweep's id and its project where this is a plan's key; `*` for a sweep of all."""
    sweep_id, _, rest = s3_key.removeprefix(SWEEPS_PREFIX).partition("/")
    folder, _, name = rest.partition("/")
    if name != PLAN_NAME or not is_uuid(sweep_id):
        return None
    return sweep_id, ALL if folder == ALL_PROJECTS_FOLDER else folder
