"""S3 behind one small port (SPEC 10)."""

from keyturn_workers.storage.capabilities import Capabilities
from keyturn_workers.storage.clock import StorageClock
from keyturn_workers.storage.port import (
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
    "Capabilities",
    "Condition",
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
