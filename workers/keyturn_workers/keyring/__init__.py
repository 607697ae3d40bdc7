"""The keyring: what a project's objects must be wrapped under (SPEC 5)."""

from keyturn_workers.keyring.model import DesiredState, Generation, Keyring
from keyturn_workers.keyring.reader import KeyringReader, KeyringSnapshot
from keyturn_workers.keyring.store import change, create, forget_older
from keyturn_workers.keyring.transitions import (
    brought_by,
    check_turn,
    entry_of,
    forbidden_plaintext,
    is_brought_by_this,
    is_same_request,
    resealed,
    settled,
    turned,
)

__all__ = [
    "DesiredState",
    "Generation",
    "Keyring",
    "KeyringReader",
    "KeyringSnapshot",
    "brought_by",
    "change",
    "check_turn",
    "create",
    "entry_of",
    "forbidden_plaintext",
    "forget_older",
    "is_brought_by_this",
    "is_same_request",
    "resealed",
    "settled",
    "turned",
]
