"""The index of keyrings and sweeps for reports (SPEC 16.1).

It is built at the first query, and renewed by listings while queries come: only records whose ETag
changed are opened. Rows have no key. A query waits a short time for a renewal, and then returns the
rows that have been read so far; the renewal goes on.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from keyturn.counts import Counts
from keyturn.errors import (
    CodedError,
    EvidenceError,
    MarksUnavailableError,
    StorageUnavailableError,
)
from keyturn.evidence.envelope import parse as parse_evidence
from keyturn.evidence.statement import Predicate
from keyturn.identifiers import (
    ALL_PROJECTS,
    KEYRINGS_PREFIX,
    SWEEPS_PREFIX,
    format_time,
    keyring_s3_key,
)
from keyturn.messages.status import ProjectStatus, SweepStatus
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.core.sweep_record import AllRecord, KeyWait, ProjectRecord
from keyturn_workers.keys.keyring.marks import Mark, MarkState, Witness
from keyturn_workers.keys.sweep_records import record_path
from keyturn_workers.reports.status.query import order_sweeps
from keyturn_workers.reports.status.records import (
    OF_WORKER,
    Opened,
    Pace,
    Record,
    SweepRecord,
    open_record,
    read_batches,
    record_of,
)
from keyturn_workers.reports.status.rows import Sweep, project_status, unreadable_project

RENEWED_EVERY_S: Final = 2.0
WAIT_S: Final = 1.5
"""How long a query waits for a renewal."""
_READ_AT_ONCE: Final = 32
_UNREADABLE_AGAIN_S: Final = 30.0

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The contents of one record when it was opened.

    `mark` is the mark that would describe the keyring. `proven_at` is when the newest evidence in
    the record was complete. `key_wait` is set while sweeps wait for the customer key. If
    `is_unread`, the storage did not return it. `read_at_s` is for a record that does not open: the
    reason may be temporary.
    """

    etag: str
    keyring: ProjectStatus | None = None
    mark: Mark | None = None
    sweeps: tuple[SweepStatus, ...] = ()
    proven_at: str | None = None
    key_wait: KeyWait | None = None
    is_unreadable: bool = False
    is_unread: bool = False
    read_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index at one moment.

    `at` is when its listing began. `projects` are by name, joined with the records of sweeps.
    `sweeps` has a row for each origin in a record, the running ones first, then the newest. If
    `is_complete`, no row is missing.
    """

    at: datetime
    projects: tuple[ProjectStatus, ...] = ()
    sweeps: tuple[SweepStatus, ...] = ()
    is_complete: bool = True


@dataclass(slots=True)
class _Renewal:
    """One pass over the listings; `is_cut` once there were too many records."""

    at: datetime
    received: int
    is_cut: bool = False
    task: asyncio.Task[None] | None = None
    listed: dict[str, ObjectSummary] = field(default_factory=dict)


class Index:
    """Rows of all keyrings and sweeps.

    `witness` has the marks that keyrings are compared with. At most `max_rows` of keyrings, and of
    sweeps, are kept. If `is_whole`, one record that the storage does not return is an error, and
    not a row. `clock_s` is monotonic; for tests.
    """

    def __init__(
        self,
        storage: Storage,
        keys: KekDeriver,
        pace: Pace,
        now: Now,
        *,
        witness: Witness | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        max_rows: int = OF_WORKER.rows,
        is_whole: bool = False,
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._pace = pace
        self._now = now
        self._witness = witness
        self._clock_s = clock_s
        self._max_rows = max_rows
        self._is_whole = is_whole
        self._entries: dict[str, _Entry] = {}
        self._renewal: _Renewal | None = None
        self._renewed: _Renewal | None = None  # the last one that came to its end
        self._renewed_s = 0.0
        self._version = 0
        self._joined: tuple[tuple[int, int, bool], Snapshot] | None = None

    async def snapshot(self, wait_s: float | None = WAIT_S) -> Snapshot:
        """Return all rows, renewed if they are older than two seconds.

        It waits for a renewal for `wait_s`; None waits for its end.

        Raises:
            StorageUnavailableError, StorageResponseError: the storage cannot be listed.
        """
        renewal = self._renewal
        if renewal is None and self._is_stale():
            renewal = self._renewal = _Renewal(self._now(), self._received)
            renewal.task = asyncio.create_task(self._renew(renewal))
        if renewal is not None and renewal.task is not None:
            # Another query may wait for the renewal too, so it outlives this one.
            await asyncio.wait({renewal.task}, timeout=wait_s)
            if renewal.task.done():
                renewal.task.result()
        return self._snapshot()

    async def close(self) -> None:
        """End a running renewal."""
        renewal = self._renewal
        if renewal is not None and renewal.task is not None:
            renewal.task.cancel()
            await asyncio.wait({renewal.task})

    async def of_project(self, project: str) -> Snapshot:
        """Return the rows of one project, read now: its keyring, and its record of sweeps.

        Raises:
            StorageUnavailableError, StorageResponseError: they cannot be read.
        """
        at, received = self._now(), self._received
        keys = [] if project == ALL_PROJECTS else [keyring_s3_key(project)]
        keys.append(record_path(project))
        listed: dict[str, ObjectSummary] = {}
        for s3_key in keys:
            async for row in self._storage.list(s3_key, limit=1):
                if row.key == s3_key:
                    listed[row.key] = row
        await self._read(list(listed.values()))
        for s3_key in keys:
            if s3_key not in listed and self._entries.pop(s3_key, None) is not None:
                self._version += 1
        entries = {key: self._entries[key] for key in listed if key in self._entries}
        return self._join(entries, at, received, {project}, is_complete=True)

    # Renewal.

    @property
    def _received(self) -> int:
        return 0 if self._witness is None else self._witness.table.received

    def _is_stale(self) -> bool:
        return self._renewed is None or self._clock_s() - self._renewed_s >= RENEWED_EVERY_S

    async def _renew(self, renewal: _Renewal) -> None:
        try:
            async for row in self._storage.list(KEYRINGS_PREFIX):
                if not self._take(renewal, row, len(renewal.listed)):
                    break
            keyrings = list(renewal.listed.values())
            await self._list_sweeps(renewal)
            await self._read(keyrings)
            await self._read(list(renewal.listed.values())[len(keyrings) :])
            gone = [s3_key for s3_key in self._entries if s3_key not in renewal.listed]
            for s3_key in gone:
                del self._entries[s3_key]
            self._version += bool(gone)
            self._renewed, self._renewed_s = renewal, self._clock_s()
        finally:
            self._renewal = None

    async def _list_sweeps(self, renewal: _Renewal) -> None:
        begin, after = len(renewal.listed), ""
        while True:
            page = await self._storage.list_entries(SWEEPS_PREFIX, delimiter="/", after=after)
            for row in page.objects:
                if not self._take(renewal, row, len(renewal.listed) - begin):
                    return
            if page.next_after is None:
                return
            after = page.next_after

    def _take(self, renewal: _Renewal, row: ObjectSummary, count: int) -> bool:
        """Note a listed record; return False once there are too many."""
        if count >= self._max_rows:
            renewal.is_cut = True
            return False
        if record_of(row) is not None:
            renewal.listed[row.key] = row
        return True

    async def _read(self, listed: Sequence[ObjectSummary]) -> None:
        """Open the records that changed, a few at a time."""
        records = [
            record
            for row in listed
            if not self._is_kept(row) and (record := record_of(row)) is not None
        ]
        for batch in read_batches(records, _READ_AT_ONCE):
            await self._pace.next_batch()
            entries = await asyncio.gather(*map(self._entry, batch))
            if all(entry is not None and entry.is_unread for entry in entries):
                # Is it the storage, or these records, such as some that another key encrypts?
                async for _ in self._storage.list(KEYRINGS_PREFIX, limit=1):
                    pass
            for record, entry in zip(batch, entries, strict=True):
                self._keep(record.listed.key, entry)

    def _is_kept(self, row: ObjectSummary) -> bool:
        entry = self._entries.get(row.key)
        if entry is None or entry.etag != row.etag:
            return False
        return not entry.is_unreadable or self._clock_s() - entry.read_at_s < _UNREADABLE_AGAIN_S

    def _keep(self, s3_key: str, entry: _Entry | None) -> None:
        self._version += 1
        if entry is None:
            self._entries.pop(s3_key, None)
        else:
            self._entries[s3_key] = entry

    async def _entry(self, record: Record) -> _Entry | None:
        """Return the contents of a record by a read now; None if it is gone.

        A record of sweeps that does not open has no row: nothing says which sweeps it had.
        """
        try:
            opened = await open_record(self._storage, self._keys, record)
        except (StorageUnavailableError, StorageResponseError) as exc:
            if self._is_whole:
                raise
            # One record that the storage does not return must not hide all others.
            unread = StorageUnavailableError(f"it cannot be read: {type(exc).__name__}")
            return replace(self._unreadable(record, unread), is_unread=True)
        if opened is None:
            return None
        if isinstance(opened, CodedError):
            return self._unreadable(record, opened)
        return _opened_entry(opened)

    def _unreadable(self, record: Record, error: CodedError) -> _Entry:
        is_keyring = record.sweep_path is None
        return _Entry(
            record.listed.etag,
            unreadable_project(record.project, error) if is_keyring else None,
            is_unreadable=True,
            read_at_s=self._clock_s(),
        )

    # Rows.

    def _snapshot(self) -> Snapshot:
        renewed = self._renewed or self._renewal
        if renewed is None:  # it failed, and so did the question that waited for it
            return Snapshot(self._now(), is_complete=False)
        is_current = self._witness is not None and self._witness.is_current
        key = (self._version, self._received, is_current)
        if self._joined is not None and self._joined[0] == key:
            known = self._joined[1]
            if known.at == renewed.at:
                return known
        snapshot = self._join(
            self._entries,
            renewed.at,
            renewed.received,
            None,
            is_complete=self._renewed is not None and not self._renewed.is_cut,
        )
        self._joined = (key, snapshot)
        return snapshot

    def _join(
        self,
        entries: dict[str, _Entry],
        at: datetime,
        received: int,
        projects: set[str] | None,
        *,
        is_complete: bool,
    ) -> Snapshot:
        """Return the rows of these entries, of the requested `projects` only."""
        rows: dict[str, ProjectStatus] = {}
        sweeps: list[SweepStatus] = []
        for entry in entries.values():
            sweeps += entry.sweeps
            if entry.keyring is not None:
                project = entry.keyring.project
                of_sweeps = entries.get(record_path(project))
                rows[project] = self._compared(_joined(entry.keyring, of_sweeps), entry, received)
        for removed in self._removed(rows, projects, received):
            rows[removed.project] = removed
        is_cut = len(sweeps) > self._max_rows
        return Snapshot(
            at,
            tuple(rows[name] for name in sorted(rows)),
            tuple(order_sweeps(sweeps)[: self._max_rows]),
            is_complete=is_complete and not is_cut,
        )

    def _compared(self, row: ProjectStatus, entry: _Entry, received: int) -> ProjectStatus:
        """Return the row with its mark's state; a mark that arrived meanwhile leaves it open."""
        if self._witness is None or entry.mark is None or not self._knows(row.project):
            return row
        state = self._witness.table.find_state(row.project, entry.mark, received)
        return row if state is None else row.model_copy(update={"mark": state.value})

    def _removed(
        self, rows: Iterable[str], projects: set[str] | None, received: int
    ) -> list[ProjectStatus]:
        """Return a row for each project that has a mark and no keyring."""
        # Before the first renewal has ended, a keyring may only not have been read yet.
        if self._witness is None or (projects is None and self._renewed is None):
            return []
        table, known = self._witness.table, set(rows)
        return [
            ProjectStatus(project=project, mark="removed")
            for project in table.projects()
            if project not in known
            and (projects is None or project in projects)
            and table.find_state(project, None, received) is MarkState.REMOVED
        ]

    def _knows(self, project: str) -> bool:
        """Check if the newest mark of a project is known, or that of a replaced stream."""
        if self._witness is None:
            return False
        if self._witness.table.find_lost(project) is not None:
            return True
        try:
            self._witness.check_current(project)
        except MarksUnavailableError:
            return False
        return True


def _opened_entry(opened: Opened) -> _Entry:
    content = opened.content
    if isinstance(content, Keyring):
        mark = Mark.of(content, opened.digest)
        return _Entry(opened.etag, project_status(content), mark)
    return _sweeps_entry(opened.etag, content)


def _sweeps_entry(etag: str, content: SweepRecord) -> _Entry:
    record = content.record
    if record is None:
        raise TypeError("a record in the folder of a round")
    rows = tuple(Sweep(record, origin).row() for origin in record.origins)
    key_wait = record.key_wait if isinstance(record, ProjectRecord) else None
    return _Entry(etag, sweeps=rows, proven_at=_proven_at(record), key_wait=key_wait)


def _proven_at(record: ProjectRecord | AllRecord) -> str | None:
    """Return when the newest evidence was complete: parts of sweeps of all leave only that."""
    if isinstance(record, AllRecord) or record.evidence is None:
        return None
    try:
        predicate = parse_evidence(record.evidence.encode()).predicate
    except EvidenceError:
        return None
    return predicate.at if isinstance(predicate, Predicate) else None


def _objects(counts: Counts | None) -> int | None:
    """Return the number of objects without tombstones, which are objects only to the bucket."""
    return None if counts is None else counts.objects - counts.deleted


def _joined(row: ProjectStatus, of_sweeps: _Entry | None) -> ProjectStatus:
    """Return a keyring with the state of its record of sweeps."""
    fields: dict[str, object] = {"key_since": row.rotated_at or row.enrolled_at}
    if of_sweeps is not None:
        # An erasure proves nothing about objects, and one that is refused leaves none behind.
        sweeps = [each for each in of_sweeps.sweeps if each.kind != "erasure"]
        ended = [each for each in sweeps if each.ended_at is not None]
        ended.sort(key=lambda each: each.ended_at or "", reverse=True)
        last = next(iter(ended), None)
        proof = next((each for each in ended if each.clean), None)
        counted = next(
            (each for each in ended if each.status == "done" and each.counts is not None), None
        )
        times = [of_sweeps.proven_at, None if proof is None else proof.ended_at]
        fields |= {
            "last_proof_at": max(filter(None, times), default=None),
            "last_proof_sweep": None if proof is None else proof.sweep_id,
            "last_end_sweep": None if last is None else last.sweep_id,
            "last_end_clean": None if last is None else last.clean,
            "objects": None if counted is None else _objects(counted.counts),
            "objects_at": None if counted is None else counted.ended_at,
            "running_sweeps": tuple(each.sweep_id for each in sweeps if each.status == "running")
            or None,
        }
        wait = of_sweeps.key_wait
        if row.customer_key is not None and wait is not None and fields["running_sweeps"]:
            waits = {"code": wait.code, "since": format_time(wait.since)}
            fields["customer_key"] = row.customer_key.model_copy(update=waits)
    return row.model_copy(update=fields)
