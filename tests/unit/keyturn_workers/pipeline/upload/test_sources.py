"""Uploads whose body is an object of a source (SPEC 17.2)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    DeletedKeyError,
    MalformedRequestError,
    NotPermittedError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    StorageUnavailableError,
    UnknownSourceError,
)
from keyturn.messages import RequestOrigin, SourceObject, UploadRequested, UploadStored
from keyturn_workers.core.source_mapping import parse_sources
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.pipeline.sources.port import Sources
from keyturn_workers.pipeline.upload.request_handler import UploadHandler
from keyturn_workers.pipeline.upload.uploader import UploadResult
from tests.unit.keyturn_workers.factories import AT, keyring
from tests.unit.keyturn_workers.pipeline.upload.bench import IN_PARTS, TARGET, Bench
from tools.harness.memory_storage import MemoryStorage

DROP = {"bucket": "the-drop", "prefix": "in/", "project": "acme", "key": "{name}", "delete": True}
SMALL, LARGE = os.urandom(1000), os.urandom(300_000)
# A body in memory, one streamed put, parts: by its size, and by what the storage does.
BY_ALL_WAYS = pytest.mark.parametrize(
    ("way", "data"), [("put", SMALL), ("put_stream", LARGE), ("complete_multipart", LARGE)]
)
ORIGIN = RequestOrigin("api", "0" * 64)


class Setting:
    """An uploader with a source."""

    def __init__(self, way: str = "put", *, versioned: bool = False, **more: Any) -> None:
        in_parts = way == "complete_multipart"
        own = MemoryStorage(capabilities=IN_PARTS) if in_parts else MemoryStorage()
        self.on = Bench(own, **more)
        self.source = MemoryStorage(versioned=versioned)
        bucket = SourceBucket("drop", parse_sources({"drop": DROP})["drop"], self.source, own)
        self.on.context.sources = Sources("test", {"drop": bucket})

    async def named(self, data: bytes, headers: Headers | None = None) -> SourceObject:
        """What a HEAD of a new object gives."""
        self.source.plant("in/k", data, headers or Headers({}, "text/plain"))
        head = await self.source.head("in/k")
        return SourceObject(
            name="drop", key="in/k", etag=head.etag, version=head.version_id, size=len(data)
        )

    async def request(self, data: bytes, headers: Headers | None = None) -> UploadRequested:
        return request(await self.named(data, headers))


def request(named: SourceObject, **changes: Any) -> UploadRequested:
    document = {
        "upload_id": named.upload_id("test"),
        "project": "acme",
        "key": "k",
        "requested_at": AT,
        "body": {"source": named.model_dump(exclude_none=True)},
    }
    return UploadRequested.model_validate(document | changes)


@BY_ALL_WAYS
@pytest.mark.parametrize("versioned", [False, True])
async def test_an_object_is_stored_and_then_deleted_from_its_source(
    way: str, data: bytes, *, versioned: bool
) -> None:
    setting = Setting(way, versioned=versioned)
    sent = await setting.request(data)
    done = await UploadHandler(setting.on.uploader).serve(sent, ORIGIN, seen_before=False)
    assert isinstance(done.event, UploadStored)
    assert done.event.size == len(data)
    assert await setting.on.plaintext() == data
    assert setting.on.storage.calls[way] == 1 + (way == "put")  # and the proof of the start check
    assert list(setting.source.stored_keys()) == ["in/k"]
    assert done.after is not None
    await done.after()
    assert list(setting.source.stored_keys()) == []
    # Published again, by anyone, it is answered from the target.
    for publisher in ("api", "other"):
        again = await setting.on.uploader.serve(sent, publisher, seen_before=False)
        assert again == UploadResult(len(data), 1)


async def test_an_empty_object_is_stored() -> None:
    setting = Setting()
    assert await setting.on.serve(await setting.request(b"")) == UploadResult(0, 1)
    assert await setting.on.plaintext() == b""


async def test_a_rotation_during_the_put_rewraps_the_object() -> None:
    setting = Setting("put_stream")
    setting.on.storage.before_next("put_stream", setting.on.rotate)
    assert await setting.on.serve(await setting.request(LARGE)) == UploadResult(len(LARGE), 2)
    assert await setting.on.plaintext() == LARGE


async def test_content_type_and_metadata_come_along() -> None:
    setting = Setting()
    own = Headers(
        {"author": "=?utf-8?b?w5xsbA==?=", "file_name": "a.txt"},
        "text/csv",
        {"cache-control": "no-store"},
    )
    await setting.on.serve(await setting.request(SMALL, own))
    head = await setting.on.storage.head(TARGET)
    caller = {n: v for n, v in head.metadata.items() if not n.startswith("enc-")}
    assert caller == {"author": "=?utf-8?b?w5xsbA==?=", "file-name": "a.txt"}
    assert head.headers.content_type == "text/csv"
    assert "cache-control" not in head.headers.restated


async def test_what_the_request_names_counts() -> None:
    setting = Setting()
    named = await setting.named(SMALL, Headers({"author": "kim", "a": "b"}, "text/csv"))
    await setting.on.serve(request(named, content_type="text/html", metadata={"by": "lee"}))
    head = await setting.on.storage.head(TARGET)
    caller = {n: v for n, v in head.metadata.items() if not n.startswith("enc-")}
    assert caller == {"by": "lee"}
    assert head.headers.content_type == "text/html"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (Headers({"enc-algo": "Cobblestone-256"}), "it is encrypted"),
        (Headers({"enc-algo": "AES-256-GCM", "enc-dek-user": "AAAA"}), "it is encrypted"),
        (Headers({"enc-upload": "x"}), "it is encrypted"),
        (Headers({"a.b": "c"}), "metadata names consist of"),
        (Headers({"a-b": "c", "a_b": "d"}), "differ only in - and _"),
        (Headers({"a": "v" * 1025}), "bytes on the wire"),
        (Headers({}, "text/plün"), "content_type is printable ASCII"),
    ],
)
async def test_an_object_that_cannot_be_described_stays_where_it_is(
    headers: Headers, why: str
) -> None:
    setting = Setting()
    with pytest.raises(MalformedRequestError, match=why):
        await setting.on.serve(await setting.request(SMALL, headers))
    assert not await setting.on.exists(TARGET)
    assert list(setting.source.stored_keys()) == ["in/k"]


@BY_ALL_WAYS
async def test_an_object_that_has_changed_or_is_gone_is_not_stored(way: str, data: bytes) -> None:
    setting = Setting(way)
    sent = await setting.request(data)
    setting.source.plant("in/k", data[::-1], Headers({}))
    with pytest.raises(SourceChangedError):
        await setting.on.serve(sent)
    await setting.source.delete("in/k")
    with pytest.raises(SourceMissingError):
        await setting.on.serve(sent)
    assert not await setting.on.exists(TARGET)
    assert await setting.on.open_uploads() == []


async def test_another_delivery_may_have_stored_it_and_deleted_the_source() -> None:
    """Since this one looked at the target."""
    setting = Setting()
    sent = await setting.request(SMALL)

    async def stored_by_another() -> None:
        assert await setting.on.serve(sent)
        await setting.on.uploader.discard_body(sent, "api")

    setting.source.before_next("stream", stored_by_another)
    assert await setting.on.serve(sent) == UploadResult(len(SMALL), 1)


async def test_a_source_that_is_away_is_no_failure_of_our_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = Setting()
    sent = await setting.request(SMALL)
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.0, 0.0))
    setting.source.fail_next("stream", StorageUnavailableError("stream: SlowDown"))
    with pytest.raises(SourceUnavailableError):
        await setting.on.serve(sent)
    assert await setting.on.serve(sent) == UploadResult(len(SMALL), 1)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("planted", "error"),
    [
        (Headers({"enc-algo": "deleted", "enc-dek-admin": "AAAA"}), DeletedKeyError),
        (Headers({"enc-upload": "2f6c9a0e-2222-4222-8222-222222222222"}), AlreadyExistsError),
    ],
)
async def test_a_key_that_is_taken_leaves_the_source_alone(
    planted: Headers, error: type[CodedError], data: bytes
) -> None:
    """It is not even read."""
    setting = Setting()
    sent = await setting.request(data)
    setting.on.storage.plant(TARGET, b"", planted)
    with pytest.raises(error) as refused:
        await setting.on.serve(sent)
    await UploadHandler(setting.on.uploader).after_refusal(sent, ORIGIN, refused.value)
    assert setting.source.calls["stream"] == 0
    assert list(setting.source.stored_keys()) == ["in/k"]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_what_was_stored_and_deleted_in_the_source_is_answered_from_the_target(
    data: bytes,
) -> None:
    """By a delivery that is not marked as a second one: the request was published twice."""
    setting = Setting()
    sent = await setting.request(data)
    stored = await setting.on.serve(sent)
    await setting.source.delete("in/k")
    assert await setting.on.serve(sent) == stored


async def test_a_body_above_the_limit_is_not_read() -> None:
    setting = Setting()
    limits = setting.on.context.limits
    setting.on.context.limits = replace(limits, upload_max_bytes=len(SMALL))
    with pytest.raises(BodyTooLargeError):
        await setting.on.serve(await setting.request(SMALL))
    assert setting.source.calls["stream"] == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "lake"}, UnknownSourceError),
        ({"key": "out/k"}, NotPermittedError),
    ],
)
async def test_what_a_request_may_not_name_is_looked_at_nowhere(
    changes: dict[str, Any], error: type[CodedError]
) -> None:
    setting = Setting()
    sent = request((await setting.named(SMALL)).model_copy(update=changes))
    with pytest.raises(error):
        await setting.on.serve(sent)
    assert await setting.on.uploader.find_completed(sent, "api") is None
    assert setting.on.storage.calls["read_start"] == 0


async def test_plaintext_is_compared_with_the_source() -> None:
    setting = Setting(ring=keyring(plaintext=True), encryption_enabled=False)
    sent = await setting.request(SMALL)
    await setting.on.serve(sent)
    assert (await setting.on.storage.read(TARGET))[1] == SMALL
    assert await setting.on.serve(sent) == UploadResult(len(SMALL), 1)
    setting.on.storage.plant(TARGET, SMALL[::-1], Headers({"enc-upload": sent.upload_id}))
    with pytest.raises(AlreadyExistsError):
        await setting.on.serve(sent)
