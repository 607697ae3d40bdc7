"""A put whose connection is lost stores nothing, on every server (SPEC 7.2, 10).

SeaweedFS guesses a missing content type from the body, and then takes the lost connection for the
end of an empty body. So each put has a content type, and where the body is at hand its MD5.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from keyturn.crypto import Sealer
from keyturn.errors import StorageUnavailableError
from keyturn.publisher.staging import PART_BYTES, Staging
from keyturn.s3 import open_client
from keyturn_workers.core.storage_values import Headers, IfAbsent, Lease
from keyturn_workers.storage.credentials import Credentials
from keyturn_workers.storage.signing import Signer
from tests.integration.storage.conftest import opened, settings_for
from tests.support.cutting_proxies import cutting_requests
from tools.servers import new_bucket as create_bucket
from tools.servers.s3 import S3Server, sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from keyturn_workers.storage.s3 import S3Storage

pytestmark = pytest.mark.servers

BODY = os.urandom(300_000)
PLAIN = Headers({"enc-upload": "x"})
TYPED = Headers({}, "text/html")
KEY = "acme/cut"
CUTS = [0, 1, 150_000]


def lease() -> Lease:
    return Lease(datetime.now(UTC), 60)


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(BODY), 100_000):
        yield BODY[start : start + 100_000]


def forms(storage: S3Storage) -> dict[str, Awaitable[object]]:
    """Each form in which a worker puts an object or a record, to a key of its own."""
    created: dict[str, Any] = {"condition": IfAbsent(), "lease": lease()}
    size = len(BODY)
    return {
        "put": storage.put("acme/put", BODY, PLAIN, **created),
        "typed": storage.put("acme/typed", BODY, TYPED, **created),
        "record": storage.put("acme/record", BODY, PLAIN, condition=IfAbsent()),
        "unconditional": storage.put("acme/unconditional", BODY, PLAIN),
        "stream": storage.put_stream("acme/stream", pieces(), size, PLAIN, **created),
        "typed stream": storage.put_stream("acme/typed-stream", pieces(), size, TYPED, **created),
        "bare stream": storage.put_stream("acme/bare-stream", pieces(), size, PLAIN),
    }


SERVERS = ("seaweedfs", "seaweedfs versioned", "ceph")


@pytest.fixture(scope="module", params=SERVERS)
def bucket(request: pytest.FixtureRequest) -> tuple[S3Server, str]:
    """A server, and a bucket there."""
    name, _, versioned = request.param.partition(" ")
    server: S3Server = request.getfixturevalue(name)
    made = create_bucket(server)
    if versioned:
        with closing(sync_client(server)) as client:
            client.put_bucket_versioning(Bucket=made, VersioningConfiguration={"Status": "Enabled"})
    return server, made


@asynccontextmanager
async def cut(
    bucket: tuple[S3Server, str], body_bytes: int
) -> AsyncIterator[tuple[S3Storage, S3Storage]]:
    """The bucket twice: by a proxy that cuts off bodies, and directly."""
    server, name = bucket
    async with cutting_requests(server.endpoint_url, body_bytes) as url:
        cut_server = replace(server, endpoint_url=url)
        async with opened(cut_server, name) as cutting, opened(server, name) as storage:
            yield cutting, storage


@pytest.mark.parametrize("body_bytes", CUTS)
async def test_nothing_is_stored(bucket: tuple[S3Server, str], body_bytes: int) -> None:
    """By no form, under a condition or without: no object, and no version of one."""
    async with cut(bucket, body_bytes) as (cutting, storage):
        under_way = forms(cutting)
        results = await asyncio.gather(*under_way.values(), return_exceptions=True)
        for form, result in zip(under_way, results, strict=True):
            assert isinstance(result, StorageUnavailableError), (form, result)
        assert [row async for row in storage.list("acme/")] == []
        assert [row async for row in storage.list_versions("acme/")] == []


async def test_a_part_is_not_stored(bucket: tuple[S3Server, str]) -> None:
    """A multipart upload has no part of a body that was cut."""
    server, name = bucket
    async with cut(bucket, 0) as (cutting, storage):
        upload_id = await storage.create_multipart(KEY, PLAIN)
        with pytest.raises(StorageUnavailableError):
            await cutting.upload_part(KEY, upload_id, 1, BODY)
        with closing(sync_client(server)) as client:
            listed = client.list_parts(Bucket=name, Key=KEY, UploadId=upload_id)
        assert listed.get("Parts", []) == []
        await storage.abort_multipart(KEY, upload_id)


async def test_a_staged_body_is_not_stored(bucket: tuple[S3Server, str]) -> None:
    """A publisher gets an error, and leaves nothing in staging: in one put, or in parts."""
    server, name = bucket
    async with opened(server, name) as storage, cutting_requests(server.endpoint_url, 0) as url:
        settings = settings_for(replace(server, endpoint_url=url), name)
        async with open_client(settings, max_connections=4) as client:
            staging = Staging(client, name)
            for size_bytes in (300_000, PART_BYTES + 1):
                sealer = Sealer(bytes(32), b"context")
                with pytest.raises(StorageUnavailableError):
                    await staging.put(
                        f".keyturn/staging/api/{size_bytes}",
                        sealer,
                        bytearray(size_bytes),
                        _nothing(),
                    )
        assert [row async for row in storage.list(".keyturn/")] == []


async def _nothing() -> AsyncIterator[memoryview]:
    pieces: list[memoryview] = []
    for piece in pieces:
        yield piece


async def test_what_this_is_for(seaweedfs: S3Server) -> None:
    """The same put without a content type stores an empty object, whatever its condition says."""
    name = create_bucket(seaweedfs)
    settings = settings_for(seaweedfs, name)
    assert settings.s3_access_key_id is not None
    assert settings.s3_secret_access_key is not None
    secret = settings.s3_secret_access_key.get_secret_value()
    signer = Signer(f"{seaweedfs.endpoint_url}/{name}/", seaweedfs.region)
    signed = signer.sign(
        "PUT",
        KEY,
        {"if-none-match": "*"},
        credentials=Credentials(settings.s3_access_key_id, secret, None),
        lease=lease(),
    )
    at = urlsplit(seaweedfs.endpoint_url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"PUT {signed.target} HTTP/1.1\r\nhost: {at.netloc}\r\ncontent-length: 300000\r\n"
    writer.write(f"{head}if-none-match: *\r\n\r\n".encode())
    writer.write_eof()
    await reader.read()
    writer.close()
    async with opened(seaweedfs, name) as storage:
        stored_head, body = await storage.read(KEY)
    assert (stored_head.size_bytes, body) == (0, b"")
