"""A body is staged sealed and in parts, and a failure leaves no part behind (SPEC 6.4)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from keyturn.crypto import Sealer, open_sealed
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.publisher import staging
from keyturn.publisher.staging import Staging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = bytes(range(32))
CONTEXT = b"context"
PART = 100_000


def _refusal(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "SlowDown", "Message": "canary"}}, operation)


@dataclass
class FakeS3:
    """Keeps objects and open uploads; `failing` names the call that fails, and by what."""

    failing: dict[str, Exception] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0
    hold: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def _call(self, name: str, arguments: dict[str, Any]) -> None:
        assert arguments["Bucket"] == "bucket"
        assert arguments["Key"] == "staged"
        if "Body" in arguments:  # so that the server notices a body that is cut
            digest = hashlib.md5(arguments["Body"], usedforsecurity=False).digest()
            assert arguments["ContentMD5"] == b64encode(digest).decode()
        if name in {"put_object", "create_multipart_upload"}:
            assert arguments["ContentType"] == "application/octet-stream"
        if name in self.failing:
            raise self.failing[name]

    async def put_object(self, **arguments: Any) -> None:
        self._call("put_object", arguments)
        self.objects["staged"] = arguments["Body"]

    async def delete_object(self, **arguments: Any) -> None:
        self._call("delete_object", arguments)
        self.objects.pop("staged", None)

    async def create_multipart_upload(self, **arguments: Any) -> dict[str, str]:
        self._call("create_multipart_upload", arguments)
        self.uploads["id"] = {}
        return {"UploadId": "id"}

    async def upload_part(self, **arguments: Any) -> dict[str, str]:
        number = arguments["PartNumber"]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.begun.set()
            if self.hold is not None:
                await self.hold.wait()
            for _ in range(10 - number % 10):  # a later part is there first
                await asyncio.sleep(0)
            self._call("upload_part", arguments)
            self.uploads[arguments["UploadId"]][number] = arguments["Body"]
        finally:
            self.at_once -= 1
        return {"ETag": f"etag {number}"}

    async def complete_multipart_upload(self, **arguments: Any) -> None:
        self._call("complete_multipart_upload", arguments)
        parts = self.uploads.pop(arguments["UploadId"])
        listed = arguments["MultipartUpload"]["Parts"]
        assert listed == [{"PartNumber": n, "ETag": f"etag {n}"} for n in sorted(parts)]
        self.objects["staged"] = b"".join(parts[part["PartNumber"]] for part in listed)

    async def abort_multipart_upload(self, **arguments: Any) -> None:
        self._call("abort_multipart_upload", arguments)
        self.uploads.pop(arguments["UploadId"])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", PART)


async def _blocks(body: bytes) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), 30_000):
        yield memoryview(body)[start : start + 30_000]


async def _put(s3: FakeS3, body: bytes) -> int:
    head, rest = bytearray(body[:1000]), body[1000:]
    area = Staging(cast("Any", s3), "bucket")
    return await area.put("staged", Sealer(KEY, CONTEXT), head, _blocks(rest))


@pytest.mark.parametrize("size", [0, 1, 1000, 90_000, 99_000, 100_000, 350_000, 1_000_000])
async def test_a_body_of_any_length_is_stored_sealed(size: int) -> None:
    s3, body = FakeS3(), bytes(size)
    size_bytes = await _put(s3, body)
    assert size_bytes == len(s3.objects["staged"])
    assert open_sealed(KEY, CONTEXT, s3.objects["staged"]) == body
    assert s3.uploads == {}
    assert (s3.most_at_once > 0) is (size_bytes > PART)


async def test_few_parts_are_in_memory_at_once() -> None:
    s3 = FakeS3(hold=asyncio.Event())
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(_put(s3, bytes(2_000_000)))
        while s3.at_once < 3:  # noqa: ASYNC110  # each part is hashed in a thread first
            await asyncio.sleep(0.001)
        # Had there been a place for a fourth part, its hash would be ready before this one.
        for _ in range(3):
            await asyncio.to_thread(hashlib.md5, bytes(2_000_000), usedforsecurity=False)
        assert s3.hold is not None
        s3.hold.set()
    assert s3.most_at_once == 3


@pytest.mark.parametrize(
    "name", ["create_multipart_upload", "upload_part", "complete_multipart_upload"]
)
async def test_a_failed_multipart_upload_is_aborted(name: str) -> None:
    s3 = FakeS3({name: _refusal(name)})
    with pytest.raises(StorageUnavailableError, match=r"^storage_unavailable: .*\(SlowDown\)$"):
        await _put(s3, bytes(500_000))
    assert (s3.objects, s3.uploads) == ({}, {})


async def test_a_failure_of_the_network_is_one_of_the_storage() -> None:
    s3 = FakeS3({"put_object": EndpointConnectionError(endpoint_url="http://canary/")})
    with pytest.raises(StorageUnavailableError, match="the connection was lost") as raised:
        await _put(s3, b"")
    assert "canary" not in str(raised.value)


async def test_a_failed_abort_hides_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    aborting = _refusal("abort_multipart_upload")
    s3 = FakeS3({"upload_part": _refusal("upload_part"), "abort_multipart_upload": aborting})
    with caplog.at_level(logging.WARNING), pytest.raises(StorageUnavailableError):
        await _put(s3, bytes(500_000))
    assert "could not be aborted" in caplog.text


async def test_a_source_that_fails_fails_as_it_did_and_leaves_nothing() -> None:
    async def rest() -> AsyncIterator[memoryview]:
        yield memoryview(bytes(350_000))
        raise LookupError

    s3 = FakeS3()
    area = Staging(cast("Any", s3), "bucket")
    with pytest.raises(LookupError):
        await area.put("staged", Sealer(KEY, CONTEXT), bytearray(), rest())
    assert (s3.objects, s3.uploads) == ({}, {})


async def test_a_canceled_upload_is_aborted() -> None:
    s3 = FakeS3(hold=asyncio.Event())
    task = asyncio.create_task(_put(s3, bytes(500_000)))
    await s3.begun.wait()
    assert s3.uploads
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (s3.objects, s3.uploads) == ({}, {})


async def test_a_body_of_too_many_parts_is_refused_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "MAX_PARTS", 3)
    s3 = FakeS3()
    await _put(s3, bytes(250_000))
    del s3.objects["staged"]
    with pytest.raises(BodyTooLargeError):
        await _put(s3, bytes(500_000))
    assert (s3.objects, s3.uploads) == ({}, {})


async def test_a_staged_body_that_cannot_be_deleted_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    s3 = FakeS3(objects={"staged": b"sealed"})
    area = Staging(cast("Any", s3), "bucket")
    s3.failing["delete_object"] = _refusal("delete_object")
    with caplog.at_level(logging.WARNING):
        await area.delete("staged")
    assert "could not be deleted" in caplog.text
    s3.failing.clear()
    await area.delete("staged")
    assert s3.objects == {}
