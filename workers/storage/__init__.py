"""S3 behind one small port (SPEC 10)."""

from workers.storage.clock import StorageClock
from workers.storage.differences import Differences
from workers.storage.port import (
    PAGE_KEYS,
    Condition,
    Head,
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    Listed,
    ListedPage,
    OpenMultipart,
    Part,
    Storage,
    Stream,
    Version,
    Versioning,
    Written,
)

__all__ = [
    "PAGE_KEYS",
    "Condition",
    "Differences",
    "Head",
    "Headers",
    "IfAbsent",
    "IfMatch",
    "Lease",
    "Listed",
    "ListedPage",
    "OpenMultipart",
    "Part",
    "Storage",
    "StorageClock",
    "Stream",
    "Version",
    "Versioning",
    "Written",
]
