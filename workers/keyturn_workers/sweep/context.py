"""What the parts of a sweep share (SPEC 8)."""

from dataclasses import dataclass

from keyturn_workers.keyring import KeyringReader
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.store import SweepStore


@dataclass(frozen=True, slots=True)
class SweepContext:
    """The bucket, its keyrings and keys, the sweeps' records, and what sweeps publish."""

    storage: Storage
    keyrings: KeyringReader
    keys: OperatorKeys
    store: SweepStore
    outbox: Outbox
