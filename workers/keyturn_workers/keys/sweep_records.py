"""The records of sweeps in the bucket (SPEC 5.1, 8.5).

| path below `.keyturn/sweeps/` | record |
| --- | --- |
| `{project}.json` | the record of a project |
| `{project}/{round id}/results/{page}-{attempt}.json` | the result of one page attempt |
| `{project}/{round id}/failures/{page}.json` | the failures of a proven page |
| `{project}/{round id}/tags/{page}-{attempt}-{n}.json` | tags that a copy is about to drop |
| `*.json` (the name is a star) | the record of the sweeps of all projects |
| `*/{walk id}/{project}.json` | the end of one project's part of such a sweep |

Each record is sealed and bound to its path. An attacker who can write the bucket can remove a
record, so that work is repeated or an open sweep is lost, but cannot forge one.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

import structlog

from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import ALL_PROJECTS, SWEEPS_PREFIX, is_project, is_uuid
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.sweep_record import (
    AllRecord,
    Failure,
    OpenPage,
    PartEnd,
    ProjectRecord,
    Result,
    Round,
    from_json,
    to_json,
)
from keyturn_workers.keys.keyring import sealed_records

RecordT = TypeVar("RecordT", ProjectRecord, AllRecord)
_T = TypeVar("_T")

# The number of small records that are read or deleted concurrently.
_CONCURRENCY: Final = 16
_RESULT_NAME: Final = re.compile(r"results/(?P<page>\d{8})-(?P<attempt>\d{6})\.json")
_TAGS: Final = "tags/"
_FAILURES_NAME: Final = re.compile(r"failures/\d{8}\.json")

_log = structlog.get_logger()


class UnknownRecordError(CorruptObjectError):
    """A record opens, but is not of the kind that this release writes at its path.

    Only a worker can have sealed it there, perhaps one of another release. So it is never
    replaced: it may contain requests that have not ended.
    """


@dataclass(frozen=True, slots=True)
class StoredRecord(Generic[RecordT]):
    """A record as it was read: a change is conditional on its ETag.

    `master_key` is the name of the master key that it is sealed under.
    """

    record: RecordT
    etag: str
    master_key: str


@dataclass(frozen=True, slots=True)
class RecordPath:
    """The path of a sealed record.

    Attributes:
        project: The project, or `*`.
        round_id: The round, or walk, whose folder it is in; empty for a main record.
        name: The rest of the path, such as `failures/00000001.json`.
    """

    project: str
    round_id: str = ""
    name: str = ""

    @property
    def is_main(self) -> bool:
        """True for the main record of a project, or of all projects."""
        return not self.round_id

    @property
    def is_failures(self) -> bool:
        """True for a page's failures."""
        return _FAILURES_NAME.fullmatch(self.name) is not None

    @property
    def attempt(self) -> tuple[int, int] | None:
        """The page and attempt of a page result; None for any other record."""
        match = _RESULT_NAME.fullmatch(self.name)
        return None if match is None else (int(match["page"]), int(match["attempt"]))


def record_path(project: str) -> str:
    """The path of the main record of a project, or of all projects."""
    return f"{SWEEPS_PREFIX}{project}.json"


def round_prefix(project: str, round_id: str) -> str:
    """The folder of a round, or of a walk."""
    return f"{SWEEPS_PREFIX}{project}/{round_id}/"


def parse_record_path(s3_key: str) -> RecordPath | None:
    """Parse the path of a sweep's record; None for any other S3 key."""
    path = s3_key.removeprefix(SWEEPS_PREFIX)
    project, _, rest = path.partition("/")
    if path == s3_key:
        return None
    if not rest:
        project = path.removesuffix(".json")
        is_record = path.endswith(".json") and (project == ALL_PROJECTS or is_project(project))
        return RecordPath(project) if is_record else None
    round_id, _, name = rest.partition("/")
    if not is_uuid(round_id) or not (project == ALL_PROJECTS or is_project(project)):
        return None
    return RecordPath(project, round_id, name)


@dataclass(frozen=True, slots=True)
class _Failures:
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class _TagNote:
    tags: dict[str, dict[str, str]]


class SweepStore:
    """Reads and writes the records of all sweeps of one bucket.

    Methods raise the errors of the storage, `UnknownMasterKeyError` if this process lacks the
    master key of a record, `KmsUnavailableError` if its provider is away, and
    `CorruptObjectError` if a record was not written by a worker, unless they say otherwise.
    """

    def __init__(self, storage: Storage, keys: KekDeriver) -> None:
        self._storage = storage
        self._keys = keys

    # The main records.

    async def read(self, project: str) -> StoredRecord[ProjectRecord]:
        """Read the record of a project; `MissingError` if there is none."""
        s3_key = record_path(project)
        record, master_key, etag = await self._read(s3_key, project, ProjectRecord)
        return StoredRecord(record, etag, master_key)

    async def read_all(self) -> StoredRecord[AllRecord]:
        """Read the record of the sweeps of all projects; `MissingError` if there is none."""
        s3_key = record_path(ALL_PROJECTS)
        record, master_key, etag = await self._read(s3_key, ALL_PROJECTS, AllRecord)
        return StoredRecord(record, etag, master_key)

    async def find(self, project: str) -> ProjectRecord | AllRecord | None:
        """Read the record of a project, or of all (`*`); None if there is none."""
        with suppress(MissingError):
            if project == ALL_PROJECTS:
                return (await self.read_all()).record
            return (await self.read(project)).record
        return None

    async def create(self, record: ProjectRecord | AllRecord, master_key: str) -> bool:
        """Create a record; False if a worker wrote one before. A forged record is replaced.

        Raises:
            UnknownRecordError: a worker wrote a record that this process cannot read.
        """
        s3_key = record_path(record.project)
        body = await self._seal(s3_key, record.project, record, master_key)
        if await sealed_records.create(self._storage, s3_key, body):
            return True
        try:
            head, existing = await self._storage.read(s3_key)
        except MissingError:
            return False
        try:
            await self._open(existing, s3_key, record.project, type(record))
        except UnknownRecordError:
            raise
        except CorruptObjectError:
            _log.warning("forged record of sweeps replaced", project=record.project)
            return await sealed_records.replace(self._storage, s3_key, body, head.etag)
        return False

    async def change(self, record: ProjectRecord | AllRecord, etag: str, master_key: str) -> bool:
        """Replace the record that was read with this ETag; False if it changed meanwhile."""
        s3_key = record_path(record.project)
        body = await self._seal(s3_key, record.project, record, master_key)
        return await sealed_records.replace(self._storage, s3_key, body, etag)

    async def projects(self) -> AsyncIterator[tuple[str, datetime, str]]:
        """List the main records: project, or `*`, time of the last change, and ETag."""
        after, prefix = "", SWEEPS_PREFIX
        while True:
            page = await self._storage.list_entries(prefix, delimiter="/", after=after)
            for row in page.objects:
                path = parse_record_path(row.key)
                if path is not None:
                    yield path.project, row.last_modified, row.etag
            if not page.next_after:
                return
            after = page.next_after

    # The folders of rounds.

    async def folders(self, project: str) -> Mapping[str, datetime]:
        """Return the rounds of a project that left records, with the time of the newest record."""
        touched: dict[str, datetime] = {}
        async for row in self._storage.list(f"{SWEEPS_PREFIX}{project}/"):
            path = parse_record_path(row.key)
            if path is not None:
                before = touched.get(path.round_id, row.last_modified)
                touched[path.round_id] = max(before, row.last_modified)
        return touched

    async def delete_folder(self, project: str, round_id: str) -> None:
        """Delete all records of a round. All its tags must be back on their objects."""
        prefix = round_prefix(project, round_id)
        s3_keys = [row.key async for row in self._storage.list(prefix)]
        await gather_limited(self._storage.delete(s3_key) for s3_key in s3_keys)

    async def delete_old_results(self, project: str) -> None:
        """Delete the results of all rounds but the running one; no step reads them any more.

        The main record is read after the listing, so a round that it does not name is over.
        """
        results = dict[str, str]()
        async for row in self._storage.list(f"{SWEEPS_PREFIX}{project}/"):
            path = parse_record_path(row.key)
            if path is not None and path.attempt is not None:
                results[row.key] = path.round_id
        if not results:
            return
        current: Round | None = None
        with suppress(MissingError):
            current = (await self.read(project)).record.round
        running = None if current is None else current.id
        old = [s3_key for s3_key, round_id in results.items() if round_id != running]
        await gather_limited(self._storage.delete(s3_key) for s3_key in old)

    # Results.

    async def add_result(
        self, project: str, round_id: str, page: OpenPage, result: Result, master_key: str
    ) -> bool:
        """Store the result of this page attempt; False if another worker stored one already."""
        s3_key = _result_path(project, round_id, page)
        if await self._create(s3_key, project, result, master_key):
            return True
        if await self._read_or_delete_forged(s3_key, project, Result) is not None:
            return False
        # An attacker who can write the bucket had put a record there; it is deleted now.
        return await self._create(s3_key, project, result, master_key)

    async def results(self, record: ProjectRecord) -> dict[int, Result]:
        """Read the results of the current attempts at the open pages, by page number."""
        current = record.round
        if current is None:
            return {}
        sent = {(each.page, each.attempts) for each in current.open_pages if each.sent_at}
        if not sent:
            return {}
        stored: list[tuple[int, str]] = []
        async for row in self._storage.list(f"{round_prefix(record.project, current.id)}results/"):
            path = parse_record_path(row.key)
            attempt = None if path is None else path.attempt
            if attempt is not None and attempt in sent:
                stored.append((attempt[0], row.key))
        read = await gather_limited(
            self._read_result(record, page, s3_key) for page, s3_key in stored
        )
        return {page: result for page, result in read if result is not None}

    async def _read_result(
        self, record: ProjectRecord, page: int, s3_key: str
    ) -> tuple[int, Result | None]:
        """Read the result of a page; None, as for a page not done, if it is forged."""
        try:
            result, master_key, _ = await self._read(s3_key, record.project, Result)
        except MissingError:
            return page, None
        except (CorruptObjectError, UnknownMasterKeyError):
            await self._storage.delete(s3_key)
            return page, None
        # A result under a master key that is being replaced proves nothing for the new one.
        if master_key != record.state.master_key:
            result = replace(result, state=None)
        return page, result

    async def delete_result_if_stale(self, project: str, round_id: str, page: OpenPage) -> None:
        """Delete the result of a page attempt if no step will read it any more.

        That is so if the round ended before the result was stored, or another attempt overtook
        this one. Call this after storing the result: a step that ends the round later finds the
        result by listing.
        """
        current: Round | None = None
        with suppress(MissingError):
            current = (await self.read(project)).record.round
        now = current.page(page.page) if current is not None and current.id == round_id else None
        if now is None or now.attempts != page.attempts:
            await self._storage.delete(_result_path(project, round_id, page))

    async def delete_page_results(
        self, project: str, round_id: str, pages: Iterable[OpenPage]
    ) -> None:
        """Delete the results of all attempts at these pages, once they are proven."""
        paths = [
            _result_path(project, round_id, replace(page, attempts=attempt))
            for page in pages
            for attempt in range(page.attempts + 1)
        ]
        await gather_limited(self._storage.delete(s3_key) for s3_key in paths)

    # Failures, which `keyturn status` shows.

    async def add_failures(
        self, project: str, round_id: str, page: int, failures: tuple[Failure, ...], master_key: str
    ) -> None:
        """Store the failures of a proven page."""
        s3_key = f"{round_prefix(project, round_id)}failures/{page:08}.json"
        await self._create(s3_key, project, _Failures(failures), master_key)

    async def failure_records(
        self, project: str, round_id: str, *, since: str = ""
    ) -> AsyncIterator[str]:
        """List the S3 keys of the failures of a round, one for each page, from `since` on."""
        prefix = f"{round_prefix(project, round_id)}failures/"
        # A key without its last letter sorts before the key itself.
        async for row in self._storage.list(prefix, after=since[:-1]):
            if row.key >= since:
                yield row.key

    async def read_failures(self, project: str, s3_key: str) -> tuple[Failure, ...]:
        """Read the failures of one page; `MissingError` if they were removed."""
        page, _, _ = await self._read(s3_key, project, _Failures)
        return page.failures

    # Tags that a copy drops.

    async def add_tag_note(
        self,
        project: str,
        round_id: str,
        page: OpenPage,
        tags: Mapping[str, Mapping[str, str]],
        master_key: str,
    ) -> str:
        """Store object tags before copies drop them; return the path of the note."""
        name = f"{_TAGS}{page.page:08}-{page.attempts:06}-{uuid4().hex}.json"
        s3_key = f"{round_prefix(project, round_id)}{name}"
        note = _TagNote({key: dict(value) for key, value in tags.items()})
        await self._create(s3_key, project, note, master_key)
        return s3_key

    async def tag_notes(
        self, project: str, round_id: str = "", page: OpenPage | None = None
    ) -> AsyncIterator[tuple[str, dict[str, dict[str, str]]]]:
        """Read the tag notes of a page, a round, or all rounds: path, tags by object key."""
        prefix = round_prefix(project, round_id) if round_id else f"{SWEEPS_PREFIX}{project}/"
        if page is not None:
            prefix += f"{_TAGS}{page.page:08}-"
        async for row in self._storage.list(prefix):
            path = parse_record_path(row.key)
            if path is None or not path.name.startswith(_TAGS):
                continue
            try:
                note, _, _ = await self._read(row.key, project, _TagNote)
            except MissingError:
                continue
            except (CorruptObjectError, UnknownMasterKeyError) as exc:
                # Not deleted: another worker may be able to read it. No round waits for it.
                _log.warning("tags not read", record=row.key, code=exc.code)
                continue
            yield row.key, note.tags

    async def delete_tag_note(self, s3_key: str) -> None:
        """Delete a note whose tags are back on their objects."""
        await self._storage.delete(s3_key)

    # The parts of a sweep of all projects.

    async def add_part_end(self, walk_id: str, project: str, end: PartEnd, master_key: str) -> None:
        """Store the end of one project's part, unless one is stored already."""
        s3_key = part_path(walk_id, project)
        if await self._create(s3_key, ALL_PROJECTS, end, master_key):
            return
        if await self.read_part_end(walk_id, project) is None:
            # An attacker who can write the bucket had put a record there; it is deleted now.
            await self._create(s3_key, ALL_PROJECTS, end, master_key)

    async def ended_parts(self, walk_id: str, *, since: str = "") -> AsyncIterator[str]:
        """List the projects from `since` on whose parts ended, in the order of `{project}.json`."""
        folder = round_prefix(ALL_PROJECTS, walk_id)
        # A name without its suffix sorts before the name itself.
        async for row in self._storage.list(folder, after=folder + since if since else ""):
            yield row.key.removeprefix(folder).removesuffix(".json")

    async def read_part_end(self, walk_id: str, project: str) -> PartEnd | None:
        """Read the end of one project's part; None if it has not ended, or the record is forged.

        A forged record is deleted: it would block the genuine one.
        """
        s3_key = part_path(walk_id, project)
        return await self._read_or_delete_forged(s3_key, ALL_PROJECTS, PartEnd)

    async def look_up_part_end(self, walk_id: str, project: str) -> PartEnd | None:
        """Read the end of one project's part; None if it has not ended. Changes nothing.

        Raises:
            CorruptObjectError: the record is forged or damaged.
        """
        try:
            end, _, _ = await self._read(part_path(walk_id, project), ALL_PROJECTS, PartEnd)
        except MissingError:
            return None
        return end

    async def reseal_records(self, master_key: str) -> None:
        """Seal all records under this master key.

        A record that changes meanwhile gets its keyring's master key. A record that does not open
        is left as it is; `keyturn status` reports it.
        """
        async for row in self._storage.list(SWEEPS_PREFIX):
            path = parse_record_path(row.key)
            if path is None:
                continue
            try:
                await sealed_records.reseal(
                    self._storage, row.key, path.project, master_key, self._keys
                )
            except (CorruptObjectError, UnknownMasterKeyError) as exc:
                _log.warning("record not re-sealed", record=row.key, code=exc.code)

    # Any sealed record.

    async def _seal(self, s3_key: str, project: str, value: Any, master_key: str) -> bytes:
        return await sealed_records.build(s3_key, project, master_key, to_json(value), self._keys)

    async def _create(self, s3_key: str, project: str, value: Any, master_key: str) -> bool:
        """Create a record; False if one exists."""
        body = await self._seal(s3_key, project, value, master_key)
        return await sealed_records.create(self._storage, s3_key, body)

    async def _read(self, s3_key: str, project: str, kind: type[_T]) -> tuple[_T, str, str]:
        """Read a record, the name of the master key it is sealed under, and its ETag.

        Raises:
            MissingError: there is no record.
            CorruptObjectError: a worker did not write it.
            UnknownRecordError: a worker wrote it, but it is not of this kind.
            UnknownMasterKeyError: this process lacks the master key.
            KmsUnavailableError: its provider is away.
        """
        head, body = await self._storage.read(s3_key)
        return *await self._open(body, s3_key, project, kind), head.etag

    async def _open(self, body: bytes, s3_key: str, project: str, kind: type[_T]) -> tuple[_T, str]:
        """Open a record; return it and the name of its master key. Raises as `_read`."""
        master_key, rest = await sealed_records.parse(body, s3_key, project, self._keys)
        try:
            return from_json(kind, rest), master_key
        except ValueError as exc:
            raise UnknownRecordError("the record is not of its kind") from exc

    async def _read_or_delete_forged(self, s3_key: str, project: str, kind: type[_T]) -> _T | None:
        """Read a record; None if there is none, or if it was forged, and then delete it.

        A record under a master key that this process lacks is also deleted, forged or not: its
        work is repeated.
        """
        try:
            value, _, _ = await self._read(s3_key, project, kind)
        except MissingError:
            return None
        except UnknownRecordError:
            return None  # another release's record, which its workers can read
        except (CorruptObjectError, UnknownMasterKeyError):
            await self._storage.delete(s3_key)
            return None
        return value


def part_path(walk_id: str, project: str) -> str:
    """The path of the record that one project's part of a sweep of all projects ended."""
    return f"{round_prefix(ALL_PROJECTS, walk_id)}{project}.json"


def _result_path(project: str, round_id: str, page: OpenPage) -> str:
    return f"{round_prefix(project, round_id)}results/{page.page:08}-{page.attempts:06}.json"


async def gather_limited(calls: Iterable[Any]) -> list[Any]:
    """Await these calls, a few at a time, and return their results in order."""
    limit = asyncio.Semaphore(_CONCURRENCY)

    async def limited(call: Any) -> Any:
        async with limit:
            return await call

    return await asyncio.gather(*(limited(call) for call in calls))
