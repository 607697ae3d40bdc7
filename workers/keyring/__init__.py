"""The keyring: what a project's objects must be wrapped under (SPEC 5)."""

from workers.keyring.reader import KeyringReader, Observed
from workers.keyring.record import Desired, Generation, Keyring
from workers.keyring.store import create

__all__ = ["Desired", "Generation", "Keyring", "KeyringReader", "Observed", "create"]
