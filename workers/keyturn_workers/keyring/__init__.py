"""The keyring: what a project's objects must be wrapped under (SPEC 5)."""

from keyturn_workers.keyring.cache import KeyringSnapshot
from keyturn_workers.keyring.marks import (
    KeyringContradictedError,
    KeyringHiddenError,
    KeyringRemovedError,
    KeyringUnknownError,
    Mark,
    MarkState,
    MarkTable,
    Witness,
)
from keyturn_workers.keyring.model import (
    DesiredState,
    Generation,
    Keyring,
    check_rotation,
    find_generation,
    find_generation_number,
    forbid_plaintext,
    has_origin,
    is_same_request,
    retire_old_keys,
    rotate,
    rotations_to_prove,
    with_evidence,
    with_master_key,
)
from keyturn_workers.keyring.reader import KeyringReader
from keyturn_workers.keyring.store import (
    KEYRING_MAX_BYTES,
    create_keyring,
    delete_older_versions,
    parse_keyring,
    replace_keyring,
)

__all__ = [
    "KEYRING_MAX_BYTES",
    "DesiredState",
    "Generation",
    "Keyring",
    "KeyringContradictedError",
    "KeyringHiddenError",
    "KeyringReader",
    "KeyringRemovedError",
    "KeyringSnapshot",
    "KeyringUnknownError",
    "Mark",
    "MarkState",
    "MarkTable",
    "Witness",
    "check_rotation",
    "create_keyring",
    "delete_older_versions",
    "find_generation",
    "find_generation_number",
    "forbid_plaintext",
    "has_origin",
    "is_same_request",
    "parse_keyring",
    "replace_keyring",
    "retire_old_keys",
    "rotate",
    "rotations_to_prove",
    "with_evidence",
    "with_master_key",
]
