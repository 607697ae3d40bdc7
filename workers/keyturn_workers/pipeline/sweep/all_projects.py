"""Sweeps of all projects: one part for each (SPEC 6.6, 8.1).

A walk serves the oldest request and others with its options. Each step continues through the
listing of keyrings: it has each keyring re-sealed under the master key that the request names, and
adds an origin of kind `part` to the project's record. The walk ends when a pass through a fresh
listing finds no keyring whose part has not ended.

A keyring that is listed but whose read gets a 404 does not count as gone. Further passes look for
it, and if a listing still shows it after a few, the project is recorded as failed (SPEC 8.6).

A part whose record an attacker removed from the bucket would never end: it is added again.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog

from keyturn.counts import Counts
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    GenerationMismatchError,
    KeyringRolledBackError,
    KmsUnavailableError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key, parse_time
from keyturn.progress import Progress
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.sweep_proof import MAX_FAILURES
from keyturn_workers.core.sweep_record import ALL, AllRecord, End, Origin, PartEnd, Walk
from keyturn_workers.core.sweep_transitions import begin_walk, end_walk
from keyturn_workers.keys.keyring.marks import (
    KeyringContradictedError,
    KeyringHiddenError,
    KeyringRemovedError,
)
from keyturn_workers.keys.sweep_records import StoredRecord
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.pipeline.sweep.steps import StepRunner, SweepContext

# Parts under way at once: each waits for two leases, however small the project.
MAX_OPEN_PARTS: Final = 512
# Keyrings that one step inspects.
_PROJECTS_PER_STEP: Final = 2000
_STEP_INTERVAL_S: Final = 1.0
# Steps between checks of the records of the parts under way: about a minute.
_STEPS_PER_CHECK: Final = 60
# The pause before a pass in which only projects are left whose master key no worker here holds.
_DEFERRED_PAUSE_S: Final = 30.0
# The pause before a pass in which only keyrings are left that were listed but not found.
_NOT_FOUND_PAUSE_S: Final = 5.0
# How many of these keyrings are counted at once; the others are counted later.
_MAX_NOT_FOUND: Final = 1000

_log = structlog.get_logger()


class AllProjectsSweep(StepRunner[AllRecord]):
    """Makes the steps of sweeps of all projects; `starter` adds the parts."""

    def __init__(self, context: SweepContext, starter: SweepStarter) -> None:
        super().__init__(context)
        self._starter = starter

    async def _read(self, project: str) -> StoredRecord[AllRecord]:
        del project
        return await self._store.read_all()

    async def _send_again(self, record: AllRecord) -> None:
        await self._dispatcher.send_step(record)

    async def _step(self, stored: StoredRecord[AllRecord]) -> bool:
        record = stored.record
        walk = record.round
        if walk is None:
            await self._keyrings.sign_marks_anew()
            # Written before any part names it: a repeated step must not begin another walk.
            return await self._continue(stored, begin_walk(record, str(uuid4())))
        requests = tuple(each for each in record.origins if each.name in walk.origins)
        master_key = walk.options.master_key or stored.master_key
        walk = await self._without_ended(walk)
        if record.step % _STEPS_PER_CHECK == 0:
            walk = await self._without_lost(walk)
        one_pass = _Pass(requests, master_key, not_found=dict(walk.not_found))
        async for project in self._projects_to_sweep(walk):
            too_many = len(walk.open_parts) >= MAX_OPEN_PARTS
            if too_many or one_pass.inspected == _PROJECTS_PER_STEP:
                one_pass.is_over = False
                break
            one_pass.inspected += 1
            walk = replace(walk, through=project)
            if await self._add_part(walk, project, one_pass):
                walk = replace(walk, open_parts=(*walk.open_parts, project))
        left = one_pass.added + one_pass.deferred + one_pass.missed
        walk = replace(walk, added=walk.added + left, not_found=one_pass.not_found)
        wait_s = _STEP_INTERVAL_S
        if one_pass.is_over and not walk.open_parts:
            if not walk.added:
                return await self._end(stored, replace(record, round=walk), walk, one_pass)
            # Projects may have been enrolled behind the walk: begin again.
            walk, wait_s = replace(walk, through="", added=0), one_pass.pause_s
        return await self._continue(stored, replace(record, round=walk), wait_s)

    async def _continue(
        self, stored: StoredRecord[AllRecord], record: AllRecord, wait_s: float = 0
    ) -> bool:
        """Change the record, and send the next step; False as `_step`."""
        walk = record.round
        if walk is None:
            return True
        record = replace(record, step=record.step + 1, stepped_at=datetime.now(UTC))
        master_key = walk.options.master_key or stored.master_key
        if not await self._store.change(record, stored.etag, master_key):
            return False
        await self._dispatcher.send_step(record, wait_s)
        return True

    # Parts under way.

    async def _without_ended(self, walk: Walk) -> Walk:
        """The walk without the parts that ended since the last step."""
        if not walk.open_parts:
            return walk
        open_parts, sums, projects = set(walk.open_parts), walk.sums, walk.projects
        first = min(walk.open_parts, key=_order)
        async for project in self._store.ended_parts(walk.id, since=first):
            if project not in open_parts:
                continue
            end = await self._store.read_part_end(walk.id, project)
            if end is not None:
                open_parts.discard(project)
                # These sums show progress. The sums of the end are computed anew.
                sums, projects = sums + end.counts, projects + 1
        left = tuple(project for project in walk.open_parts if project in open_parts)
        return replace(walk, open_parts=left, sums=sums, projects=projects)

    async def _without_lost(self, walk: Walk) -> Walk:
        """The walk without the parts that no record has any more: the next pass adds them again."""
        lost = set[str]()
        for project in walk.open_parts:
            try:
                record = (await self._store.read(project)).record
            except (UnknownMasterKeyError, KmsUnavailableError):
                continue
            except (MissingError, CorruptObjectError):
                lost.add(project)
                continue
            if not any(each.walk_id == walk.id for each in record.origins):
                # The part's end is being published, or it was lost. Adding it again does no harm.
                lost.add(project)
        for project in lost:
            _log.warning("part of a sweep of all projects has no record", project=project)
        left = tuple(project for project in walk.open_parts if project not in lost)
        return replace(walk, open_parts=left, added=walk.added + len(lost))

    # The pass.

    async def _projects_to_sweep(self, walk: Walk) -> AsyncIterator[str]:
        """The projects of the rest of the pass whose part neither ended nor is under way."""
        open_parts = set(walk.open_parts)
        ended_parts = self._store.ended_parts(walk.id, since=walk.through)
        ended = await anext(ended_parts, None)
        start = f"{KEYRINGS_PREFIX}{walk.through}.json" if walk.through else ""
        async for row in self._storage.list(KEYRINGS_PREFIX, after=start):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            while ended is not None and _order(ended) < _order(project):
                ended = await anext(ended_parts, None)
            if not is_project(project) or project in open_parts:
                continue
            # A record's name proves nothing, since an attacker can create it: it must open.
            if project == ended and await self._store.read_part_end(walk.id, project):
                continue
            yield project

    async def _add_part(self, walk: Walk, project: str, one_pass: "_Pass") -> bool:
        """Add a project's part; False if there is nothing to do, or it failed at once."""
        parts = (
            replace(each, kind="part", walk_id=walk.id, added_at=datetime.now(UTC))
            for each in one_pass.requests
        )
        try:
            await self._starter.start(project, *parts)
        except (UnknownProjectError, KeyringHiddenError) as exc:
            await self._keyring_not_found(walk, project, exc, one_pass)
            return False
        except (UnknownMasterKeyError, KmsUnavailableError) as exc:
            # The others continue. A later pass tries again, perhaps in a process with the key.
            _log.warning("project deferred", project=project, code=exc.code, detail=exc.detail)
            one_pass.deferred += 1
            return False
        except (CorruptObjectError, GenerationMismatchError, KeyringContradictedError) as exc:
            # A keyring that was forged or rolled back, by which nothing may be wrapped, or that a
            # later sweep has put under another master key. The others continue.
            await self._record_failed_part(walk, project, exc, one_pass)
            return False
        one_pass.added += 1
        return True

    async def _keyring_not_found(
        self,
        walk: Walk,
        project: str,
        error: UnknownProjectError | KeyringHiddenError,
        one_pass: "_Pass",
    ) -> None:
        """Handle a keyring that was listed, but that the storage does not find.

        If it was removed, the listing of the next pass shows that. If it counted as gone now, a
        whole project could be left under the master key that is to be dropped.
        """
        tries = one_pass.not_found.get(project, 0) + 1
        if tries >= MAX_FAILURES:
            one_pass.not_found.pop(project, None)
            await self._record_failed_part(walk, project, error, one_pass)
            return
        one_pass.missed += 1
        if project in one_pass.not_found or len(one_pass.not_found) < _MAX_NOT_FOUND:
            one_pass.not_found[project] = tries
        _log.warning("keyring listed and not found", project=project, tries=tries)

    async def _record_failed_part(
        self, walk: Walk, project: str, error: CodedError, one_pass: "_Pass"
    ) -> None:
        fields = {"project": project, "code": error.code}
        _log.error("part of a sweep of all projects failed", **fields, detail=error.detail)
        failed = Counts(failed=1)
        for request in one_pass.requests:
            ended = Progress(phase="ended")
            await self._dispatcher.publish_progress(project, request, failed, progress=ended)
        end = PartEnd(failed, clean=False, code=error.code, detail=error.detail)
        await self._store.add_part_end(walk.id, project, end, one_pass.master_key)

    # The end.

    async def _end(
        self, stored: StoredRecord[AllRecord], record: AllRecord, walk: Walk, one_pass: "_Pass"
    ) -> bool:
        """End the walk once every part has ended: publish the sums, by the records of the parts."""
        sums, ended_parts, clean, refused = await self._sum_parts(walk)
        for project in sorted(self._keyrings.marked_projects() - ended_parts):
            error = await self._find_missed(one_pass.requests, project)
            if error is not None:
                await self._record_failed_part(walk, project, error, one_pass)
                sums, clean = sums + Counts(failed=1), False
                ended_parts.add(project)
        if walk.options.master_key is not None:
            clean &= await self._all_under(walk.options.master_key)
            # No record may be left under the master key that is to be dropped.
            await self._store.reseal_records(walk.options.master_key)
        now, refused = datetime.now(UTC), refused and self._refuses_late_writes
        end = End(now, clean, sums, walk.id, refused, parts=len(ended_parts))
        ended = end_walk(record, walk, end)
        ended = replace(ended, step=record.step + 1, stepped_at=now)
        if not await self._store.change(ended, stored.etag, one_pass.master_key):
            return False
        _log.info("sweep of all projects ended", walk=walk.id, clean=clean)
        await self._publish_ends(ALL)
        await self._dispatcher.send_step(ended)
        return True

    async def _sum_parts(self, walk: Walk) -> tuple[Counts, set[str], bool, bool]:
        sums, projects, clean, refused = Counts(), set[str](), True, True
        async for project in self._store.ended_parts(walk.id):
            end = await self._store.read_part_end(walk.id, project)
            if end is not None:
                projects.add(project)
                sums, clean = sums + end.counts, clean and end.clean
                # A failed part proves nothing, so its value does not matter.
                refused &= bool(end.late_writes_refused or not end.clean)
        return sums, projects, clean, refused

    async def _find_missed(self, requests: tuple[Origin, ...], project: str) -> CodedError | None:
        """The reason why a project with a mark has no part; None if it was enrolled meanwhile.

        A bucket writer may have removed its keyring, and may put it back later.
        """
        try:
            stored = await self._keyrings.read_record(project)
        except KeyringRemovedError as exc:
            return None if exc.mark.erased else exc
        except (
            CorruptObjectError,
            KeyringContradictedError,
            UnknownMasterKeyError,
            UnknownProjectError,
        ) as exc:
            return exc
        requested_at = min(parse_time(each.requested_at) for each in requests)
        if parse_time(stored.keyring.enrollment.at) >= requested_at:
            return None
        return KeyringRolledBackError("no listing of this sweep has shown the keyring")

    async def _all_under(self, master_key: str) -> bool:
        """Check that every keyring of a fresh listing is under this master key."""
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if not is_project(project):
                continue
            try:
                stored = await self._keyrings.read_record(project)
            except UnknownProjectError:
                if await self._is_listed(project):
                    return False
                continue  # removed since it was listed
            except (
                CorruptObjectError,
                UnknownMasterKeyError,
                KeyringHiddenError,
                KeyringContradictedError,
            ):
                return False
            if stored.keyring.master_key != master_key:
                return False
        return True

    async def _is_listed(self, project: str) -> bool:
        """Check if a listing that begins now shows the project's keyring."""
        s3_key = keyring_s3_key(project)
        return any([row.key == s3_key async for row in self._storage.list(s3_key, limit=1)])


@dataclass(slots=True)
class _Pass:
    """The progress of one step of a walk.

    Attributes:
        requests: The origins that the walk serves.
        master_key: The master key that seals its records.
        is_over: True once the listing ended.
        deferred: Projects whose master key this process lacks.
        missed: Projects whose keyring was listed but not found.
        not_found: By project, in how many passes its keyring was listed but not found.
    """

    requests: tuple[Origin, ...]
    master_key: str
    is_over: bool = True
    inspected: int = 0
    added: int = 0
    deferred: int = 0
    missed: int = 0
    not_found: dict[str, int] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        """Seconds until the next pass begins."""
        if self.added:
            return _STEP_INTERVAL_S
        if self.deferred:
            return _DEFERRED_PAUSE_S
        return _NOT_FOUND_PAUSE_S if self.missed else _STEP_INTERVAL_S


def _order(project: str) -> bytes:
    """The order in which a listing returns the records of projects."""
    return f"{project}.json".encode()
