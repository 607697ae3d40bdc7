"""The uploads of a run by number, so that every process can compute them.

Key, id and bytes depend only on the run's name and the number; ids differ between runs.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

SIZE_BYTES = 4096
_NAMESPACE = uuid.UUID("5b1f6c9e-3c0a-4f8e-9d55-2f1d0c7a9b10")


@dataclass(frozen=True)
class Uploads:
    """`count` uploads of `size_bytes` each, of the run `name`."""

    name: str
    count: int
    size_bytes: int = SIZE_BYTES

    @property
    def prefix(self) -> str:
        """The common prefix of all keys."""
        return f"{self.name}/"

    def key(self, number: int) -> str:
        """The object's key."""
        return f"{self.prefix}{number:09}"

    def upload_id(self, number: int) -> str:
        """The upload's id."""
        return str(uuid.uuid5(_NAMESPACE, self.key(number)))

    def body(self, number: int) -> bytes:
        """The plaintext; no two uploads have the same."""
        return hashlib.shake_128(self.key(number).encode()).digest(self.size_bytes)
