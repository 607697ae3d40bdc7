"""A keyring as one read showed it, and the lease that the read gives (SPEC 8.4). Pure."""

from dataclasses import dataclass
from datetime import datetime

from keyturn.errors import StorageUnavailableError
from keyturn_workers.keyring.model import DesiredState, Keyring
from keyturn_workers.storage import Lease


@dataclass(frozen=True, slots=True)
class KeyringSnapshot:
    """A keyring as one read showed it.

    Attributes:
        keyring: What the record says.
        desired: The desired state that it defines.
        etag: The record's, for a conditional change.
        read_at: The response's `Date`. Informational; a write that relies on it uses `lease`.
        sent_s: When the read was sent, by the process's own clock.
        lease_s: This process's lease, in seconds.
        leased: Whether the read gives a lease: it was prompt, and its `Date` agrees with the
            storage's clock as this process knows it (SPEC 8.4).
        proves: Whether its date may prove what was seen after it: it gives a lease, and this
            process has known the storage's clock for two leases.
    """

    keyring: Keyring
    desired: DesiredState
    etag: str
    read_at: datetime
    sent_s: float
    lease_s: int
    leased: bool
    proves: bool

    @property
    def lease(self) -> Lease:
        """What fences writes that rely on this read; its date may also be a `turned_at`.

        It is no longer than the keyring names: proofs and deletes wait for that long. A sweep
        worker whose lease is longer writes that into the keyring first (SPEC 8.4).

        Raises:
            StorageUnavailableError: the read gives no lease: read again.
        """
        if not self.leased:
            raise StorageUnavailableError(
                "the keyring read gives no lease: it was slow, or the storage's clock differs"
            )
        named_s = self.keyring.lease_s or self.lease_s
        return Lease(self.read_at, min(self.lease_s, named_s))
