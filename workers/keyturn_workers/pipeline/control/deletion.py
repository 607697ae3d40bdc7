"""Deletes: put a tombstone, and make sure that it stays (SPEC 8.7).

A copy under way can bring a deleted object back. So a delete is published only if its tombstone
still exists two leases after it was last put: no copy that began before can land later.

Up to 1,000 keys of one request wait together, each with its own tombstone, proof and outcome.
Between two deliveries, all state is in the bucket: a delivery reads each key, and puts only the
missing tombstones.

That age is a proof like any other (SPEC 8.4). It counts by a response of a front end whose clock
agrees with the storage's clock as this process has known it for two leases. A tombstone that
another front end dated is put again: at once, or, if this process had just started with that front
end and so believed it, when the right clock shows that the date lies ahead.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from keyturn.crypto.cobblestone import HEADER_BYTES
from keyturn.crypto.wraps import seal_tombstone
from keyturn.errors import (
    CodedError,
    LockedObjectError,
    MalformedRequestError,
    PermanentError,
    RequestExpiredError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time, object_s3_key
from keyturn.messages.requests import DeleteRequested
from keyturn.metadata import ALGO, DELETED
from keyturn_workers.core.errors import (
    ArchivedError,
    MissingError,
    RefusedError,
    StorageResponseError,
    UnstorableKeyError,
)
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.plan_action import NoOp, ObjectView, plan_action
from keyturn_workers.core.storable_key import check_storable
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, ObjectHead
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import build_tombstone_metadata
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.storage.clock import DateTrust

_log = structlog.get_logger()

_MAX_ATTEMPTS: Final = 8
# A tombstone is put again if a front end dated it whose clock is wrong.
_MAX_PUTS: Final = 3
# After so many attempts, a key of several that still fails is rejected.
_KEY_ATTEMPTS: Final = 5
# Keys of one request that are handled at once.
_KEYS_AT_ONCE: Final = 16
# Requests with many keys that are handled at once. Others are deferred, which frees their places
# in the prefetch for enrollments and rotations.
_REQUESTS_AT_ONCE: Final = 4
_PAUSE_S: Final = 1.0

Outcomes = Mapping[str, CodedError | None]
"""For each key of a request, the reason for its refusal; None if its tombstone is final."""


@dataclass(frozen=True, slots=True)
class _Tombstone:
    """A tombstone as seen in one response."""

    head: ObjectHead
    trust: DateTrust


class Deleter:
    """Serves deletes against one bucket.

    `lease_s` is this worker's; if the keyring names a longer one, the longer one counts (SPEC 8.4).
    """

    def __init__(
        self, storage: Storage, keyrings: KeyringReader, operator_keys: KekDeriver, lease_s: int
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._operator_keys = operator_keys
        self._lease_s = lease_s
        self._in_progress = 0  # requests with many keys
        self._dates_ahead = False

    async def delete(self, request: DeleteRequested) -> None:
        """Put the tombstone of a request for one key; returns once it is final.

        Raises:
            DeferError: it was last put less than two leases ago, or the storage's clock is not
                known well enough to tell.
            UnknownProjectError: no keyring exists.
            MalformedRequestError: the bucket cannot hold an object at this key, or treats it as
                another key, whose object would be deleted.
            LockedObjectError: a lock refuses the put, or keeps an older version.
            CorruptObjectError: the keyring was forged.
            StorageUnavailableError, UnknownMasterKeyError, KmsUnavailableError: try again later.
        """
        (key,) = request.object_keys
        await self._delete(request.project, key, self._keyrings.read_fresh)

    async def delete_many(self, request: DeleteRequested, attempts: int) -> Outcomes:
        """Put a tombstone at each key of a request; returns once each key has its outcome.

        `attempts` is how many times in a row the request has met the same transient error.

        Raises:
            DeferError: as `delete`, of any key; or too many such requests are in progress.
            UnknownProjectError, CorruptObjectError: as `delete`.
            StorageUnavailableError, UnknownMasterKeyError, KmsUnavailableError: try again later:
                the keyring cannot be read, or a key has failed fewer than five times.
        """

        async def delete(key: str) -> None:
            await self._delete(request.project, key, self._keyrings.read_leased)

        with self._place():
            # While the keyring has a problem, it affects all keys.
            await self._keyrings.read_fresh(request.project)
            return await _each(request, delete, may_fail=attempts + 1 >= _KEY_ATTEMPTS)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._in_progress == _REQUESTS_AT_ONCE:
            raise DeferError(_PAUSE_S)
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1

    async def _delete(
        self, project: str, key: str, read: Callable[[str], Awaitable[KeyringSnapshot]]
    ) -> None:
        check_storable(key, self._storage.capabilities)
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await read(project)
            if await self._is_deleted(key, snapshot):
                return
            with _retried_refusals():
                await self._put_tombstone(key, snapshot)
        raise StorageUnavailableError("the tombstone was replaced repeatedly")

    async def find_deleted(self, request: DeleteRequested) -> bool:
        """Check if the tombstone of a request for one key is final; makes no new one.

        Raises:
            DeferError: as `delete`.
            Other errors as `delete`.
        """
        (key,) = request.object_keys
        return await self._is_deleted(key, await self._keyrings.read_fresh(request.project))

    async def find_deleted_many(self, request: DeleteRequested) -> Outcomes | None:
        """The outcomes of an expired request; None if no key was deleted.

        Raises:
            DeferError: as `delete_many`.
            Other errors as `delete_many`.
        """

        async def find(key: str) -> None:
            snapshot = await self._keyrings.read_leased(request.project)
            if not await self._is_deleted(key, snapshot):
                raise RequestExpiredError("it was not deleted before the request expired")

        with self._place():
            await self._keyrings.read_fresh(request.project)
            outcomes = await _each(request, find, may_fail=False)
        return None if all(outcomes.values()) else outcomes

    async def _is_deleted(self, key: str, snapshot: KeyringSnapshot) -> bool:
        """Check if the key's tombstone is final; False if it must be put.

        Raises:
            DeferError: it is younger than two leases, or was dated ahead and is put again.
        """
        with _retried_refusals():
            tombstone = await self._find_tombstone(key, snapshot)
            if tombstone is None:
                return False
            if self._is_dated_ahead(tombstone):
                await self._date_again(key, snapshot)
            await self._delete_older_versions(object_s3_key(snapshot.keyring.project, key))
        self._check_age(tombstone, snapshot)
        return True

    async def _find_tombstone(self, key: str, snapshot: KeyringSnapshot) -> _Tombstone | None:
        """The tombstone, if it matches the desired state; None if it must be put."""
        project = snapshot.keyring.project
        s3_key = object_s3_key(project, key)
        clock = self._keyrings.clock
        sent_s = clock.local_s()
        try:
            view = ObjectView(*await self._storage.read_start(s3_key, HEADER_BYTES))
        except (MissingError, ArchivedError):
            return None
        trust = clock.observe(view.head.date, sent_s, clock.local_s())
        if view.head.metadata.get(ALGO) != DELETED:
            return None
        try:
            action = plan_action(
                view,
                key,
                snapshot.keyring,
                snapshot.desired,
                await self._operator_keys.admin_keks(project),
                SweepOptions(),
            )
        except PermanentError:
            return None  # forged, or moved from another key
        return _Tombstone(view.head, trust) if isinstance(action, NoOp) else None

    async def _put_tombstone(self, key: str, snapshot: KeyringSnapshot) -> None:
        """Put it until its date agrees with the storage's clock: an early date would age it.

        A front end whose clock is fast refuses the put, by its lease.
        """
        clock, project = self._keyrings.clock, snapshot.keyring.project
        s3_key, time = object_s3_key(project, key), format_time(datetime.now(UTC))
        sealed = seal_tombstone(snapshot.desired.admin_kek, project, key, time)
        headers = Headers(build_tombstone_metadata(sealed))
        try:
            for _ in range(_MAX_PUTS):
                sent_s = clock.local_s()
                written = await self._storage.put(s3_key, b"", headers, lease=snapshot.lease)
                if clock.observe(written.date, sent_s, clock.local_s()).agrees:
                    return
        except RefusedError as exc:
            if await self._is_locked(s3_key):
                raise LockedObjectError("the storage refuses to write a locked object") from exc
            # The put came after its lease: the caller retries with a new keyring read.
        except UnstorableKeyError as exc:
            raise MalformedRequestError(str(exc)) from exc

    async def _is_locked(self, s3_key: str) -> bool:
        try:
            return (await self._storage.head(s3_key)).locked
        except MissingError:
            return False

    async def _delete_older_versions(self, s3_key: str) -> None:
        """Delete versions that still hold the object's body and its wraps."""
        if not await self._storage.versioning():
            return
        async for version in self._storage.list_versions(s3_key):
            if version.key != s3_key:
                break  # an S3 key that begins with this one
            if version.is_latest:
                continue
            try:
                await self._storage.delete_version(s3_key, version.version_id)
            except RefusedError as exc:
                raise LockedObjectError("a lock keeps an older version") from exc

    def _is_dated_ahead(self, tombstone: _Tombstone) -> bool:
        """Check if a front end with a fast clock dated it: it would become final far too late."""
        ahead_s = (tombstone.head.last_modified - tombstone.head.date).total_seconds()
        return tombstone.trust.proves and ahead_s > self._keyrings.clock.tolerated_s

    async def _date_again(self, key: str, snapshot: KeyringSnapshot) -> None:
        """Put the tombstone again, unless the storage dates every object ahead: that is useless.

        Such a storage dates objects by another clock than its responses.
        """
        if self._dates_ahead:
            return
        await self._put_tombstone(key, snapshot)
        again = await self._find_tombstone(key, snapshot)
        if again is not None and self._is_dated_ahead(again):
            self._dates_ahead = True
            _log.warning("the storage dates objects ahead of its own time: deletes wait longer")

    def _check_age(self, tombstone: _Tombstone, snapshot: KeyringSnapshot) -> None:
        head = tombstone.head
        # A worker with the longer lease that the keyring names may have a copy under way.
        lease_s = max(self._lease_s, snapshot.keyring.lease_s)
        # Both times are in whole seconds of the storage's clock.
        final_at = head.last_modified + timedelta(seconds=2 * lease_s)
        if head.date > final_at and tombstone.trust.proves:
            return
        # If the response proves nothing, its front end's clock is wrong, so the age may be
        # anything, or this process has just started.
        wait_s = (final_at - head.date).total_seconds() + 1 if head.date <= final_at else lease_s
        raise DeferError(min(wait_s, 2 * lease_s + 1))


@contextmanager
def _retried_refusals() -> Iterator[None]:
    """Make an unexpected response of the storage, such as 403 to a read, a transient error.

    Raises:
        StorageUnavailableError: try again later, since a policy may be wrong for a while.
    """
    try:
        yield
    except StorageResponseError as exc:
        raise StorageUnavailableError(str(exc)) from exc


async def _each(
    request: DeleteRequested, act: Callable[[str], Awaitable[None]], *, may_fail: bool
) -> Outcomes:
    """Call `act` for each key of a request, for several keys at once.

    `act` returns once a key is deleted. If `may_fail`, a failure of the storage is an outcome.

    Raises:
        DeferError: a tombstone is not old enough; the longest wait decides.
        CodedError: a key's transient error that must not be an outcome.
    """
    outcomes = dict[str, CodedError | None].fromkeys(request.object_keys)
    waits_s, transient = list[float](), list[CodedError]()
    left = iter(request.object_keys)

    async def work() -> None:
        for key in left:
            try:
                await act(key)
            except DeferError as exc:
                waits_s.append(exc.wait_s)
            except CodedError as exc:
                outcomes[key] = exc
                # Other transient errors concern the keyring or a master key, so all keys.
                of_key = may_fail and isinstance(exc, StorageUnavailableError)
                if exc.transient and not of_key:
                    transient.append(exc)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_KEYS_AT_ONCE, len(outcomes))):
            group.create_task(work())
    if transient:
        raise transient[0]
    if waits_s:
        raise DeferError(max(waits_s))
    return outcomes
