"""Requests to the storage, as spans of kind CLIENT by the conventions for S3 (SPEC 8.2, 13).

Of a request its operation, the kind of what it is for and its status are recorded; never its S3
key, its URL or its headers, which hold names and signatures.
"""

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from keyturn.identifiers import (
    EVIDENCE_PREFIX,
    KEYRINGS_PREFIX,
    KEYS_PREFIX,
    STAGING_PREFIX,
)
from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.s3_http import READ_TIMEOUT_S, S3HttpClient, S3Response
from keyturn_workers.storage.streaming_body import KnownLengthBody
from keyturn_workers.tracing.scope import Scope, Value, current_scope, ended

_OPERATIONS: Final = {
    "read": "GetObject",
    "stream": "GetObject",
    "head": "HeadObject",
    "put": "PutObject",
    "copy": "CopyObject",
    "create multipart": "CreateMultipartUpload",
    "upload part": "UploadPart",
    "copy part": "UploadPartCopy",
    "complete multipart": "CompleteMultipartUpload",
    "list": "ListObjectsV2",
    "list versions": "ListObjectVersions",
    "list multiparts": "ListMultipartUploads",
    "abort multipart": "AbortMultipartUpload",
    "delete": "DeleteObject",
    "delete version": "DeleteObject",
    "read tags": "GetObjectTagging",
    "write tags": "PutObjectTagging",
    "versioning": "GetBucketVersioning",
}
_RECORDS: Final = ".keyturn/"
_KINDS: Final = (
    (KEYRINGS_PREFIX, "keyring"),
    (STAGING_PREFIX, "staged body"),
    (EVIDENCE_PREFIX, "evidence"),
    (KEYS_PREFIX, "known text"),
    (_RECORDS, "record"),
)
_STATUS: Final = "http.response.status_code"


def kind_of(s3_key: str) -> str:
    """What an S3 key is for: one of a closed set."""
    if not s3_key:
        return "bucket"
    if not s3_key.startswith(_RECORDS):
        return "object"
    return next(kind for prefix, kind in _KINDS if s3_key.startswith(prefix))


def _attributes(operation: str, s3_key: str) -> dict[str, Value]:
    return {
        "rpc.system.name": "aws-api",
        "rpc.method": operation,
        "keyturn.storage.kind": kind_of(s3_key),
    }


class TracedS3HttpClient(S3HttpClient):
    """Sends signed requests; in a recorded trace, each is a span."""

    def call(
        self,
        operation: str,
        method: str,
        key: str,
        headers: dict[str, str],
        *,
        query: str = "",
        body: bytes = b"",
        lease: Lease | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Coroutine[Any, Any, S3Response]:
        """See `S3HttpClient.call`."""
        # Not `async`: an extra coroutine would slow down each request that is not recorded.
        sending = super().call(
            operation, method, key, headers, query=query, body=body, lease=lease,
            timeout_s=timeout_s,
        )  # fmt: skip
        scope = current_scope()
        return sending if scope is None else _recorded(scope, operation, key, len(body), sending)

    @asynccontextmanager
    async def open_get(
        self, operation: str, key: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """See `S3HttpClient.open_get`. The span lasts until the body was read."""
        scope = current_scope()
        span = trace.INVALID_SPAN if scope is None else _start(scope, operation, key)
        with ended(span):
            async with super().open_get(operation, key, headers) as response:
                span.set_attribute(_STATUS, response.status)
                yield response

    async def put_stream(
        self,
        operation: str,
        key: str,
        headers: dict[str, str],
        body: KnownLengthBody,
        *,
        lease: Lease | None,
    ) -> S3Response:
        """See `S3HttpClient.put_stream`."""
        sending = super().put_stream(operation, key, headers, body, lease=lease)
        scope = current_scope()
        if scope is None:
            return await sending
        return await _recorded(scope, operation, key, body.size_bytes, sending)


async def _recorded(
    scope: Scope,
    operation: str,
    key: str,
    size_bytes: int,
    sending: Coroutine[Any, Any, S3Response],
) -> S3Response:
    span = _start(scope, operation, key)
    if size_bytes:
        span.set_attribute("http.request.body.size", size_bytes)
    with ended(span):
        response = await sending
        span.set_attribute(_STATUS, response.status)
    return response


def _start(scope: Scope, operation: str, key: str) -> Span:
    method = _OPERATIONS.get(operation, "other")
    return scope.start(f"S3.{method}", SpanKind.CLIENT, _attributes(method, key))
