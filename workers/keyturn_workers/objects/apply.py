"""Carry out what was decided about one object (SPEC 8.2, 8.4, 8.7).

The ciphertext never passes through here: an object gets new wraps by being copied onto
itself, and everything else that it had is restated. It must never write without a lease,
nor under a condition weaker than the backend takes.
Tags are the caller's business: `tags_at_risk` says when to note them before.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from keyturn.crypto import new_dek
from keyturn.errors import ArchivedObjectError, LockedObjectError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import OWN_PREFIX, UPLOAD, UPLOAD_TAG, V0_ALGORITHM, Wraps, stored_at
from keyturn_workers.errors import ArchivedError, RefusedError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.encrypt_in_place import check_v0_body, encrypt
from keyturn_workers.objects.guards import check_unchanged, is_lock_refusal, recheck_state
from keyturn_workers.objects.multipart_copy import copy_in_parts
from keyturn_workers.objects.plan_action import (
    Encrypt,
    NoOp,
    ObjectView,
    PlannedAction,
    ResealTombstone,
    Rewrap,
)
from keyturn_workers.objects.wrap import build_object_metadata, build_tombstone_metadata, wrap
from keyturn_workers.storage import Head, Headers, IfMatch, Lease, Storage

COPY_LIMIT_BYTES: Final = 5 * 1024**3
"""What one copy takes on S3; larger objects are copied in parts (SPEC 8.2, 11)."""


def tags_at_risk(
    storage: Storage, view: ObjectView, action: PlannedAction, copy_limit_bytes: int
) -> bool:
    """Whether carrying the decision out would drop tags that the object has.

    A put drops them everywhere, and so does a copy in parts; a plain copy on some servers.
    """
    if view.head.tag_count == 0:
        return False
    match action:
        case NoOp():
            return False
        case Rewrap():
            in_parts = view.head.size_bytes > copy_limit_bytes
            return in_parts or not storage.differences.copy_keeps_tags
        case Encrypt() | ResealTombstone():
            return True


class ActionExecutor:
    """Writes decisions into one bucket.

    Args:
        storage: the bucket.
        keyrings: read again where a write takes longer than its lease.
        copy_limit_bytes: what one copy takes; larger objects are copied in parts.
    """

    def __init__(self, storage: Storage, keyrings: KeyringReader, copy_limit_bytes: int) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._copy_limit_bytes = copy_limit_bytes

    async def execute(
        self,
        project: str,
        object_key: str,
        view: ObjectView,
        action: PlannedAction,
        snapshot: KeyringSnapshot,
    ) -> None:
        """Do what was decided about `view` by the keyring `snapshot`.

        Raises:
            MissingError, PreconditionError: the object or the desired state moved: look again.
            RefusedError: it came after its lease: read the keyring and look again.
            LockedObjectError, ArchivedObjectError: the object's lock or archive refuses it.
            CorruptObjectError: a v0 body does not open under the DEK of its wraps.
            BodyTooLargeError: plaintext that one put cannot hold once it is sealed.
            StorageUnavailableError: it may or may not be done: look again.
        """
        s3_key, head = object_s3_key(project, object_key), view.head
        try:
            match action:
                case NoOp():
                    return
                case Rewrap():
                    await self._rewrap(s3_key, head, action, snapshot)
                case Encrypt():
                    await self._encrypt(s3_key, object_key, head, snapshot)
                case ResealTombstone():
                    await self._reseal(s3_key, head, action, snapshot)
        except ArchivedError as exc:
            raise ArchivedObjectError("its storage class must be restored first") from exc

    async def _rewrap(
        self, s3_key: str, head: Head, action: Rewrap, snapshot: KeyringSnapshot
    ) -> None:
        if action.body_dek is not None:
            await check_v0_body(self._storage, s3_key, head, action.body_dek)
            # Reading a large body outlives the lease: the copy rests on a new one.
            snapshot = await recheck_state(self._keyrings, snapshot)
        headers = _headers_with_wraps(head, action.wraps)
        if head.size_bytes > self._copy_limit_bytes:
            if head.locked:
                # Some servers drop the lock that a multipart upload begins with.
                raise LockedObjectError("a locked object of this size cannot be copied as it is")
            await copy_in_parts(
                self._storage,
                self._keyrings,
                s3_key,
                head,
                headers,
                snapshot,
                copy_limit_bytes=self._copy_limit_bytes,
            )
            return
        async with self._translate_lock_refusal(s3_key, head, snapshot.lease):
            await self._storage.copy_onto_itself(
                s3_key, headers, source_etag=head.etag, lease=snapshot.lease
            )

    async def _encrypt(
        self, s3_key: str, object_key: str, head: Head, snapshot: KeyringSnapshot
    ) -> None:
        if head.locked:
            # A streamed put cannot tell the digest that a put with a lock must tell.
            raise LockedObjectError("a locked object is not replaced")
        dek = new_dek()
        # It gets no tag: a sweep knows no upload to make one of.
        headers = _headers_with_wraps(head, wrap(snapshot.desired, object_key, dek))
        if head.size_bytes == 0:
            # A tombstone is empty too: it has the same ETag, and the condition would let
            # this put bring the object back. A delete that is put after this look waits
            # for the lease, which began before it (SPEC 8.7).
            await check_unchanged(self._storage, s3_key, head)
        await encrypt(self._storage, self._keyrings, s3_key, head, headers, dek, snapshot)

    async def _reseal(
        self, s3_key: str, head: Head, action: ResealTombstone, snapshot: KeyringSnapshot
    ) -> None:
        headers = replace(head.headers, metadata=build_tombstone_metadata(action.sealed))
        async with self._translate_lock_refusal(s3_key, head, snapshot.lease):
            await self._storage.put(
                s3_key, b"", headers, condition=IfMatch(head.etag), lease=snapshot.lease
            )

    @asynccontextmanager
    async def _translate_lock_refusal(
        self, s3_key: str, head: Head, lease: Lease
    ) -> AsyncIterator[None]:
        """A write under this lease; where the object's lock refused it, that is told."""
        try:
            yield
        except RefusedError as exc:
            if await is_lock_refusal(self._storage, s3_key, head, lease):
                raise LockedObjectError("the storage refuses to write a locked object") from exc
            raise


def _headers_with_wraps(head: Head, wraps: Wraps) -> Headers:
    """Everything that the object had, under new wraps (SPEC 8.2).

    The write changes the storage's `Last-Modified`: what it was before the first one is kept
    beside the wraps, so that no rotation makes a file look changed (SPEC 4.3).
    """
    caller = {n: v for n, v in head.metadata.items() if not n.startswith(OWN_PREFIX)}
    # An object of the earlier system has no upload's id of its own (SPEC 4.6).
    is_v0 = wraps.algorithm == V0_ALGORITHM
    metadata = build_object_metadata(
        wraps,
        upload_id=None if is_v0 else head.metadata.get(UPLOAD),
        caller_wire=caller,
        tag=None if is_v0 else head.metadata.get(UPLOAD_TAG),
        stored_at=stored_at(head.metadata, head.last_modified) or head.last_modified,
    )
    return replace(head.headers, metadata=metadata)
