"""The desired state as a sweep takes it (SPEC 6.6, 8.6). Pure; no I/O."""

from collections.abc import Mapping
from dataclasses import replace

from keyturn.crypto import Secret
from keyturn_workers.keyring import KeyringSnapshot, with_master_key
from keyturn_workers.sweep.plan import SweepRequest


def wanted(
    ask: SweepRequest, observed: KeyringSnapshot, master_keys: Mapping[str, Secret]
) -> KeyringSnapshot:
    """The keyring read as the sweep takes it: a dry run counts by the master key it names.

    Raises:
        UnknownMasterKeyError: this process lacks that one.
    """
    if not ask.dry_run or ask.master_key in (None, observed.keyring.master_key):
        return observed
    keyring = with_master_key(observed.keyring, str(ask.master_key))
    return replace(observed, keyring=keyring, desired=keyring.desired(master_keys))
