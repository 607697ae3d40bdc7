"""What the modules of a sweep share (SPEC 8)."""

from dataclasses import dataclass
from datetime import timedelta

from keyturn_workers.keyring import KeyringReader
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.dispatcher import SweepDispatcher
from keyturn_workers.sweep.evidence import EvidenceLog
from keyturn_workers.sweep.store import SweepStore


@dataclass(frozen=True, slots=True)
class SweepContext:
    """What the modules of a sweep share.

    Attributes:
        storage: The bucket.
        keyrings: The keyring reads of the process.
        keys: The operator's keys.
        store: The records of sweeps.
        dispatcher: Sends hints and publishes events.
        evidence: The evidence of clean ends.
        keep_for: How long the end of a sweep is kept after it was published.
    """

    storage: Storage
    keyrings: KeyringReader
    keys: OperatorKeys
    store: SweepStore
    dispatcher: SweepDispatcher
    evidence: EvidenceLog
    keep_for: timedelta
