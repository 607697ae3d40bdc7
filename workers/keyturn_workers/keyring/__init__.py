"""The keyring: what a project's objects must be wrapped under (SPEC 5).

| module | what it holds |
| --- | --- |
| `model` | a keyring as a value, and its changes. Pure |
| `store` | opens and writes keyrings, always by conditional put |
| `sealed_records` | sealed JSON in the bucket: keyrings, and records of sweeps |
| `reader`, `cache` | reads shared by a process, and what it remembers of them |
| `marks` | marks, and how a keyring compares with its mark |
| `mark_stream` | the stream of marks on the broker: followed, and added to |
"""

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
