"""What a self-copy or a multipart copy would lose is said again, on real servers (SPEC 8.2).

Compared is what a foreign reader sees: every header of the object but the `enc-` metadata
that was turned. What no server here has (KMS, storage classes of AWS's own) is in
`tests/unit/keyturn_workers/storage/test_s3_wire.py`, by the request that is sent.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from keyturn_workers.core.storage_values import Headers, Lease
from tests.integration.storage.conftest import opened
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from mypy_boto3_s3 import S3Client

    from keyturn_workers.core.storage_values import ObjectHead, Part
    from keyturn_workers.storage.s3 import S3Storage
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

KEY = "acme/ü/q3 final.pdf"
PART_BYTES = 5 * 2**20
# Of the answer, not of the object; moto also repeats some headers of the last write.
_ANSWERS_OWN = {
    *("date", "last-modified", "x-amz-request-id", "x-amzn-requestid", "connection", "server"),
    *("content-md5", "x-amz-content-sha256", "x-amz-version-id"),
}
NO_CLASSES = "Ceph's gateway knows STANDARD alone, unless its zone names others"
NO_SSE = "Ceph's gateway needs a key server to encrypt"


@dataclass(frozen=True)
class Case:
    """Something that an object has besides its body."""

    restated: Mapping[str, str]
    metadata: Mapping[str, str]
    content_type: str | None = "application/pdf"
    not_on_ceph: str | None = None


def header(name: str, value: str, not_on_ceph: str | None = None) -> Case:
    return Case({name: value}, {}, not_on_ceph=not_on_ceph)


def metadata(value: str, name: str = "author") -> Case:
    return Case({}, {name: value})


CASES: dict[str, Case] = {
    "no content type": Case({}, {}, None),
    "content type with parameters": Case({}, {}, 'text/plain; charset="utf-8"; x=1'),
    # botocore's signer of URLs drops this very one.
    "content type of a form": Case({}, {}, "application/x-www-form-urlencoded; charset=utf-8"),
    "cache-control": header("cache-control", "max-age=60, private"),
    "content-disposition": header(
        "content-disposition", "attachment; filename=\"q3 final.pdf\"; filename*=UTF-8''q3.pdf"
    ),
    "content-encoding": header("content-encoding", "gzip"),
    "content-language": header("content-language", "de, en"),
    "expires": header("expires", "Tue, 24 Nov 2037 10:00:00 GMT"),
    "expires, no date": header("expires", "never"),
    "website redirect": header("x-amz-website-redirect-location", "/other page"),
    "storage class": header("x-amz-storage-class", "STANDARD_IA", NO_CLASSES),
    "encryption": header("x-amz-server-side-encryption", "AES256", NO_SSE),
    "metadata": Case({}, {"author": "kim", "x-1": "2", "a_b.c": "d"}),
    "metadata in RFC 2047 form": metadata("=?UTF-8?B?w7xuw69jb2Rl?= =?UTF-8?Q?=C3=BC?="),
    "metadata with spaces inside": metadata("two  spaces,   three"),
    "metadata with signs": metadata('a=b&c; "%20+%2B" \\ <x>'),
    "metadata beyond ASCII": metadata("ünï 日本語"),
    "long metadata": metadata("x" * 1500),
    "everything": Case(
        {
            "cache-control": "no-store",
            "content-disposition": "inline",
            "content-encoding": "br",
            "content-language": "de",
            "expires": "Tue, 24 Nov 2037 10:00:00 GMT",
            "x-amz-website-redirect-location": "https://example.org/",
        },
        {"author": "kim", "note": "=?utf-8?q?=C3=BC?="},
        "text/html",
    ),
}


@pytest.fixture(params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the real servers."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@dataclass(frozen=True)
class Opened:
    """A bucket from our side and from a foreign reader's."""

    storage: S3Storage
    client: S3Client
    bucket: str

    def seen(self) -> dict[str, str]:
        """The object's headers as a foreign reader sees them, without `enc-` metadata."""
        answer = self.client.head_object(Bucket=self.bucket, Key=KEY)["ResponseMetadata"]
        return {
            name: value
            for name, value in answer["HTTPHeaders"].items()
            if name not in _ANSWERS_OWN and not name.startswith("x-amz-meta-enc-")
        }

    def body(self) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=KEY)["Body"].read()


@asynccontextmanager
async def on(server: S3Server, *, locks: bool = False) -> AsyncIterator[Opened]:
    bucket = f"keyturn-{token_hex(6)}"
    with closing(sync_client(server)) as client:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locks)
        async with opened(server, bucket) as storage:
            yield Opened(storage, client, bucket)


async def written(storage: S3Storage, headers: Headers, *, multipart: bool) -> bytes:
    if not multipart:
        await storage.put(KEY, b"body", headers)
        return b"body"
    bodies = [b"1" * PART_BYTES, b"2"]
    upload_id = await storage.create_multipart(KEY, headers)
    parts = [await storage.upload_part(KEY, upload_id, n, b) for n, b in enumerate(bodies, 1)]
    await storage.complete_multipart(KEY, upload_id, parts)
    return b"".join(bodies)


def turned(head: ObjectHead) -> Headers:
    """All that the object has, with other wraps."""
    kept = {name: value for name, value in head.metadata.items() if not name.startswith("enc-")}
    new = {"enc-algo": "Cobblestone-256", "enc-dek-user": "new"}
    return Headers({**kept, **new}, head.headers.content_type, head.headers.restated)


async def self_copy(storage: S3Storage) -> ObjectHead:
    head, _ = await storage.read_start(KEY, 56)
    lease = Lease(head.date, 60)
    await storage.copy_onto_itself(KEY, turned(head), source_etag=head.etag, lease=lease)
    return head


async def multipart_copy(storage: S3Storage) -> ObjectHead:
    head, _ = await storage.read_start(KEY, 56)
    upload_id = await storage.create_multipart(KEY, turned(head))
    parts: list[Part] = []
    for first in range(0, head.size_bytes, PART_BYTES):
        last = min(first + PART_BYTES, head.size_bytes) - 1
        number = len(parts) + 1
        parts.append(
            await storage.copy_part(
                KEY, upload_id, number, first=first, last=last, source_etag=head.etag
            )
        )
    lease = Lease(head.date, 60)
    await storage.complete_multipart(KEY, upload_id, parts, lease=lease)
    return head


def without_etag(seen: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in seen.items() if name != "etag"}


@pytest.mark.parametrize("multipart", [False, True], ids=["single", "multipart"])
@pytest.mark.parametrize("name", CASES)
async def test_a_self_copy(server: S3Server, name: str, *, multipart: bool) -> None:
    """Nothing but the wraps is another than before."""
    case = CASES[name]
    if server.kind == "ceph" and case.not_on_ceph:
        pytest.skip(case.not_on_ceph)
    old = {**case.metadata, "enc-algo": "AES-256-GCM", "enc-dek-user": "old", "enc-old": "1"}
    headers = Headers(old, case.content_type, case.restated)
    async with on(server) as bucket:
        body = await written(bucket.storage, headers, multipart=multipart)
        before = bucket.seen()
        head = await self_copy(bucket.storage)
        assert {n: head.headers.restated.get(n) for n in case.restated} == case.restated
        after = bucket.seen()
        if multipart and server.kind == "moto":  # FACTS: it becomes a plain MD5
            assert after["etag"] != before["etag"]
            before, after = without_etag(before), without_etag(after)
        assert after == before
        assert bucket.body() == body
        copied = await bucket.storage.head(KEY)
        new = {"enc-algo": "Cobblestone-256", "enc-dek-user": "new"}
        assert copied.metadata == {**case.metadata, **new}
        assert (copied.headers.content_type, copied.headers.restated) == (
            head.headers.content_type,
            head.headers.restated,
        )


@pytest.mark.parametrize("name", CASES)
async def test_a_multipart_copy(server: S3Server, name: str) -> None:
    """The same above the copy limit, where all of it is said when the upload begins."""
    case = CASES[name]
    if server.kind == "ceph" and case.not_on_ceph:
        pytest.skip(case.not_on_ceph)
    headers = Headers({**case.metadata, "enc-old": "1"}, case.content_type, case.restated)
    async with on(server) as bucket:
        body = await written(bucket.storage, headers, multipart=True)
        before = bucket.seen()
        await multipart_copy(bucket.storage)
        assert without_etag(bucket.seen()) == without_etag(before)
        assert bucket.body() == body
        new = {"enc-algo": "Cobblestone-256", "enc-dek-user": "new"}
        assert (await bucket.storage.head(KEY)).metadata == {**case.metadata, **new}


@pytest.mark.parametrize("way", ["self-copy", "multipart"])
async def test_tags(server: S3Server, way: str) -> None:
    """Ceph's gateway drops them, and every server with a multipart copy: they are put back."""
    tags = {"team": "a b", "x": "ü+=", "empty": ""}
    async with on(server) as bucket:
        await written(bucket.storage, Headers({}), multipart=True)
        await bucket.storage.write_tags(KEY, tags)
        copy = self_copy if way == "self-copy" else multipart_copy
        head = await copy(bucket.storage)
        assert head.tag_count == 3
        kept = server.kind == "moto" and way == "self-copy"
        assert await bucket.storage.read_tags(KEY) == (tags if kept else {})
        await bucket.storage.write_tags(KEY, tags)
        assert await bucket.storage.read_tags(KEY) == tags
        metadata = (await bucket.storage.head(KEY)).metadata
        assert metadata == {"enc-algo": "Cobblestone-256", "enc-dek-user": "new"}


LOCKS = {
    "hold": {"x-amz-object-lock-legal-hold": "ON"},
    "retention": {
        "x-amz-object-lock-mode": "GOVERNANCE",
        "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00Z",
    },
    "both": {
        "x-amz-object-lock-legal-hold": "ON",
        "x-amz-object-lock-mode": "COMPLIANCE",
        "x-amz-object-lock-retain-until-date": "2099-01-01T12:30:00Z",
    },
}


@pytest.mark.parametrize("name", LOCKS)
async def test_a_locked_object(server: S3Server, name: str) -> None:
    """The version that a self-copy makes is locked as the one before it was."""
    async with on(server, locks=True) as bucket:
        await bucket.storage.put(KEY, b"body", Headers({}, None, LOCKS[name]))
        before = bucket.seen()
        assert LOCKS[name].keys() <= before.keys()
        head = await self_copy(bucket.storage)
        assert head.locked
        copied = await bucket.storage.head(KEY)
        assert copied.locked
        assert copied.version_id != head.version_id
        assert bucket.seen() == before


async def test_a_locked_object_above_the_copy_limit(server: S3Server) -> None:
    """Neither server takes a lock with a multipart upload, so a caller has to look."""
    async with on(server, locks=True) as bucket:
        await bucket.storage.put(KEY, b"body", Headers({}, None, LOCKS["hold"]))
        await multipart_copy(bucket.storage)
        assert not (await bucket.storage.head(KEY)).locked


async def test_metadata_that_is_no_utf8(ceph: S3Server) -> None:
    """A foreign writer's Latin-1, which Ceph's gateway returns in its own form, stays so."""
    async with on(ceph) as bucket:
        # Nothing in Python sends such bytes but http.client, which needs a signed address.
        address = bucket.client.generate_presigned_url(
            "put_object", Params={"Bucket": bucket.bucket, "Key": KEY}
        )
        url = urlsplit(address)
        with closing(HTTPConnection(url.netloc)) as connection:
            target = f"{url.path}?{url.query}"
            connection.request("PUT", target, b"body", {"x-amz-meta-author": "Ren\xe9"})
            assert connection.getresponse().status == 200
        before = bucket.seen()
        assert before["x-amz-meta-author"].isascii()
        await self_copy(bucket.storage)
        assert bucket.seen() == before
