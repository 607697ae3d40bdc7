"""Rotations whose record is gone are restarted under their own id (SPEC 8.6).

A sweep's record is an object like any other. An attacker who can write the bucket can remove
it, and a worker can die after it rotated the keyring and before it created the record. The
keyring names its last rotation with publisher and request, and usually still holds the earlier
keys.

If it holds none, a clean sweep has cleared them: another one of the project, or the rotation's
own, whose record was removed before its end was published. Only the record shows that the end
of a rotation was published. So a rotation without a record is restarted in this case too, if it
is younger than half the time for which records are kept: the record was not removed for its
age. If its end had been published, it is published once more.

The cost: one listing of keyrings per round, a read of each keyring that is new to this process
or changed since its last round (at most `_READS_PER_ROUND`), and a read of the record of each
rotation that the listing of sweeps does not show.
"""

import asyncio
import hashlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import structlog

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    KmsUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key, parse_time
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import Mark
from keyturn_workers.keyring.store import KEYRING_MAX_BYTES, parse_keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.mark_watch import MarkWatch
from keyturn_workers.sweep.starter import SweepStarter
from keyturn_workers.sweep.sweep_store import SweepStore

_READS_PER_ROUND: Final = 2000
_CONCURRENCY: Final = 16

_Name: TypeAlias = tuple[str, str]
"""A sweep's id and its project."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _LastRotation:
    """The last rotation of a keyring; `is_open` while that still holds earlier keys."""

    rotation_id: str
    rotated_at: datetime
    is_open: bool


@dataclass(frozen=True, slots=True)
class _SeenKeyring:
    """A keyring as it was read; `rotation` is None if it was never rotated."""

    etag: str
    mark: Mark
    rotation: _LastRotation | None


class OpenRotations:
    """The last rotations of all projects, as the recovery rounds of one process see them.

    Args:
        storage: The bucket.
        store: The records of sweeps.
        starter: Starts the sweep of a rotation.
        keys: The operator's keys.
        watch: Compares the keyrings with their marks.
    """

    def __init__(
        self,
        storage: Storage,
        store: SweepStore,
        starter: SweepStarter,
        keys: OperatorKeys,
        watch: MarkWatch | None = None,
    ) -> None:
        self._watch = watch
        self._storage = storage
        self._store = store
        self._starter = starter
        self._keys = keys
        self._seen: dict[str, _SeenKeyring] = {}
        # Projects whose keyring could not be read, or not yet.
        self._unread: set[str] = set()
        self._missing: set[_Name] = set()

    async def refresh(self) -> None:
        """Read the keyrings that changed since the last round, and compare all with their marks."""
        if self._watch is not None:
            self._watch.begin()
        listed = set[str]()
        changed: list[tuple[str, str]] = []
        seen, self._unread = self._seen, set()
        self._seen = {}
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if row.key != keyring_s3_key(project) or not is_project(project):
                continue
            listed.add(project)
            before = seen.get(project)
            if before is not None and before.etag == row.etag and self._is_settled(project, before):
                self._seen[project] = before
            elif len(changed) < _READS_PER_ROUND:
                changed.append((project, row.etag))
            else:
                self._unread.add(project)
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def read(project: str, etag: str) -> None:
            async with slots:
                await self._read(project, etag)

        await asyncio.gather(*(read(project, etag) for project, etag in changed))
        if self._watch is not None:
            self._watch.end(listed)

    def _is_settled(self, project: str, seen: _SeenKeyring) -> bool:
        return self._watch is None or self._watch.is_settled(project, seen.mark)

    async def _read(self, project: str, etag: str) -> None:
        try:
            _, body = await self._storage.read(keyring_s3_key(project), max_bytes=KEYRING_MAX_BYTES)
            keyring = await parse_keyring(body, project, self._keys)
        except MissingError:
            return
        except (CorruptObjectError, UnknownMasterKeyError, KmsUnavailableError):
            # Another worker may hold its master key, or an operator must act. Its records stay.
            self._unread.add(project)
            return
        current = keyring.current
        rotation = _LastRotation(
            current.rotation_id, parse_time(current.at), is_open=keyring.has_old_keks
        )
        # The ETag of the listing: if the keyring changed since, the next round reads it again.
        mark = Mark(keyring.serial, hashlib.sha256(body).digest(), current.generation)
        self._seen[project] = _SeenKeyring(etag, mark, rotation if keyring.history else None)
        if self._watch is not None:
            await self._watch.compare(keyring, mark)

    def needs_record(self, sweep_id: str, project: str) -> bool:
        """Whether the record of this sweep must be kept, or created again if it is gone.

        The record of the last rotation is kept as long as the earlier keys: without it, the
        rotation would be taken for a lost one.
        """
        if project in self._unread:
            return True
        seen = self._seen.get(project)
        rotation = None if seen is None else seen.rotation
        return rotation is not None and rotation.is_open and rotation.rotation_id == sweep_id

    async def restart_lost(
        self,
        present: AbstractSet[_Name],
        *,
        stalled_after: timedelta,
        keep_for: timedelta,
        now: datetime,
    ) -> int:
        """Restart the rotations that two rounds in a row found without a record.

        Args:
            present: The sweeps whose record the listing of this round showed.
            stalled_after: A younger rotation is not restarted: its record may be about to be
                written.
            keep_for: How long the records of an ended sweep are kept.
            now: This machine's clock.

        Returns:
            How many rotations were restarted.
        """
        missing = set[_Name]()
        for project, seen in self._seen.items():
            rotation = seen.rotation
            if rotation is None or now - rotation.rotated_at <= stalled_after:
                continue
            if not rotation.is_open and not _is_recent(rotation, keep_for, now):
                continue
            name = (rotation.rotation_id, project)
            if name not in present and await self._is_gone(*name):
                missing.add(name)
        again = sorted(missing & self._missing)
        self._missing = missing - set(again)
        return sum([await self._restart(*name) for name in again])

    async def _is_gone(self, sweep_id: str, project: str) -> bool:
        try:
            await self._store.read(sweep_id, project)
        except MissingError:
            return True
        except (CorruptObjectError, UnknownMasterKeyError, KmsUnavailableError):
            return False
        return False

    async def _restart(self, sweep_id: str, project: str) -> bool:
        fields = {"sweep_id": sweep_id, "project": project}
        try:
            restarted = await self._starter.restart_rotation(sweep_id, project)
        except CodedError as exc:
            # The others must not wait for it. The next rounds try again.
            _log.warning("lost rotation not restarted", **fields, code=exc.code, detail=exc.detail)
            return False
        if restarted:
            _log.warning("rotation without a record restarted", **fields)
        return restarted


def _is_recent(rotation: _LastRotation, keep_for: timedelta, now: datetime) -> bool:
    """Whether the rotation's record cannot have been removed for its age.

    Half the time allows for clocks that differ. The record is at most as old as its rotation.
    """
    return now - rotation.rotated_at <= keep_for / 2
