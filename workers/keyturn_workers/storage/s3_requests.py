"""What S3 requests contain: headers, queries and bodies (SPEC 8.2, 8.4).

Pure functions; `keyturn_workers.storage.s3_responses` is their counterpart.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from keyturn_workers.storage.port import Condition, Headers, IfAbsent, IfMatch, Part
from keyturn_workers.storage.s3_responses import META_PREFIX

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
# S3 requires a digest of the body, even of an empty one, if the request sets a lock or the bucket
# locks by default.
EMPTY_MD5: Final = b64encode(hashlib.md5(b"", usedforsecurity=False).digest()).decode()


# S3's own default. It is always sent: for a put without a content type, SeaweedFS guesses one from
# the body, and takes a connection that closes before the first byte for the end of an empty body,
# whatever condition the put has. (A signed hash of the body does not help: it is not compared.)
DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"


def object_headers(headers: Headers, condition: Condition | None) -> dict[str, str]:
    """The headers of a request that writes an object or its metadata."""
    request_headers = dict(headers.restated)
    request_headers["content-type"] = headers.content_type or DEFAULT_CONTENT_TYPE
    for name, value in headers.metadata.items():
        request_headers[META_PREFIX + name] = value
    request_headers.update(condition_headers(condition))
    return request_headers


def condition_headers(condition: Condition | None) -> Mapping[str, str]:
    """The condition of a write. ETags go without quotes: Ceph's gateway accepts no others."""
    match condition:
        case None:
            return {}
        case IfAbsent():
            return {"if-none-match": "*"}
        case IfMatch(etag):
            return {"if-match": etag}


def part_query(upload_id: str, number: int) -> str:
    """The query of a request for one part, percent-encoded."""
    return f"partNumber={number}&uploadId={quote(upload_id, safe='')}"


def completion_body(parts: Sequence[Part]) -> bytes:
    """The XML that lists the parts of a multipart upload."""
    rows = "".join(
        f'<Part><PartNumber>{part.number}</PartNumber><ETag>"{part.etag}"</ETag></Part>'
        for part in parts
    )
    name = "CompleteMultipartUpload"
    return f'<{name} xmlns="{_NAMESPACE}">{rows}</{name}>'.encode()


def tagging_body(tags: Mapping[str, str]) -> bytes:
    """The XML that lists an object's tags."""
    rows = "".join(
        f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
        for name, value in tags.items()
    )
    return f'<Tagging xmlns="{_NAMESPACE}"><TagSet>{rows}</TagSet></Tagging>'.encode()


def upload_query(upload_id: str) -> str:
    """The query of a request for a whole multipart upload, percent-encoded."""
    return f"uploadId={quote(upload_id, safe='')}"


def version_query(version_id: str | None) -> str:
    """The query of a read of one version, percent-encoded; empty for the latest."""
    return "" if version_id is None else f"versionId={quote(version_id, safe='')}"
