"""S3 behind one small port (SPEC 10).

| module | what it holds |
| --- | --- |
| `port` | the port, its values, and the differences between servers that code depends on |
| `s3`, `s3_listings` | the port on S3: objects, and listings; `s3_http` sends the requests |
| `s3_connections` | HTTP/1.1 connections: each request is sent once, on a clean one |
| `signing` | AWS Signature Version 4 |
| `s3_wire` | what requests contain and responses mean. Pure |
| `listing` | the same for listings. Pure |
| `vendor_errors` | translates exceptions of connections and of botocore |
| `probe` | what the configured bucket does: `keyturn doctor`, and each worker's start |
| `clock` | the storage's clock |
| `streaming_body` | large bodies |
"""

from keyturn_workers.storage.clock import StorageClock
from keyturn_workers.storage.port import (
    PAGE_KEYS,
    Capabilities,
    Condition,
    EntriesPage,
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
    "EntriesPage",
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
