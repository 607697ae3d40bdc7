"""The keyring snapshot that a sweep works by (SPEC 6.6)."""

from dataclasses import replace

from keyturn_workers.keyring import KeyringSnapshot, with_master_key
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.sweep.plan import SweepRequest


async def effective_snapshot(
    request: SweepRequest, snapshot: KeyringSnapshot, keys: OperatorKeys
) -> KeyringSnapshot:
    """The given snapshot, except that a dry run counts by the master key that it names.

    Raises:
        UnknownMasterKeyError: this process lacks that master key.
        KmsUnavailableError: its provider is away.
    """
    if not request.dry_run or request.master_key in (None, snapshot.keyring.master_key):
        return snapshot
    keyring = with_master_key(snapshot.keyring, str(request.master_key))
    admin_kek = await keys.admin_kek(keyring.master_key, keyring.project)
    return replace(snapshot, keyring=keyring, desired=keyring.desired(admin_kek))
