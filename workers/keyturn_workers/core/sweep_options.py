"""The options of a sweep, from its request to the plan of each object (SPEC 6.6). Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Options of a sweep, beyond the desired state of the project.

    `master_key` is the one that the keyring must be under. After `encrypt_plaintext`, plaintext is
    forbidden. `repair` mends wraps, and accepts earlier user KEKs.
    """

    master_key: str | None = None
    encrypt_plaintext: bool = False
    repair: bool = False
