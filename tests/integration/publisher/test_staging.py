"""Large bodies: staged sealed, in bounded memory, and never left behind (SPEC 6.4)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from keyturn.crypto import Opener, sealed_size, transport_context
from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import staging_s3_key
from keyturn.messages import INLINE_MAX_BYTES, StagedBody
from keyturn.publisher import OutcomeUnknownError, Publisher, staging
from keyturn.settings import S3Settings
from tests.integration.publisher.side import Network, WorkerSide, transport_key, verified
from tools.servers.s3 import S3Server, new_bucket, sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from keyturn.settings import PublisherSettings

MIB = 1024 * 1024


class Bucket:
    """A fresh bucket, looked at from outside."""

    def __init__(self, server: S3Server) -> None:
        self._client = sync_client(server)
        self.name = new_bucket(server)
        self.settings = S3Settings(
            s3_endpoint_url=server.endpoint_url,
            s3_region=server.region,
            s3_bucket=self.name,
            s3_access_key_id=server.access_key_id,
            s3_secret_access_key=SecretStr(server.secret_access_key),
        )

    def keys(self) -> list[str]:
        """Every object's key."""
        listed = self._client.list_objects_v2(Bucket=self.name)
        return [found["Key"] for found in listed.get("Contents", [])]

    def open_uploads(self) -> int:
        """How many multipart uploads are open."""
        return len(self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))

    def chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes."""
        yield from self._client.get_object(Bucket=self.name, Key=key)["Body"].iter_chunks(MIB)


@pytest.fixture(params=["ceph", "moto"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket on each kind of server."""
    return Bucket(request.getfixturevalue(request.param))


@pytest.fixture
def ceph_only(ceph: S3Server) -> Bucket:
    """A bucket on the real server."""
    return Bucket(ceph)


def _digest(message: Any, bucket: Bucket) -> str:
    """Open what was staged as a worker would; the SHA-256 of its plaintext."""
    request = verified(message)
    assert isinstance(request.body, StagedBody)
    key = staging_s3_key("billing", request.upload_id)
    sealed = b"".join(bucket.chunks(key))
    assert len(sealed) == request.body.staged.size
    opener = Opener(transport_key(request), transport_context(request.upload_id), sealed[:56])
    plain = opener.update(sealed[56:])
    return hashlib.sha256(plain + opener.finish()).hexdigest()


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _as_bytes(data: bytes, _: Path) -> Any:
    return data


def _as_path(data: bytes, folder: Path) -> Any:
    path = folder / "body"
    path.write_bytes(data)
    return path


def _as_stream(data: bytes, _: Path) -> Any:
    return _pieces(data, 100_001)


@pytest.mark.parametrize("form", [_as_bytes, _as_path, _as_stream])
@pytest.mark.parametrize("size", [INLINE_MAX_BYTES + 1, 8 * MIB - 9000, 20 * MIB])
async def test_large_body_is_staged_sealed_in_every_form(
    settings: PublisherSettings,
    worker: WorkerSide,
    bucket: Bucket,
    tmp_path: Path,
    form: Callable[[bytes, Path], Any],
    size: int,
) -> None:
    data = os.urandom(size)
    async with Publisher.open(settings, s3=bucket.settings) as publisher:
        upload_id = await publisher.upload("acme", "big", form(data, tmp_path))
    assert bucket.keys() == [staging_s3_key("billing", upload_id)]
    message = await worker.take()
    assert verified(message).body.staged.size == sealed_size(size)
    assert _digest(message, bucket) == hashlib.sha256(data).hexdigest()
    assert bucket.open_uploads() == 0


async def test_memory_is_bounded_whatever_the_length(
    settings: PublisherSettings, worker: WorkerSide, ceph_only: Bucket
) -> None:
    block = os.urandom(MIB)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(192):
            yield block

    async with Publisher.open(settings, s3=ceph_only.settings) as publisher:
        await publisher.upload("acme", "warm", _pieces(block, MIB))
        tracemalloc.start()
        try:
            await publisher.upload("acme", "big", body())
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 96 * MIB
    assert await worker.count() == 2


async def test_source_that_fails_leaves_nothing_behind(
    settings: PublisherSettings, worker: WorkerSide, bucket: Bucket
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)
        raise OSError("the disk is gone")

    async with Publisher.open(settings, s3=bucket.settings) as publisher:
        with pytest.raises(OSError, match="the disk is gone"):
            await publisher.upload("acme", "big", body())
    assert (bucket.keys(), bucket.open_uploads()) == ([], 0)
    assert await worker.count() == 0


async def test_canceled_upload_leaves_nothing_behind(
    settings: PublisherSettings, worker: WorkerSide, ceph_only: Bucket
) -> None:
    reached = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)
        reached.set()
        await asyncio.Event().wait()

    async with Publisher.open(settings, s3=ceph_only.settings) as publisher:
        uploading = asyncio.create_task(publisher.upload("acme", "big", body()))
        await reached.wait()
        assert ceph_only.open_uploads() == 1
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
    assert (ceph_only.keys(), ceph_only.open_uploads()) == ([], 0)
    assert await worker.count() == 0


async def test_body_of_too_many_parts_is_refused_and_aborted(
    settings: PublisherSettings,
    worker: WorkerSide,
    ceph_only: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "MAX_PARTS", 3)
    async with Publisher.open(settings, s3=ceph_only.settings) as publisher:
        with pytest.raises(Exception, match="body_too_large"):
            await publisher.upload("acme", "big", bytes(26 * MIB))
    assert (ceph_only.keys(), ceph_only.open_uploads()) == ([], 0)
    assert await worker.count() == 0


@pytest.mark.parametrize("size", [MIB, 20 * MIB])
async def test_storage_that_refuses_is_reported_and_nothing_is_published(
    settings: PublisherSettings, worker: WorkerSide, bucket: Bucket, size: int
) -> None:
    gone = bucket.settings.model_copy(update={"s3_bucket": "no-such-bucket"})
    async with Publisher.open(settings, s3=gone) as publisher:
        with pytest.raises(StorageUnavailableError, match="NoSuchBucket"):
            await publisher.upload("acme", "big", bytes(size))
    assert await worker.count() == 0


async def test_retry_of_an_unknown_outcome_signs_again_and_keeps_body_and_key(
    network: tuple[Network, PublisherSettings], worker: WorkerSide, ceph_only: Bucket
) -> None:
    """Sealed again, the body would not open for the first message, if that arrived after all.

    Signed as it was, the second would be answered by an old refusal of the first.
    """
    relay, settings = network
    upload_id, data = str(uuid.uuid4()), os.urandom(MIB)
    async with Publisher.open(settings, s3=ceph_only.settings, publish_timeout_s=1) as publisher:
        await publisher.upload("acme", "warm", b"x")
        relay.silence()
        with pytest.raises(OutcomeUnknownError):
            await publisher.upload("acme", "big", data, upload_id=upload_id)
        assert ceph_only.keys() == [staging_s3_key("billing", upload_id)]
        relay.restore()
        await publisher.upload("acme", "big", data, upload_id=upload_id)
    _, first, second = [await worker.take() for _ in range(3)]
    one, two = verified(first), verified(second)
    assert two.requested_at > one.requested_at
    assert two == one.model_copy(update={"requested_at": two.requested_at})
    assert _digest(first, ceph_only) == hashlib.sha256(data).hexdigest()
    assert _digest(second, ceph_only) == hashlib.sha256(data).hexdigest()
