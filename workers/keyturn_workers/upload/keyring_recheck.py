"""Whether an upload must re-read the keyring once its object is stored (SPEC 7.3). Pure.

An object that exists within a lease of the rotation that it missed is covered by that rotation's
sweep: every proof comes later than two leases. So an encrypted object whose one put was
acknowledged within a lease of the keyring read that it rests on needs no second read.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from keyturn_workers.keyring import KeyringSnapshot


@dataclass(frozen=True, slots=True)
class PutResponse:
    """The storage's response to the request that stored an object.

    Attributes:
        date: its `Date`; None if it has none.
        agrees: the date agrees with the storage's clock as this process knows it.
        received_s: when the response arrived, by the process's own clock.
        by_one_put: False for the completion of a multipart upload.
    """

    date: datetime | None
    agrees: bool
    received_s: float
    by_one_put: bool


def exists_within_lease(
    snapshot: KeyringSnapshot, response: PutResponse, *, is_encrypted: bool
) -> bool:
    """Whether no rotation can have a proof that missed the object; if not, re-read the keyring.

    Args:
        snapshot: the keyring read that the object's wraps rest on.
        response: to its put.
        is_encrypted: plaintext may be forbidden meanwhile, and no sweep encrypts it then.
    """
    lease_s, keyring_lease_s = snapshot.lease_s, snapshot.keyring.lease_s
    if not (is_encrypted and response.by_one_put and response.agrees and snapshot.leased):
        return False
    # A worker whose lease is longer than any that the record names may be later than its
    # proofs expect.
    if response.date is None or lease_s > keyring_lease_s:
        return False
    by_storage_clock = response.date - snapshot.read_at < timedelta(seconds=lease_s)
    # A front end whose clock is slow, or that dates a response before the commit, is not
    # enough: the process's own clock must agree.
    return by_storage_clock and response.received_s - snapshot.sent_s < lease_s
