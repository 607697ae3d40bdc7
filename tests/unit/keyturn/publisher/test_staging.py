"""A body is staged sealed and in parts, and kept for a retry; no part is left (SPEC 6.4)."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import threading
from base64 import b64encode
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from keyturn.crypto import Sealer, open_sealed
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.messages import Staged, StagedBody, UploadRequested
from keyturn.publisher import staging
from keyturn.publisher.requests import new_id, sign, signed_now
from keyturn.publisher.staging import (
    BLOCK_BYTES,
    MAX_AGE_S,
    MAX_PENDING,
    PendingUploads,
    Staging,
    blocks,
    head,
)
from tests.unit.keyturn.publisher.test_requests import SETTINGS, new_draft

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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


# A body in any form is a stream of small blocks.


async def _stream(*pieces: Any) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


async def _gathered(body: Any) -> list[bytes]:
    async with aclosing(blocks(body)) as source:
        return [bytes(block) async for block in source]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
async def test_every_form_gives_the_same_bytes_in_blocks(size: int, tmp_path: Path) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    path = tmp_path / "body"
    path.write_bytes(data)
    wide = memoryview(data[: size - size % 4]).cast("I") if size >= 4 else memoryview(b"")
    forms = [data, bytearray(data), memoryview(data), path, io.BytesIO(data), _stream(data)]
    for body in forms:
        found = await _gathered(body)
        assert b"".join(found) == data
        assert all(0 < len(block) <= BLOCK_BYTES for block in found)
    assert b"".join(await _gathered(wide)) == data[: size - size % 4]


async def test_empty_pieces_of_a_stream_do_not_end_it() -> None:
    assert await _gathered(_stream(b"", b"a", b"", memoryview(b"b"), b"")) == [b"a", b"b"]


async def test_files_are_read_in_a_thread_and_left_open() -> None:
    class Watched(io.BytesIO):
        threads: set[int]

        def read(self, size: int | None = -1, /) -> bytes:
            self.threads.add(threading.get_ident())
            assert size == BLOCK_BYTES
            return super().read(size)

    file = Watched(b"abc")
    file.threads = set()
    assert await _gathered(file) == [b"abc"]
    assert file.threads
    assert threading.get_ident() not in file.threads
    assert not file.closed  # it is the caller's


@pytest.mark.parametrize("body", ["text", 7, None, [b"a"], _stream("text"), io.StringIO("text")])
async def test_what_is_no_bytes_is_a_type_error(body: Any) -> None:
    with pytest.raises(TypeError, match="a body"):
        await _gathered(body)


@pytest.mark.parametrize(("size", "is_complete"), [(0, True), (9, True), (10, True), (11, False)])
async def test_head_says_whether_the_limit_was_exceeded(size: int, is_complete: bool) -> None:
    data = bytes(range(size))
    async with aclosing(blocks(_stream(*(data[i : i + 3] for i in range(0, size, 3))))) as source:
        first, ended = await head(source, 10)
        rest = b"".join([bytes(block) async for block in source])
    assert ended is is_complete
    assert bytes(first) + rest == data


# Staged uploads that may be on the queue are sent again with their body (SPEC 6.7).


def _sent(**change: Any) -> UploadRequested:
    """An upload of 10 staged bytes."""
    return new_draft(**change).with_body(StagedBody(staged=Staged(size=10)))


def test_a_retry_has_the_same_key_and_body_and_bytes_of_its_own() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    earlier = kept.earlier(_sent(upload_id=first.upload_id))
    assert earlier == first
    again = signed_now(first)
    assert again.requested_at > first.requested_at
    assert again == first.model_copy(update={"requested_at": again.requested_at})
    assert sign(SETTINGS, again).body != sign(SETTINGS, first).body


def test_another_object_under_the_same_id_is_another_upload() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    for other in ({"project": "bob"}, {"object_key": "b"}):
        assert kept.earlier(_sent(upload_id=first.upload_id, **other)) is None
    assert kept.earlier(_sent()) is None


def test_what_the_broker_keeps_is_forgotten() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    kept.forget(first.upload_id)
    assert kept.earlier(first) is None


def test_memory_is_bounded_in_number_and_by_the_age_of_the_staged_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr("keyturn.publisher.staging.time.monotonic", lambda: now_s)
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    now_s = MAX_AGE_S - 1
    kept.remember(signed_now(first))  # a second try, with the body of the first
    assert kept.earlier(first) is not None
    now_s = MAX_AGE_S
    assert kept.earlier(first) is None
    staged_anew = _sent(upload_id=first.upload_id)
    kept.remember(staged_anew)
    assert kept.earlier(first) == staged_anew
    for _ in range(MAX_PENDING):
        kept.remember(first.model_copy(update={"upload_id": new_id()}))
    assert kept.earlier(first) is None
