"""One object: its wraps made, opened and brought to the desired state (SPEC 4, 8.2)."""

from workers.envelope.examine import Examined, examine, verify_own
from workers.envelope.open import OpenedDek, Reader, open_dek
from workers.envelope.wrap import metadata_for, wrap

__all__ = [
    "Examined",
    "OpenedDek",
    "Reader",
    "examine",
    "metadata_for",
    "open_dek",
    "verify_own",
    "wrap",
]
