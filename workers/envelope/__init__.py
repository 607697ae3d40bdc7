"""One object: its wraps made, opened and brought to the desired state (SPEC 4, 8.2)."""

from workers.envelope.census import Stands, stands_under
from workers.envelope.decide import (
    Decision,
    Encrypt,
    Keep,
    Looked,
    Options,
    Reseal,
    Rewrap,
    decide,
)
from workers.envelope.examine import Examined, examine, verify_own
from workers.envelope.keys import OperatorKeys
from workers.envelope.open import OpenedDek, Reader, check_not_rolled_back, open_dek
from workers.envelope.stream import first_bytes
from workers.envelope.unwrap import admin_generation
from workers.envelope.wrap import metadata_for, tombstone_metadata, wrap

__all__ = [
    "Decision",
    "Encrypt",
    "Examined",
    "Keep",
    "Looked",
    "OpenedDek",
    "OperatorKeys",
    "Options",
    "Reader",
    "Reseal",
    "Rewrap",
    "Stands",
    "admin_generation",
    "check_not_rolled_back",
    "decide",
    "examine",
    "first_bytes",
    "metadata_for",
    "open_dek",
    "stands_under",
    "tombstone_metadata",
    "verify_own",
    "wrap",
]
