"""One read of a keyring, and its lease (SPEC 7.3, 8.4). No I/O."""

from dataclasses import dataclass
from datetime import datetime

from keyturn.errors import (
    StorageUnavailableError,
)
from keyturn_workers.core.keyring import DesiredState, Keyring
from keyturn_workers.core.storage_values import Lease


@dataclass(frozen=True, slots=True)
class KeyringSnapshot:
    """A keyring as one read showed it.

    `etag` is for a conditional change of the record. `read_at` is the response's `Date`, for
    information only: a write that relies on it uses `lease`. `sent_s` is the time of sending, by
    the process's own clock; `lease_s` is this process's lease in seconds. `leased` means that the
    read gives a lease: it was prompt, and its `Date` agrees with the storage's clock as this
    process knows it (SPEC 8.4). `proves` means that its date may prove later observations: it
    gives a lease, and this process has known the storage's clock for two leases.
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
        """The fence for writes that rely on this read; its date may also be a `turned_at`.

        Never longer than the keyring's `lease_s`: proofs and deletes wait for that long. A sweep
        worker with a longer lease writes it into the keyring first (SPEC 8.4).

        Raises:
            StorageUnavailableError: the read gives no lease: read again.
        """
        if not self.leased:
            raise StorageUnavailableError(
                "the keyring read gives no lease: it was slow, or the storage's clock differs"
            )
        named_s = self.keyring.lease_s or self.lease_s
        return Lease(self.read_at, min(self.lease_s, named_s))
