"""What a write rests on, looked at again: the desired state, and why it was refused (SPEC 8.4)."""

from datetime import timedelta

from keyturn_workers.errors import PreconditionError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.storage import Head, Lease, Storage


async def recheck_state(keyrings: KeyringReader, snapshot: KeyringSnapshot) -> KeyringSnapshot:
    """A keyring read begun now, with the lease that it gives.

    Raises:
        PreconditionError: it shows another state than the one that the wraps were made for.
    """
    now = await keyrings.read_fresh(snapshot.desired.project)
    if not now.desired.same_state(snapshot.desired):
        raise PreconditionError("the desired state moved")
    return now


async def check_unchanged(storage: Storage, s3_key: str, head: Head) -> None:
    """Look once more at an object that was read a while ago.

    Raises:
        PreconditionError: its body or its metadata are others now.
        MissingError: it is gone.
    """
    now = await storage.head(s3_key)
    if now.etag != head.etag or now.metadata != head.metadata:
        raise PreconditionError("the object changed since it was looked at")


async def is_lock_refusal(storage: Storage, s3_key: str, head: Head, lease: Lease) -> bool:
    """Whether a refused write was refused by the object's lock, and not for being late.

    The answer is the same 403. By the storage's clock after it, the write came in time or
    may not have; the doubtful case is tried again under a new lease.
    """
    if not head.locked:
        return False
    now = await storage.head(s3_key)
    return now.date <= lease.read_at + timedelta(seconds=lease.expires_s)
