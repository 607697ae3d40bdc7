"""The headers of copies, for features that no test server has (SPEC 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.storage import Headers, Lease
from keyturn_workers.storage.s3_wire import RESTATED
from tests.unit.keyturn_workers.storage.scripted_server import ETAG, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from keyturn_workers.storage.s3 import S3Storage
    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer

COPIED = b"<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>"
BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
EMPTY_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="

# As AWS returns them for an object, and accepts them in a copy.
KMS = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:eu-central-1:1:key/a-b",
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
}
LOCK = {
    "x-amz-object-lock-legal-hold": "ON",
    "x-amz-object-lock-mode": "COMPLIANCE",
    "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00.000Z",
}
OBJECT_HEADERS = {
    "storage class": {"x-amz-storage-class": "INTELLIGENT_TIERING"},
    "archive class": {"x-amz-storage-class": "GLACIER"},
    "encrypted under a key": KMS,
    "locked": LOCK,
    "everything": {
        **KMS,
        **LOCK,
        "cache-control": "no-store",
        "content-disposition": "inline",
        "content-encoding": "br",
        "content-language": "de",
        "expires": "never",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-website-redirect-location": "/other",
    },
}


def test_everything_is_everything() -> None:
    """A header that is restated and not in the table would go untested."""
    assert OBJECT_HEADERS["everything"].keys() == RESTATED


@pytest.mark.parametrize("name", OBJECT_HEADERS)
async def test_a_self_copy_sends_what_was_given(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """Each header unchanged and signed, with the new metadata; a lock with its digest."""
    object_headers = OBJECT_HEADERS[name]
    response_headers = {
        **object_headers,
        "Content-Type": "text/x",
        "x-amz-meta-author": "kim",
        "x-amz-meta-enc-a": "1",
    }
    server.script = [Reply(200, b"start", response_headers), Reply(200, COPIED)]
    head, _ = await storage.read_start("a/k", 56)
    replaced = Headers(
        {"author": "kim", "enc-a": "2"}, head.headers.content_type, head.headers.restated
    )
    await storage.copy_onto_itself("a/k", replaced, source_etag=ETAG, lease=Lease(head.date, 15))
    request = server.requests[1]
    assert {name: request.headers.get(name) for name in object_headers} == object_headers
    assert request.headers["content-type"] == "text/x"
    assert request.headers["x-amz-meta-author"] == "kim"
    assert request.headers["x-amz-meta-enc-a"] == "2"
    assert request.headers["x-amz-metadata-directive"] == "REPLACE"
    digest = EMPTY_MD5 if LOCK.keys() <= object_headers.keys() else None
    assert request.headers.get("content-md5") == digest
    signed = request.target.partition("X-Amz-SignedHeaders=")[2].partition("&")[0].split("%3B")
    assert object_headers.keys() <= set(signed)


@pytest.mark.parametrize("name", OBJECT_HEADERS)
async def test_a_multipart_copy_restates_headers_when_it_is_created(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """Not with its parts, where S3 would refuse them."""
    object_headers = OBJECT_HEADERS[name]
    copied = b"<CopyPartResult><ETag>&quot;p&quot;</ETag></CopyPartResult>"
    server.script = [Reply(200, BEGUN), Reply(200, copied)]
    upload_id = await storage.create_multipart(
        "a/k", Headers({"enc-a": "2"}, "text/x", object_headers)
    )
    await storage.copy_part("a/k", upload_id, 1, first=0, last=9, source_etag=ETAG)
    begun, part = server.requests
    assert {name: begun.headers.get(name) for name in object_headers} == object_headers
    assert begun.headers["x-amz-meta-enc-a"] == "2"
    assert object_headers.keys().isdisjoint(part.headers)
    assert part.headers["x-amz-copy-source-range"] == "bytes=0-9"
    assert part.headers["x-amz-copy-source-if-match"] == ETAG


async def test_an_empty_put_has_its_digest(server: ScriptedServer, storage: S3Storage) -> None:
    """A bucket that locks by default refuses a put without one, and a tombstone must be stored."""
    await storage.put("a/k", b"", Headers({"enc-algo": "deleted"}))
    assert server.requests[0].headers["content-md5"] == EMPTY_MD5


@pytest.mark.parametrize("status", [200, 403])
async def test_an_archived_source_is_an_error(
    server: ScriptedServer, storage: S3Storage, status: int
) -> None:
    """Reported at once or inside a 200; never retried."""
    server.script = [Reply(status, b"<Error><Code>InvalidObjectState</Code></Error>")] * 2
    lease = Lease((await _date(storage, server)), 15)
    with pytest.raises(ArchivedError):
        await storage.copy_onto_itself("a/k", Headers({}), source_etag=ETAG, lease=lease)


async def _date(storage: S3Storage, server: ScriptedServer) -> datetime:
    server.script.insert(0, Reply())
    return (await storage.head("a/k")).date


async def test_an_archived_object_is_not_read(server: ScriptedServer, storage: S3Storage) -> None:
    """Its head can be read, its bytes cannot; there is no second attempt."""
    server.script = [Reply(403, b"<Error><Code>InvalidObjectState</Code></Error>")]
    with pytest.raises(ArchivedError):
        await storage.read_start("a/k", 56)
    assert len(server.requests) == 1
    server.script = [Reply(200, headers={"x-amz-storage-class": "DEEP_ARCHIVE"})]
    assert (await storage.head("a/k")).archived


async def test_a_version_is_requested_by_its_id(server: ScriptedServer, storage: S3Storage) -> None:
    """In the query of the GET, and of the HEAD of an empty object."""
    server.script = [
        Reply(416, b"<Error><Code>InvalidRange</Code></Error>"),
        Reply(200, headers={"x-amz-version-id": "a+b/c"}),
    ]
    head, start = await storage.read_start("a/k", 56, version_id="a+b/c")
    assert (head.version_id, start) == ("a+b/c", b"")
    assert [request.method for request in server.requests] == ["GET", "HEAD"]
    assert all(request.target.endswith("/a/k?versionId=a%2Bb%2Fc") for request in server.requests)


async def test_a_delete_marker_is_missing(server: ScriptedServer, storage: S3Storage) -> None:
    """AWS responds 405 if one is read by its version id."""
    refused = b"<Error><Code>MethodNotAllowed</Code></Error>"
    server.script = [Reply(405, refused, {"x-amz-delete-marker": "true"})]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56, version_id="m")


@pytest.mark.parametrize(
    ("given", "sent"), [(None, "binary/octet-stream"), ("text/html", "text/html")]
)
async def test_a_put_always_has_a_content_type(
    server: ScriptedServer, storage: S3Storage, given: str | None, sent: str
) -> None:
    """Without one SeaweedFS stores an empty object when a connection is lost."""
    stored = Reply(200, b"", {"ETag": f'"{ETAG}"'})
    server.script = [stored, stored, Reply(200, BEGUN)]
    headers = Headers({}, given)
    await storage.put("a/k", b"body", headers)
    await storage.put_stream("a/k", _body(), 4, headers)
    await storage.create_multipart("a/k", headers)
    assert [each.headers["content-type"] for each in server.requests] == [sent] * 3


async def _body() -> AsyncIterator[bytes]:
    yield b"body"
