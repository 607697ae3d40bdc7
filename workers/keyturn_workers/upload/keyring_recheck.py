"""Whether an upload's object needs another look at the keyring once it is stored (SPEC 7.3). Pure.

An object that exists within a lease of the turn that it missed is brought over by that turn's
sweep: every proof is later than two leases. So a sealed object whose one put was acknowledged
within a lease of the keyring read that it rests on is told at once.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from keyturn_workers.keyring import KeyringSnapshot


@dataclass(frozen=True, slots=True)
class PutResponse:
    """The storage's answer to what stored an object.

    Attributes:
        date: its `Date`; None where it has none.
        agrees: whether that agrees with the storage's clock as this process knows it.
        had_s: when the answer was there, by the process's own clock.
        by_one_put: False of the completion of a multipart upload.
    """

    date: datetime | None
    agrees: bool
    received_s: float
    by_one_put: bool


def exists_within_lease(snapshot: KeyringSnapshot, put: PutResponse, *, sealed: bool) -> bool:
    """Whether no turn can have a proof that missed the object; else the keyring is read again.

    Args:
        snapshot: the keyring read that the object's wraps rest on.
        put: the answer to its put.
        sealed: whether the body is encrypted. Plaintext may be forbidden meanwhile, and no
            sweep encrypts it then.
    """
    lease_s, keyring_lease_s = snapshot.lease_s, snapshot.keyring.lease_s
    if not (sealed and put.by_one_put and put.agrees and snapshot.leased) or put.date is None:
        return False
    # A worker whose lease is longer than any that the record names may be later than its
    # proofs expect. Records of before revision 2 name none.
    if keyring_lease_s is None or lease_s > keyring_lease_s:
        return False
    by_the_storage = put.date - snapshot.read_at < timedelta(seconds=lease_s)
    # A front end whose clock is slow, or that dates an answer before the commit, says less
    # than what passed here.
    return by_the_storage and put.received_s - snapshot.sent_s < lease_s
