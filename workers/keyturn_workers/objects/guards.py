"""Rechecks around a write: the desired state, the object, and why it was refused (SPEC 8.4)."""

from dataclasses import dataclass
from datetime import timedelta

from keyturn_workers.errors import PreconditionError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.storage import Headers, Lease, ObjectHead, Storage


@dataclass(frozen=True, slots=True)
class ObjectWrite:
    """A write that replaces an object.

    Attributes:
        s3_key: of the object.
        head: the object as it was read; the write is conditional on it.
        headers: what the object gets.
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
        raise PreconditionError("the desired state moved")
    return now


async def check_unchanged(storage: Storage, s3_key: str, head: ObjectHead) -> None:
    """Read the head of an object again and compare it with an earlier one.

    Raises:
        PreconditionError: its body or its metadata changed.
        MissingError: it is gone.
    """
    now = await storage.head(s3_key)
    if now.etag != head.etag or now.metadata != head.metadata:
        raise PreconditionError("the object changed since it was read")


async def is_lock_refusal(storage: Storage, s3_key: str, head: ObjectHead, lease: Lease) -> bool:
    """Whether the object's lock refused a write, rather than its expired lease.

    The storage answers both with the same 403. Its clock, read after the answer, shows whether the
    write was in time; a doubtful one is tried again under a new lease.
    """
    if not head.locked:
        return False
    now = await storage.head(s3_key)
    return now.date <= lease.read_at + timedelta(seconds=lease.expires_s)
