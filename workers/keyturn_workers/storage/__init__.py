"""S3 behind one small port (SPEC 10)."""

from keyturn_workers.storage.capabilities import Capabilities
from keyturn_workers.storage.clock import StorageClock
from keyturn_workers.storage.port import (
    PAGE_KEYS,
    Condition,
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    ListingPage,
    MultipartUpload,
    ObjectHead,
    ObjectStream,
    ObjectSummary,
    ObjectVersion,
    Part,
    Storage,
    Versioning,
    WriteResult,
)

__all__ = [
    "PAGE_KEYS",
    "Capabilities",
    "Condition",
    "Headers",
    "IfAbsent",
    "IfMatch",
    "Lease",
    "ListingPage",
    "MultipartUpload",
    "ObjectHead",
    "ObjectStream",
    "ObjectSummary",
    "ObjectVersion",
    "Part",
    "Storage",
    "StorageClock",
    "Versioning",
    "WriteResult",
]
