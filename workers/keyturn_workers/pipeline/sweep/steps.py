"""Apply a step message to a record, of one project or of all (SPEC 8.5).

Messages are hints: they arrive twice, late, out of order or not at all. Only the record holds the
progress. `reconciler` and `all_projects` define the steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Generic

import structlog

from keyturn.errors import CodedError, NotFoundError, StorageUnavailableError
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.sweep_progress import progress_of
from keyturn_workers.core.sweep_record import AllRecord, Origin, OriginName, PartEnd, ProjectRecord
from keyturn_workers.core.sweep_transitions import (
    end_failed,
    needs_step,
    open_origins,
    reopen_failed,
    unpublished_origins,
    with_ends_published,
    without_old_ends,
)
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import RecordT, StoredRecord, SweepStore
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.messages import SweepDispatcher, SweepStep

_MAX_ATTEMPTS: Final = 8
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SweepContext:
    """The context that the modules of a sweep share.

    `keep_for` is how long the end of a sweep is kept after it was published.
    """

    storage: Storage
    keyrings: KeyringReader
    keys: KekDeriver
    store: SweepStore
    dispatcher: SweepDispatcher
    evidence: EvidenceLog
    keep_for: timedelta


class StepRunner(ABC, Generic[RecordT]):
    """Makes the steps of records of one kind."""

    def __init__(self, context: SweepContext) -> None:
        self._storage = context.storage
        self._keyrings = context.keyrings
        self._keys = context.keys
        self._store = context.store
        self._dispatcher = context.dispatcher
        self._keep_for: timedelta = context.keep_for

    @abstractmethod
    async def _read(self, project: str) -> StoredRecord[RecordT]:
        """The record; raises `MissingError` if it does not exist."""

    @abstractmethod
    async def _step(self, stored: StoredRecord[RecordT]) -> bool:
        """Make the step of a record with open origins; False if it changed meanwhile."""

    @abstractmethod
    async def _send_again(self, record: RecordT) -> None:
        """Send all open messages: the worker of a step may have died before it sent them."""

    def _unsent(self, record: RecordT) -> RecordT:
        """The record with everything to send again; for the record of all, only its step."""
        return record

    async def _discard_results(self, project: str) -> None:
        """Delete the results of rounds that are over. A walk through all projects has none."""

    @property
    def _refuses_late_writes(self) -> bool:
        return self._storage.capabilities.late_writes_refused

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        """Make the step that a message asks for, if the record waits for it.

        With `again`, this very message may have been served before.

        Raises:
            NotFoundError: there is no such record.
            CorruptObjectError, UnknownProjectError: the record or its keyring is forged, or the
                keyring is gone.
            KeyringRolledBackError, UnknownMasterKeyError, StorageUnavailableError: try later.
        """
        # An origin that is added meanwhile, or a new seal, changes the record but not its step.
        for _ in range(_MAX_ATTEMPTS):
            try:
                stored = await self._read(hint.project)
            except MissingError as exc:
                # A retry cannot help. A request with the same id starts the sweep again.
                raise NotFoundError("no record of sweeps exists for this project") from exc
            record = stored.record
            if hint.step != record.step:
                # The worker of that step may have died, or lost the broker, before it had sent
                # everything, whatever steps others have made since.
                if again and hint.step < record.step:
                    await self._publish_ends(hint.project)
                    await self._send_again(record)
                return
            if unpublished_origins(record):
                await self._publish_ends(hint.project)
                continue
            if not open_origins(record):
                # If its dead letter was replayed, the record continues.
                record = reopen_failed(record)
                if not needs_step(record):
                    return
            if await self._step(replace(stored, record=record)):
                return
        raise StorageUnavailableError("the project's record kept changing")

    # Ends.

    async def _publish_ends(self, project: str) -> None:
        """Publish the ends of origins, at least once to each of their requests."""
        done: dict[OriginName, Origin] = {}
        for _ in range(_MAX_ATTEMPTS):
            stored = await self._read(project)
            record = stored.record
            ended = unpublished_origins(record)
            if not ended:
                return
            for origin in ended:
                if done.get(origin.name) != origin:
                    await self._publish_end(record, origin, stored.master_key)
                    done[origin.name] = origin
            # Before the ends are marked: if this worker dies, the next one does it.
            await self._discard_results(project)
            after = with_ends_published(record, [each.name for each in ended])
            after = without_old_ends(after, datetime.now(UTC), self._keep_for)
            if await self._store.change(after, stored.etag, stored.master_key):
                return
        raise StorageUnavailableError("the project's record kept changing")

    async def _publish_end(
        self, record: ProjectRecord | AllRecord, origin: Origin, master_key: str
    ) -> None:
        end = origin.end
        if end is None:
            return
        if origin.walk_id is None:
            await self._dispatcher.publish_end(record.project, origin)
            return
        # The walk through all projects publishes the end of the whole sweep.
        part = PartEnd.of(end)
        await self._store.add_part_end(origin.walk_id, record.project, part, master_key)
        await self._dispatcher.publish_progress(
            record.project,
            origin,
            part.counts,
            clean=part.clean,
            progress=progress_of(record, origin),
        )

    # Lost messages, and failures.

    async def resume(self, project: str) -> bool:
        """Resume a record whose messages may be lost; False if it has nothing to do.

        The record moves to the next step first, so only one of the workers that resume it sends
        that step. Its pages are sent again too.
        """
        try:
            await self._publish_ends(project)
            stored = await self._read(project)
        except MissingError:
            return False
        if not needs_step(stored.record):
            return False
        if self._is_stuck(stored.record):
            # Otherwise each scan would restart the retries, and no failure would be published.
            await self._fail(stored, StorageUnavailableError("no step has succeeded for days"))
            return True
        record = self._unsent(stored.record)
        record = replace(record, step=record.step + 1)
        if await self._store.change(record, stored.etag, stored.master_key):
            await self._dispatcher.send_step(record)
        return True

    def _is_stuck(self, record: RecordT) -> bool:
        """Check if no step was made for as long as a request may be repeated."""
        moments = [each.added_at for each in open_origins(record)]
        if record.stepped_at is not None and moments:
            moments.append(record.stepped_at)
        return bool(moments) and datetime.now(UTC) - max(moments) > self._keep_for

    async def record_failure(self, hint: SweepStep, error: CodedError) -> None:
        """Record and publish that a record cannot continue; a replay of its message resumes it.

        Raises:
            StorageUnavailableError, UnknownMasterKeyError: the record cannot be changed.
        """
        try:
            stored = await self._read(hint.project)
        except MissingError:
            return
        if hint.step == stored.record.step and open_origins(stored.record):
            await self._fail(stored, error)

    async def _fail(self, stored: StoredRecord[RecordT], error: CodedError) -> None:
        """Let every open origin of a record fail."""
        record = end_failed(stored.record, error.code, error.detail, datetime.now(UTC))
        if await self._store.change(record, stored.etag, stored.master_key):
            fields = {"project": record.project, "code": error.code}
            _log.error("sweeps failed", **fields, detail=error.detail)
            await self._publish_ends(record.project)
