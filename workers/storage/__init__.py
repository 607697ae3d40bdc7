"""S3 behind one small port (SPEC 10)."""

from workers.storage.differences import Differences
from workers.storage.port import (
    Condition,
    Head,
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    Listed,
    OpenMultipart,
    Part,
    Storage,
    Stream,
    Version,
    Versioning,
)

__all__ = [
    "Condition",
    "Differences",
    "Head",
    "Headers",
    "IfAbsent",
    "IfMatch",
    "Lease",
    "Listed",
    "OpenMultipart",
    "Part",
    "Storage",
    "Stream",
    "Version",
    "Versioning",
]
