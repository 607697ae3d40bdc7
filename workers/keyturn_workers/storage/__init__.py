"""S3 behind one small port (SPEC 10).

| module | what it holds |
| --- | --- |
| `port` | the port, and its values |
| `s3` | the port on S3; `s3_http` sends what runs for each object, `s3_admin` the rest |
| `s3_session` | the HTTP session: each request is sent once, on a clean connection |
| `signing` | AWS Signature Version 4 |
| `s3_requests`, `s3_responses` | what requests contain and responses mean. Pure |
| `listing`, `entries` | the same for listings. Pure |
| `listing_order` | finds out in which order a server lists, if no probe has measured it |
| `segment_order`, `version_groups` | restore byte order if a server lists by segments |
| `vendor_errors` | the one place that translates errors of aiohttp and botocore |
| `capabilities` | differences between servers that code depends on |
| `probe` | what the configured bucket does: `keyturn doctor`, and each worker's start |
| `clock`, `timekeeper` | the storage's clock |
| `multipart`, `streaming_body` | large bodies |
"""

from keyturn_workers.storage.capabilities import Capabilities
from keyturn_workers.storage.clock import StorageClock
from keyturn_workers.storage.port import (
    PAGE_KEYS,
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
