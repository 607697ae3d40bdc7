"""Execute the action planned for one object (SPEC 8.2, 8.4, 8.7).

The ciphertext never passes through here: an object gets new wraps by a copy onto itself, and
keeps everything else that it had. No write goes without a lease, nor under a weaker condition
than the backend supports. Tags are up to the caller: `tags_at_risk` says when to save them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from keyturn.crypto import new_dek
from keyturn.errors import ArchivedObjectError, LockedObjectError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import (
    OWN_PREFIX,
    UPLOAD,
    UPLOAD_TAG,
    V0_ALGORITHM,
    Wraps,
    stored_at,
    unknown_names,
)
from keyturn_workers.errors import ArchivedError, RefusedError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.encrypt_in_place import check_v0_body, encrypt_plaintext
from keyturn_workers.objects.guards import (
    ObjectWrite,
    check_unchanged,
    is_lock_refusal,
    recheck_state,
)
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
from keyturn_workers.storage import Headers, IfMatch, Lease, ObjectHead, Storage

COPY_LIMIT_BYTES: Final = 5 * 1024**3
"""The limit of a single copy on S3; larger objects are copied in parts (SPEC 8.2, 11)."""


def tags_at_risk(
    storage: Storage, view: ObjectView, action: PlannedAction, copy_limit_bytes: int
) -> bool:
    """Whether executing the action would drop tags that the object has.

    A put or a copy in parts always drops them; a plain copy drops them on some servers.
    """
    if view.head.tag_count == 0:
        return False
    match action:
        case NoOp():
            return False
        case Rewrap():
            in_parts = view.head.size_bytes > copy_limit_bytes
            return in_parts or not storage.capabilities.copy_keeps_tags
        case Encrypt() | ResealTombstone():
            return True


class ActionExecutor:
    """Executes planned actions in one bucket.

    Args:
        storage: the bucket.
        keyrings: read again when a write takes longer than its lease.
        copy_limit_bytes: the limit of a single copy; larger objects are copied in parts.
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
        """Execute an action that was planned for `view` and the keyring in `snapshot`.

        Raises:
            MissingError, PreconditionError: the object or the desired state changed: plan again.
            RefusedError: the write came after its lease: read the keyring and plan again.
            LockedObjectError, ArchivedObjectError: the object's lock or archive refuses it.
            CorruptObjectError: a v0 body does not open under the DEK of its wraps.
            BodyTooLargeError: plaintext that does not fit one put once it is sealed.
            StorageUnavailableError: the outcome is unknown: read the object again.
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
                    await self._reseal_tombstone(s3_key, head, action, snapshot)
        except ArchivedError as exc:
            raise ArchivedObjectError("its storage class must be restored first") from exc

    async def _rewrap(
        self, s3_key: str, head: ObjectHead, action: Rewrap, snapshot: KeyringSnapshot
    ) -> None:
        if action.body_dek is not None:
            await check_v0_body(self._storage, s3_key, head, action.body_dek)
            # Reading a large body outlives the lease: the copy needs a new one.
            snapshot = await recheck_state(self._keyrings, snapshot)
        headers = _headers_with_wraps(head, action.wraps)
        if head.size_bytes > self._copy_limit_bytes:
            if head.locked:
                # Some servers drop the lock that a multipart upload was created with.
                raise LockedObjectError("a locked object of this size cannot be copied")
            await copy_in_parts(
                self._storage,
                self._keyrings,
                ObjectWrite(s3_key, head, headers, snapshot),
                copy_limit_bytes=self._copy_limit_bytes,
            )
            return
        async with self._translate_lock_refusal(s3_key, head, snapshot.lease):
            await self._storage.copy_onto_itself(
                s3_key, headers, source_etag=head.etag, lease=snapshot.lease
            )

    async def _encrypt(
        self, s3_key: str, object_key: str, head: ObjectHead, snapshot: KeyringSnapshot
    ) -> None:
        if head.locked:
            # A put with a lock must send a digest of its body; a streamed put cannot.
            raise LockedObjectError("a locked object is not replaced")
        dek = new_dek()
        # Without an upload tag: a sweep knows no upload that it could name.
        headers = _headers_with_wraps(head, wrap(snapshot.desired, object_key, dek))
        if head.size_bytes == 0:
            # A tombstone is empty too and has the same ETag, so the condition would let this
            # put bring back a deleted object. A delete that is put after this check waits for
            # the lease, which began before it (SPEC 8.7).
            await check_unchanged(self._storage, s3_key, head)
        write = ObjectWrite(s3_key, head, headers, snapshot)
        await encrypt_plaintext(self._storage, self._keyrings, write, dek)

    async def _reseal_tombstone(
        self, s3_key: str, head: ObjectHead, action: ResealTombstone, snapshot: KeyringSnapshot
    ) -> None:
        headers = replace(head.headers, metadata=build_tombstone_metadata(action.sealed))
        async with self._translate_lock_refusal(s3_key, head, snapshot.lease):
            await self._storage.put(
                s3_key, b"", headers, condition=IfMatch(head.etag), lease=snapshot.lease
            )

    @asynccontextmanager
    async def _translate_lock_refusal(
        self, s3_key: str, head: ObjectHead, lease: Lease
    ) -> AsyncIterator[None]:
        """Raise `LockedObjectError` if the object's lock, not the lease, refused the write."""
        try:
            yield
        except RefusedError as exc:
            if await is_lock_refusal(self._storage, s3_key, head, lease):
                raise LockedObjectError("the storage refuses to write a locked object") from exc
            raise


def _headers_with_wraps(head: ObjectHead, wraps: Wraps) -> Headers:
    """All headers that the object had, with new wraps (SPEC 8.2).

    Each write changes the storage's `Last-Modified`. The original time is kept beside the
    wraps, so that no rotation makes a file look changed (SPEC 4.3).
    """
    caller = {n: v for n, v in head.metadata.items() if not n.startswith(OWN_PREFIX)}
    left_out = set(unknown_names(head.metadata))
    if wraps.algorithm == V0_ALGORITHM:
        left_out |= {UPLOAD, UPLOAD_TAG}  # an object of the earlier system has none (SPEC 4.6)
    own = {n: v for n, v in head.metadata.items() if n not in left_out}
    metadata = build_object_metadata(
        wraps,
        upload_id=own.get(UPLOAD),
        caller_wire=caller,
        tag=own.get(UPLOAD_TAG),
        stored_at=stored_at(head.metadata, head.last_modified) or head.last_modified,
    )
    return replace(head.headers, metadata=metadata)
