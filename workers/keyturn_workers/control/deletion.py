"""Deletes: putting a tombstone that stays (SPEC 8.7).

A copy under way can bring a deleted object back. So a delete is published only if its tombstone
still exists two leases after it was last put: no copy that began before can land later.

That age is a proof like any other (SPEC 8.4). It counts by a response of a front end whose clock
agrees with the storage's clock as this process has known it for two leases, and a tombstone that
another front end dated is put again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from keyturn.crypto import HEADER_BYTES, seal_tombstone
from keyturn.errors import (
    LockedObjectError,
    MalformedRequestError,
    PermanentError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time, object_s3_key
from keyturn.messages import DeleteRequested
from keyturn.metadata import ALGO, DELETED
from keyturn_workers.amqp.consumer import DeferError
from keyturn_workers.errors import ArchivedError, MissingError, RefusedError, UnstorableKeyError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.plan_action import NoOp, ObjectView, Options, plan_action
from keyturn_workers.objects.storable_key import check_storable
from keyturn_workers.objects.wraps import build_tombstone_metadata
from keyturn_workers.storage import Headers, ObjectHead, Storage
from keyturn_workers.storage.clock import DateTrust

_MAX_ATTEMPTS: Final = 8
# A tombstone is put again if a front end dated it whose clock is wrong.
_MAX_PUTS: Final = 3


@dataclass(frozen=True, slots=True)
class _Tombstone:
    """A tombstone as one response showed it."""

    head: ObjectHead
    trust: DateTrust


class Deleter:
    """Serves deletes against one bucket.

    `lease_s` is this worker's; if the keyring names a longer one, that counts (SPEC 8.4).
    """

    def __init__(
        self, storage: Storage, keyrings: KeyringReader, operator_keys: OperatorKeys, lease_s: int
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._operator_keys = operator_keys
        self._lease_s = lease_s

    async def delete(self, request: DeleteRequested) -> None:
        """Put a tombstone; returns once it is there for good.

        Raises:
            DeferError: it was put, or put again, less than two leases ago, or the storage's clock
                is not known well enough to say so.
            UnknownProjectError: no keyring exists.
            MalformedRequestError: the bucket cannot hold an object at this key, or takes it for
                another key, whose object would be deleted.
            LockedObjectError: a lock refuses the put, or keeps an older version.
            CorruptObjectError: the keyring was forged.
            StorageUnavailableError, UnknownMasterKeyError, KmsUnavailableError: try again later.
        """
        check_storable(request.key, self._storage.capabilities)
        s3_key = object_s3_key(request.project, request.key)
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(request.project)
            tombstone = await self._find_tombstone(s3_key, request, snapshot)
            if tombstone is not None:
                await self._delete_older_versions(s3_key)
                self._check_age(tombstone, snapshot)
                return
            await self._put_tombstone(s3_key, request, snapshot)
        raise StorageUnavailableError("the tombstone was replaced again and again")

    async def find_deleted(self, request: DeleteRequested) -> bool:
        """Whether the object's tombstone is there for good already; does not put one.

        Raises:
            DeferError: as `delete`.
            Other errors as `delete`.
        """
        s3_key = object_s3_key(request.project, request.key)
        snapshot = await self._keyrings.read_fresh(request.project)
        tombstone = await self._find_tombstone(s3_key, request, snapshot)
        if tombstone is None:
            return False
        await self._delete_older_versions(s3_key)
        self._check_age(tombstone, snapshot)
        return True

    async def _find_tombstone(
        self, s3_key: str, request: DeleteRequested, snapshot: KeyringSnapshot
    ) -> _Tombstone | None:
        """The tombstone, if it matches the desired state; None if it must be put."""
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
                request.key,
                snapshot.keyring,
                snapshot.desired,
                await self._operator_keys.admin_keks(request.project),
                Options(),
            )
        except PermanentError:
            return None  # forged, or moved from another key
        return _Tombstone(view.head, trust) if isinstance(action, NoOp) else None

    async def _put_tombstone(
        self, s3_key: str, request: DeleteRequested, snapshot: KeyringSnapshot
    ) -> None:
        """Put it until its date agrees with the storage's clock: an early one would age it.

        A front end whose clock is fast refuses it, by its lease.
        """
        clock = self._keyrings.clock
        time = format_time(datetime.now(UTC))
        sealed = seal_tombstone(snapshot.desired.admin_kek, request.project, request.key, time)
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
            # It came after its lease: the caller tries again with a new keyring read.
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

    def _check_age(self, tombstone: _Tombstone, snapshot: KeyringSnapshot) -> None:
        head = tombstone.head
        # A worker with the longer lease that the keyring names may have a copy under way.
        lease_s = max(self._lease_s, snapshot.keyring.lease_s)
        # Both times are in whole seconds of the storage's clock.
        final_at = head.last_modified + timedelta(seconds=2 * lease_s)
        if head.date > final_at and tombstone.trust.proves:
            return
        # If the response does not prove: its front end's clock is wrong, so that the age may be
        # anything, or this process has just started.
        wait_s = (final_at - head.date).total_seconds() + 1 if head.date <= final_at else lease_s
        raise DeferError(min(wait_s, 2 * lease_s + 1))
