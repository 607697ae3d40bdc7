"""Execute the action planned for one object (SPEC 7.3, 8.2, 8.4, 8.7).

An object gets new wraps by a copy onto itself, a large one in parts, and keeps everything else; its
ciphertext never passes through the worker. Only the encryption of plaintext in place reads a body,
in bounded memory. Every write has a lease, and the strongest condition that the backend supports.
The caller saves tags if `tags_at_risk` is true.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import HEADER_BYTES, seal, sealed_size
from keyturn.crypto.keys import new_dek
from keyturn.crypto.wraps import BODY_CONTEXT
from keyturn.errors import (
    ArchivedObjectError,
    BodyTooLargeError,
    CorruptObjectError,
    DeletedKeyError,
    LockedObjectError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import (
    OWN_PREFIX,
    UPLOAD,
    UPLOAD_TAG,
    Tombstone,
    Wraps,
    stored_at,
    unknown_names,
)
from keyturn.parts import part_size, send_parts
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.body_stream import check_before_last_piece, seal_stream
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets
from keyturn_workers.core.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.plan_action import (
    Encrypt,
    NoOp,
    ObjectView,
    PlannedAction,
    ResealTombstone,
    Rewrap,
    plan_action,
)
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, IfMatch, Lease, ObjectHead, Part
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import build_object_metadata, build_tombstone_metadata, wrap
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.storage.multipart import open_multipart

_MIN_PART_BYTES: Final = 5 * 1024**2
_MAX_PART_BYTES: Final = 1024**3
_PARTS_IN_FLIGHT: Final = 4
_RESENT_PART_BYTES: Final = 16 * 1024**2
PUT_MAX_BYTES: Final = 5 * 1024**3
"""The limit of a single put on any server (SPEC 7.2)."""
_PIECE_BYTES: Final = 1024 * 1024
COPY_LIMIT_BYTES: Final = 5 * 1024**3
"""The limit of a single copy on S3; larger objects are copied in parts (SPEC 8.2, 11)."""
# One more attempt each time the desired state changed, or another writer won a race.
_MAX_ATTEMPTS: Final = 8
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ObjectWrite:
    """A write that replaces an object.

    Attributes:
        s3_key: the object's S3 key.
        head: the object as it was read; the write is conditional on it.
        headers: the object's new headers.
        snapshot: the keyring read that the wraps in `headers` were made for.
    """

    s3_key: str
    head: ObjectHead
    headers: Headers
    snapshot: KeyringSnapshot


async def recheck_state(keyrings: KeyringReader, snapshot: KeyringSnapshot) -> KeyringSnapshot:
    """Read the keyring again, for a new lease.

    Raises:
        PreconditionError: the desired state is no longer the one in `snapshot`.
    """
    now = await keyrings.read_fresh(snapshot.desired.project)
    if not now.desired.same_state(snapshot.desired):
        raise PreconditionError("the desired state changed")
    return now


async def check_unchanged(storage: Storage, s3_key: str, head: ObjectHead) -> None:
    """Read the head of an object again and compare it with an earlier one.

    Raises:
        PreconditionError: the body or the metadata changed.
        MissingError: the object is gone.
    """
    now = await storage.head(s3_key)
    if now.etag != head.etag or now.metadata != head.metadata:
        raise PreconditionError("the object changed since it was read")


async def is_lock_refusal(storage: Storage, s3_key: str, head: ObjectHead, lease: Lease) -> bool:
    """Return whether a write was refused by the object's lock, not because its lease expired.

    The storage responds with the same 403 to both. Its clock, read after the response, shows
    whether the write was in time; a doubtful write is tried again under a new lease.
    """
    if not head.locked:
        return False
    now = await storage.head(s3_key)
    return now.date <= lease.read_at + timedelta(seconds=lease.expires_s)


def part_ranges(size_bytes: int, copy_limit_bytes: int) -> list[tuple[int, int]]:
    """The first and last byte (both included) of each part of a copy."""
    wanted_bytes = max(_MIN_PART_BYTES, min(copy_limit_bytes, _MAX_PART_BYTES))
    part_bytes = part_size(size_bytes, wanted_bytes)
    return [
        (first, min(first + part_bytes, size_bytes) - 1)
        for first in range(0, size_bytes, part_bytes)
    ]


async def copy_in_parts(
    storage: Storage, keyrings: KeyringReader, write: ObjectWrite, *, copy_limit_bytes: int
) -> None:
    """Replace a large object's metadata.

    Raises:
        PreconditionError: the desired state or the object changed: read both again.
        MissingError: the object, or the upload's parts, are gone: read again.
        RefusedError: the completion came after the end of its lease.
    """
    s3_key, head = write.s3_key, write.head
    async with open_multipart(storage, s3_key, write.headers) as upload_id:
        parts = await _copy_parts(storage, s3_key, upload_id, head, copy_limit_bytes)
        now = await recheck_state(keyrings, write.snapshot)
        # The order matters. This check sees a tombstone that was put before it. A later
        # tombstone is put after the lease began, so its delete waits for the completion before
        # it is published (SPEC 8.7). Otherwise the parts, copied long ago, would bring back a
        # deleted object.
        await check_unchanged(storage, s3_key, head)
        is_conditional = storage.capabilities.conditional_completion
        condition = IfMatch(head.etag) if is_conditional else None
        await storage.complete_multipart(
            s3_key, upload_id, parts, condition=condition, lease=now.lease
        )


async def _copy_parts(
    storage: Storage, s3_key: str, upload_id: str, head: ObjectHead, copy_limit_bytes: int
) -> list[Part]:
    # Ceph RGW 18 decodes the name of a part's source twice: it would copy the parts of `aA` to
    # `a%41`, and it ignores the condition that the source has another ETag.
    is_resent = "%" in s3_key
    part_bytes = _RESENT_PART_BYTES if is_resent else copy_limit_bytes

    async def spans() -> AsyncIterator[tuple[int, int]]:
        for span in part_ranges(head.size_bytes, part_bytes):
            yield span

    async def copy(number: int, span: tuple[int, int]) -> Part:
        first, last = span
        if not is_resent:
            return await storage.copy_part(
                s3_key, upload_id, number, first=first, last=last, source_etag=head.etag
            )
        length_bytes = last + 1 - first
        async with storage.stream(
            s3_key, start=first, length_bytes=length_bytes, if_match=head.etag
        ) as source:
            body = b"".join([piece async for piece in source.chunks(_PIECE_BYTES)])
        return await storage.upload_part(s3_key, upload_id, number, body)

    # A resent part is in memory, and many objects may be copied at once.
    return await send_parts(spans(), copy, at_once=1 if is_resent else _PARTS_IN_FLIGHT)


def check_fits_one_put(head: ObjectHead) -> int:
    """Return the size in bytes that a plaintext object will have once it is sealed.

    Raises:
        BodyTooLargeError: it is too large for one put.
    """
    size_bytes = sealed_size(head.size_bytes)
    if size_bytes > PUT_MAX_BYTES:
        raise BodyTooLargeError(
            f"it has {size_bytes} bytes when sealed; one put holds at most {PUT_MAX_BYTES}"
        )
    return size_bytes


async def encrypt_plaintext(
    storage: Storage, keyrings: KeyringReader, write: ObjectWrite, dek: bytes
) -> None:
    """Replace plaintext with its sealed body, in one put conditional on the body that was read.

    A streamed put may end long after its lease. An empty body has the ETag of every tombstone,
    so the condition would let such a put bring back an object whose delete was published
    meanwhile: an empty body goes as one plain put, which ends within its lease.

    Raises:
        BodyTooLargeError: the sealed body is too large for one put.
        PreconditionError, MissingError: the body was replaced or removed, or the desired state
            changed.
        RefusedError: the put came after the end of its lease.
    """
    s3_key, head, headers, snapshot = write.s3_key, write.head, write.headers, write.snapshot
    size_bytes = check_fits_one_put(head)
    if head.size_bytes == 0:
        body = seal(dek, BODY_CONTEXT, b"")
        await storage.put(s3_key, body, headers, condition=IfMatch(head.etag), lease=snapshot.lease)
        return
    async with storage.stream(s3_key, if_match=head.etag) as source:
        await storage.put_stream(
            s3_key,
            check_before_last_piece(
                seal_stream(source.chunks(_PIECE_BYTES), dek),
                partial(recheck_state, keyrings, snapshot),
            ),
            size_bytes,
            headers,
            condition=IfMatch(head.etag),
            lease=snapshot.lease,
        )


def tags_at_risk(
    storage: Storage, view: ObjectView, action: PlannedAction, copy_limit_bytes: int
) -> bool:
    """Return whether executing the action would drop the object's tags.

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

    Reads the keyring again when a write takes longer than its lease. Objects larger than
    `copy_limit_bytes` are copied in parts.
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
            RefusedError: the write came after the end of its lease: read the keyring and plan
                again.
            LockedObjectError, ArchivedObjectError: the object's lock or archive refuses it.
            BodyTooLargeError: the plaintext is too large for one put once it is sealed.
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
        # Without an upload tag, as a sweep knows of no upload to name in it.
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
    """Build the object's headers with new wraps; all others stay (SPEC 8.2).

    Each write changes the storage's `Last-Modified`. The original time is kept beside the
    wraps, so that no rotation makes a file look changed (SPEC 4.3).
    """
    caller = {n: v for n, v in head.metadata.items() if not n.startswith(OWN_PREFIX)}
    left_out = set(unknown_names(head.metadata))
    own = {n: v for n, v in head.metadata.items() if n not in left_out}
    metadata = build_object_metadata(
        wraps,
        upload_id=own.get(UPLOAD),
        caller_wire=caller,
        tag=own.get(UPLOAD_TAG),
        stored_at=stored_at(head.metadata, head.last_modified) or head.last_modified,
    )
    return replace(head.headers, metadata=metadata)


async def reconcile_object(
    project: str,
    object_key: str,
    storage: Storage,
    keyrings: KeyringReader,
    operator_keys: KekDeriver,
    secrets: CustomerSecrets = NO_SECRETS,
    *,
    copy_limit_bytes: int = COPY_LIMIT_BYTES,
) -> KeyringSnapshot:
    """Bring an object to the state of a keyring read that began after its last change.

    Returns that keyring read. `secrets` were given for an earlier one.

    Raises:
        CorruptObjectError, NoUsableWrapError, UnknownAlgorithmError: the object is left as it is.
        LockedObjectError, ArchivedObjectError: its lock or archive refuses the change.
        DeletedKeyError: it is a tombstone.
        StorageUnavailableError: the storage failed, the object kept changing, or a rewrap would
            drop its tags, so that only a sweep may do it.
        KeyringRolledBackError, UnknownMasterKeyError, KmsUnavailableError: try again later.
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: a customer secret
            is missing.
    """
    executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
    s3_key = object_s3_key(project, object_key)
    for _ in range(_MAX_ATTEMPTS):
        view = await _read_wrapped_object(storage, s3_key, object_key)
        # This read begins after the object was read, and after any copy of the previous attempt.
        snapshot = await keyrings.read_fresh(project)
        action = await operator_keys.open_with(
            project,
            partial(_plan, view, object_key, snapshot, snapshot.keyring.secrets_from(secrets)),
        )
        if isinstance(action, NoOp):
            return snapshot
        if tags_at_risk(storage, view, action, copy_limit_bytes):
            # If this worker died, no durable note would say which tags to put back. A sweep
            # notes them first, and a transition always starts a sweep.
            raise StorageUnavailableError(
                "this storage drops an object's tags when it is rewrapped: a sweep does that"
            )
        try:
            await executor.execute(project, object_key, view, action, snapshot)
        except (MissingError, PreconditionError, RefusedError):
            continue  # a lost race, or an expired lease: read again
        _log.info("object rewrapped", s3_key=s3_key, generation=snapshot.desired.generation)
    raise StorageUnavailableError("the object kept changing while it was reconciled")


def _plan(
    view: ObjectView,
    object_key: str,
    snapshot: KeyringSnapshot,
    secrets: CustomerSecrets,
    keks: AdminKeks,
) -> PlannedAction:
    keyring, desired = snapshot.keyring, snapshot.desired
    return plan_action(
        view, object_key, keyring, desired, keks.with_secrets(secrets), SweepOptions()
    )


async def _read_wrapped_object(storage: Storage, s3_key: str, object_key: str) -> ObjectView:
    try:
        view = ObjectView(*await storage.read_start(s3_key, HEADER_BYTES))
    except MissingError as exc:
        raise StorageUnavailableError("the object to reconcile is gone") from exc
    except ArchivedError as exc:
        raise ArchivedObjectError("its storage class must be restored first") from exc
    envelope = object_metadata.parse(view.head.metadata)
    if isinstance(envelope, Tombstone):
        raise DeletedKeyError(f"{object_key} was deleted")
    if not isinstance(envelope, Wraps):
        raise CorruptObjectError("the object to reconcile has no wraps")
    return view
