"""The periodic scan of all keyrings and records (SPEC 5.5, 8.5).

A broker that was emptied loses the steps of all projects. Several times an hour each sweep worker
looks for records that have something to do and have not changed for a while, and resumes them.

It also compares all keyrings with their marks, since in an unused project a rollback would go
unnoticed. If a project's record lacks a rotation, the scan adds it again: an attacker can remove a
record, and a worker can die between rotating the keyring and adding the rotation. And it removes
unused records of rounds.

The cost: one listing of keyrings and one of records, a read of each that is new to this process or
changed since its last scan (at most `_READS_PER_SCAN` of each), and a listing of each project that
has folders of rounds.
"""

import asyncio
import hashlib
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key, parse_time
from keyturn_workers.core.errors import MissingError, StorageResponseError
from keyturn_workers.core.keyring import Keyring, rotations_to_prove
from keyturn_workers.core.sweep_record import Origin, ProjectRecord
from keyturn_workers.core.sweep_transitions import needs_step
from keyturn_workers.keys.keyring.marks import Mark, MarkWatch
from keyturn_workers.keys.keyring.store import KEYRING_MAX_BYTES, parse_keyring
from keyturn_workers.pipeline.sweep.handler import SweepHandler
from keyturn_workers.pipeline.sweep.page import restore_noted_tags
from keyturn_workers.pipeline.sweep.starter import SweepStarter, new_origin
from keyturn_workers.pipeline.sweep.steps import SweepContext
from keyturn_workers.process.background import repeat

# A step waits at most 600 s for its next attempt, and two leases for a proof.
STALLED_AFTER: Final = timedelta(minutes=15)
_READS_PER_SCAN: Final = 2000
_CONCURRENCY: Final = 16
_NOT_READABLE: Final = (CodedError, StorageResponseError)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _SeenKeyring:
    """A keyring as it was read.

    Attributes:
        etag: The listing's.
        mark: The mark that it must have.
        rotations: The rotations that its project's record must have. `added_at` is when each
            changed the keyring.
        is_cleared: True if a clean sweep has followed all of them.
    """

    etag: str
    mark: Mark
    rotations: tuple[Origin, ...]
    is_cleared: bool


@dataclass(slots=True)
class _Scan:
    """One scan under way."""

    now: datetime
    records: dict[str, str] = field(default_factory=dict)
    missing: set[tuple[str, str]] = field(default_factory=set)


class PeriodicScan:
    """The periodic scans of one process.

    `handler` resumes records, `starter` adds rotations to records that lack them, and `watch`
    compares the keyrings with their marks.
    """

    def __init__(
        self,
        context: SweepContext,
        handler: SweepHandler,
        starter: SweepStarter,
        watch: MarkWatch | None = None,
    ) -> None:
        self._storage = context.storage
        self._keys = context.keys
        self._store = context.store
        self._keep_for = context.keep_for
        self._handler = handler
        self._starter = starter
        self._watch = watch
        self._keyrings: dict[str, _SeenKeyring] = {}
        # The ETags of records that had nothing to do.
        self._resting: dict[str, str] = {}
        # Keyring and record, by their ETags, of projects whose record had all rotations.
        self._complete: dict[str, tuple[str, str]] = {}
        # Project and id of the rotations that the last scan missed.
        self._missing: set[tuple[str, str]] = set()

    async def scan(self, now: datetime) -> int:
        """Scan once; returns how many records were resumed, and rotations added.

        `now` is by this machine's clock: ages are long, so its drift does not matter.
        """
        scan = _Scan(now)
        await self._look_at_keyrings()
        resumed = await self._scan_records(scan)
        return resumed + await self._add_missing(scan)

    # Keyrings.

    async def _look_at_keyrings(self) -> None:
        """Read the keyrings that changed since the last scan, and compare all with their marks."""
        if self._watch is not None:
            self._watch.begin()
        listed = set[str]()
        changed: list[tuple[str, str]] = []
        before, self._keyrings = self._keyrings, {}
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if row.key != keyring_s3_key(project) or not is_project(project):
                continue
            listed.add(project)
            seen = before.get(project)
            if seen is not None and seen.etag == row.etag and self._is_settled(project, seen):
                self._keyrings[project] = seen
            elif len(changed) < _READS_PER_SCAN:
                changed.append((project, row.etag))
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def read(project: str, etag: str) -> None:
            async with slots:
                await self._read_keyring(project, etag)

        await asyncio.gather(*(read(*each) for each in changed))
        if self._watch is not None:
            self._watch.end(listed)

    def _is_settled(self, project: str, seen: _SeenKeyring) -> bool:
        return self._watch is None or self._watch.is_settled(project, seen.mark)

    async def _read_keyring(self, project: str, etag: str) -> None:
        try:
            _, body = await self._storage.read(keyring_s3_key(project), max_bytes=KEYRING_MAX_BYTES)
            keyring = await parse_keyring(body, project, self._keys)
        except _NOT_READABLE:
            return  # another worker may hold the master key, or an operator must act
        # The ETag of the listing: if the keyring changed since, the next scan reads it again.
        mark = Mark.of(keyring, hashlib.sha256(body).digest())
        self._keyrings[project] = _SeenKeyring(
            etag, mark, tuple(_rotations_of(keyring)), not keyring.has_old_keks
        )
        if self._watch is not None:
            await self._watch.compare(keyring, mark)

    # Records.

    async def _scan_records(self, scan: _Scan) -> int:
        """Resume stalled records, and find those that lack a rotation."""
        before, self._resting = self._resting, {}
        listed = [each async for each in self._store.projects()]
        resumed, reads_left = 0, _READS_PER_SCAN
        # Newest first: a stalled record has changed later than most resting ones.
        for project, changed_at, etag in sorted(listed, key=lambda row: row[1], reverse=True):
            scan.records[project] = etag
            is_stalled = scan.now - changed_at > STALLED_AFTER
            if before.get(project) == etag:
                self._resting[project] = etag
            elif is_stalled and reads_left:
                reads_left -= 1
                resumed += await self._resume_or_clean_up(scan, project)
        return resumed

    async def _resume_or_clean_up(self, scan: _Scan, project: str) -> bool:
        try:
            record = await self._store.find(project)
            if record is None:
                return False
            if needs_step(record):
                return await self._handler.resume(project)
            if await self._remove_folders(scan, project):
                self._resting[project] = scan.records[project]
        except _NOT_READABLE as exc:
            # The record is forged, or another worker must resume it. The others must not wait.
            _log.warning("record not resumed", project=project, problem=f"{exc!r}")
        return False

    async def _remove_folders(self, scan: _Scan, project: str) -> bool:
        """Remove the records of rounds that no end names any more, once their tags are back.

        Returns True if no folder is left.
        """
        folders = await self._store.folders(project)
        if not folders:
            return True
        # Read after the listing: a round that it does not name has no folder there.
        record = await self._store.find(project)
        if record is None:
            return True
        ends = (each.end for each in record.origins if each.end is not None)
        named = {end.round_id for end in ends if scan.now - end.at <= self._keep_for}
        if record.round is not None:
            named.add(record.round.id)
        old = [
            round_id
            for round_id, touched_at in folders.items()
            if round_id not in named and scan.now - touched_at > self._keep_for
        ]
        if old and isinstance(record, ProjectRecord):
            if record.round is not None:
                async for _ in self._store.tag_notes(project):
                    return False  # the round's end restores the tags, and has the objects proven
            await restore_noted_tags(self._storage, self._store, project)
        for round_id in old:
            await self._store.delete_folder(project, round_id)
        return len(old) == len(folders)

    # Rotations that are in a keyring and in no record.

    async def _add_missing(self, scan: _Scan) -> int:
        """Add the rotations that two scans in a row found in no record.

        A rotation that a clean sweep has followed counts for half the time for which its end is
        kept. Later, the record may have dropped it for its age.
        """
        for project, seen in self._keyrings.items():
            rotations = [
                each
                for each in seen.rotations
                if scan.now - each.added_at > STALLED_AFTER
                and (not seen.is_cleared or scan.now - each.added_at <= self._keep_for / 2)
            ]
            if rotations:
                await self._find_missing(scan, project, rotations)
        again = scan.missing & self._missing
        self._missing = scan.missing - again
        added = 0
        for project, rotation_id in sorted(again):
            rotations = list(self._keyrings[project].rotations)
            origin = next(each for each in rotations if each.id == rotation_id)
            added += await self._add(scan, project, origin)
        return added

    async def _find_missing(self, scan: _Scan, project: str, rotations: list[Origin]) -> None:
        complete = (self._keyrings[project].etag, scan.records.get(project, ""))
        if self._complete.get(project) == complete:
            return
        record: ProjectRecord | None = None
        try:
            with suppress(MissingError):
                record = (await self._store.read(project)).record
        except CorruptObjectError:
            pass  # adding a rotation replaces it
        except _NOT_READABLE:
            return
        known = () if record is None else record.origins
        missing = {each.name for each in rotations} - {each.name for each in known}
        scan.missing |= {(project, name[1]) for name in missing}
        # A rotation that was too young to be looked for may be missing all the same.
        if not missing and len(rotations) == len(self._keyrings[project].rotations):
            self._complete[project] = complete

    async def _add(self, scan: _Scan, project: str, rotation: Origin) -> bool:
        fields = {"project": project, "rotation_id": rotation.id}
        try:
            await self._starter.start(project, replace(rotation, added_at=scan.now))
        except CodedError as exc:
            # The others must not wait for it; the next scans retry.
            _log.warning("rotation not added", **fields, code=exc.code, detail=exc.detail)
            return False
        _log.warning("rotation without a record added again", **fields)
        return True


def _rotations_of(keyring: Keyring) -> Iterable[Origin]:
    """The rotations that the project's record must have.

    If a clean sweep has cleared the keys before the last one, the last rotation's end may still not
    have been published, so it counts too.
    """
    rotations = rotations_to_prove(keyring)
    if not rotations and keyring.current is not keyring.enrollment:
        rotations = (keyring.current,)
    for each in rotations:
        request = keyring.origin_of(each)
        if request is not None:
            origin = new_origin("rotation", each.rotation_id, each.requested_at, request)
            yield replace(origin, added_at=parse_time(each.at))


async def scan_periodically(periodic: PeriodicScan, *, interval_s: float) -> None:
    """Scan forever, at random intervals so that workers are out of step."""

    async def scan() -> None:
        try:
            resumed = await periodic.scan(datetime.now(UTC))
        except Exception:  # noqa: BLE001  # the broker may be down: another scan follows
            _log.exception("periodic scan failed")
            return
        if resumed:
            _log.warning("sweeps resumed", records=resumed)

    def pause_s() -> float:
        return interval_s * random.uniform(0.5, 1.5)  # noqa: S311  # no secret

    await repeat(scan, pause_s, pause_first=True)
