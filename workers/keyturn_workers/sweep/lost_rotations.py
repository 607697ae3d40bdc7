"""Rotations whose record is gone are begun anew under their own id (SPEC 8.6).

A sweep's record is an object like any other: a bucket writer can remove it, and a worker can
die between the turn of the keyring and the record. The keyring names the rotation that turned
it with its publisher and its request, and mostly still holds the earlier keys.

Where it holds none any more, a clean sweep has cleared them: another one of the project, or the
rotation's own, whose record was removed before its end was published. That a rotation ended
and was published is known from its record alone. A rotation that is younger than half the time
for which records are kept, and has none, is therefore begun anew as well: its record was not
removed for its age. Where its end had been published, it is published once more.

What it costs: one listing of keyrings a round, a read of each keyring that is new to this
process or changed since its last round (at most `_READS_A_ROUND`), and a read of the record of
each rotation that the listing of sweeps does not show.
"""

import asyncio
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import structlog

from keyturn.crypto import Secret
from keyturn.errors import CodedError, CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import KEYRINGS_PREFIX, is_project, keyring_s3_key, parse_time
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring.model import parse_keyring
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.starter import Starter
from keyturn_workers.sweep.store import SweepStore

_READS_A_ROUND: Final = 2000
_CONCURRENCY: Final = 16
_KEYRING_MAX_BYTES: Final = 2 * 1024**2

_Name: TypeAlias = tuple[str, str]
"""A sweep's id and its project."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Last:
    """The rotation that turned a keyring last; `is_open` while that still holds earlier keys."""

    rotation_id: str
    turned_at: datetime
    is_open: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """A keyring as it was read: `rotation` is None where none turned it."""

    etag: str
    rotation: _Last | None


class OpenRotations:
    """The last rotations of all projects, as the rounds of one process see them.

    Args:
        storage: The bucket.
        store: The records of sweeps.
        starter: Begins a rotation's sweep.
        master_keys: Those that this process holds.
    """

    def __init__(
        self,
        storage: Storage,
        store: SweepStore,
        starter: Starter,
        master_keys: Mapping[str, Secret],
    ) -> None:
        self._storage = storage
        self._store = store
        self._starter = starter
        self._master_keys = master_keys
        self._seen: dict[str, _Seen] = {}
        # Projects whose keyring could not be read, or not yet.
        self._unread: set[str] = set()
        self._missing: set[_Name] = set()

    async def look(self) -> None:
        """Read the keyrings that changed since the last round."""
        changed: list[tuple[str, str]] = []
        seen, self._unread = self._seen, set()
        self._seen = {}
        async for row in self._storage.list(KEYRINGS_PREFIX):
            project = row.key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")
            if row.key != keyring_s3_key(project) or not is_project(project):
                continue
            before = seen.get(project)
            if before is not None and before.etag == row.etag:
                self._seen[project] = before
            elif len(changed) < _READS_A_ROUND:
                changed.append((project, row.etag))
            else:
                self._unread.add(project)
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def read(project: str, etag: str) -> None:
            async with slots:
                await self._read(project, etag)

        await asyncio.gather(*(read(project, etag) for project, etag in changed))

    async def _read(self, project: str, etag: str) -> None:
        try:
            _, body = await self._storage.read(
                keyring_s3_key(project), max_bytes=_KEYRING_MAX_BYTES
            )
            keyring = parse_keyring(body, project, self._master_keys)
        except MissingError:
            return
        except (CorruptObjectError, UnknownMasterKeyError):
            # Another worker's to look after, or an operator's: its records are kept.
            self._unread.add(project)
            return
        current = keyring.current
        turned_at = parse_time(current.at)
        rotation = _Last(current.rotation_id, turned_at, is_open=keyring.has_old_keks)
        # Of the listing: where the keyring changed since, it is read again.
        self._seen[project] = _Seen(etag, rotation if keyring.history else None)

    def needs(self, sweep_id: str, project: str) -> bool:
        """Whether the record of this sweep must be kept, or begun anew where it is gone.

        That of the last rotation is kept while earlier keys are: without it, the rotation would
        be taken for one that was lost.
        """
        if project in self._unread:
            return True
        seen = self._seen.get(project)
        rotation = None if seen is None else seen.rotation
        return rotation is not None and rotation.is_open and rotation.rotation_id == sweep_id

    async def begin_lost(
        self,
        present: AbstractSet[_Name],
        *,
        still_for: timedelta,
        keep_for: timedelta,
        now: datetime,
    ) -> int:
        """Begin those anew that two rounds in a row found without a record; gives how many.

        Args:
            present: The sweeps whose record this round's listing showed.
            still_for: A rotation that turned its keyring later than this ago is left alone:
                its record may be about to be written.
            keep_for: How long the records of an ended sweep are kept.
            now: This machine's clock.
        """
        missing = set[_Name]()
        for project, seen in self._seen.items():
            rotation = seen.rotation
            if rotation is None or now - rotation.turned_at <= still_for:
                continue
            if not rotation.is_open and not _is_recent(rotation, keep_for, now):
                continue
            name = (rotation.rotation_id, project)
            if name not in present and await self._is_gone(*name):
                missing.add(name)
        again = sorted(missing & self._missing)
        self._missing = missing - set(again)
        return sum([await self._begin(*name) for name in again])

    async def _is_gone(self, sweep_id: str, project: str) -> bool:
        try:
            await self._store.read(sweep_id, project)
        except MissingError:
            return True
        except (CorruptObjectError, UnknownMasterKeyError):
            return False
        return False

    async def _begin(self, sweep_id: str, project: str) -> bool:
        said = {"sweep_id": sweep_id, "project": project}
        try:
            begun = await self._starter.begin_again(sweep_id, project)
        except CodedError as exc:
            # The others are not to wait for it; the next rounds come by again.
            _log.warning("lost rotation not begun", **said, code=exc.code, detail=exc.detail)
            return False
        if begun:
            _log.warning("rotation without a record begun anew", **said)
        return begun


def _is_recent(rotation: _Last, keep_for: timedelta, now: datetime) -> bool:
    """Whether the rotation's record cannot have been removed for its age.

    Half the time makes up for clocks that differ: the record is as old as its rotation at most.
    """
    return now - rotation.turned_at <= keep_for / 2
