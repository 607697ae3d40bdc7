"""What an upload finds, by its tag or its bytes, and what it leaves to remove (SPEC 6, 7.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn.crypto import HEADER_BYTES, sealed_size
from keyturn.errors import (
    AlreadyExistsError,
    BadSignatureError,
    BodyTooLargeError,
    CodedError,
    CorruptObjectError,
    DeletedKeyError,
    NotPermittedError,
    StagedBodyMissingError,
)
from keyturn.identifiers import object_s3_key
from keyturn.messages import RequestOrigin, UploadStored
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.objects.apply import reconcile_object
from keyturn_workers.pipeline.upload.cleanup import clean_staging
from keyturn_workers.pipeline.upload.request_handler import UploadHandler
from keyturn_workers.pipeline.upload.uploader import UploadResult
from tests.unit.keyturn_workers.factories import OPERATOR_KEYS, keyring
from tests.unit.keyturn_workers.pipeline.upload.bench import (
    DATA,
    OTHER_ID,
    STAGED,
    TARGET,
    UPLOAD_ID,
    WAYS,
    Bench,
    bench,
    request,
)
from tools.harness.memory_storage import MemoryStorage

BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
STAGED_WAYS = pytest.mark.parametrize("way", ["put_stream", "complete_multipart"])
OWN = Headers({"enc-upload": UPLOAD_ID})
FORGED = bytes(len(DATA))
ORIGIN = RequestOrigin("api", "0" * 64)
_AGE = timedelta(days=8)
_DAY = timedelta(days=1)


async def relabel(on: Bench, **changed: str | None) -> None:
    """A bucket writer changes `enc-` fields of the object and leaves its body."""
    head, body = await on.storage.read(TARGET)
    names = {f"enc-{name.replace('_', '-')}": value for name, value in changed.items()}
    metadata = {**head.metadata, **names}
    kept = {name: value for name, value in metadata.items() if value is not None}
    on.storage.plant(TARGET, body, replace(head.headers, metadata=kept))


@BY_ALL_WAYS
async def test_a_second_delivery_recognizes_its_object_by_the_tag(way: str) -> None:
    """Neither body is opened: the staged one may be gone."""
    on = bench(way)
    sent = request(on, way)
    await on.serve(sent)
    assert "enc-upload-tag" in await on.metadata()
    await on.uploader.discard_body(sent, "api")
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert on.storage.calls["stream"] == int(way != "put")
    assert on.storage.calls[way] == 1


@STAGED_WAYS
@pytest.mark.parametrize("seen_before", [False, True])
async def test_an_object_relabeled_to_a_pending_uploads_id_is_not_its_own(
    way: str, *, seen_before: bool
) -> None:
    """The pending upload is refused, and its staged body stays: it exists nowhere else."""
    on = bench(way)
    await on.serve(request(on, way, data=DATA[::-1], upload_id=OTHER_ID))
    pending = request(on, way)
    await relabel(on, upload=UPLOAD_ID)
    with pytest.raises(AlreadyExistsError) as refused:
        await on.serve(pending, seen_before=seen_before)
    await UploadHandler(on.uploader).after_refusal(pending, ORIGIN, refused.value)
    assert await on.exists(STAGED)
    assert await on.plaintext() == DATA[::-1]


async def test_the_same_id_by_another_publisher_is_another_upload() -> None:
    on = bench()
    sent = request(on)
    await on.serve(sent)
    with pytest.raises(AlreadyExistsError):
        await on.uploader.serve(sent, "web", seen_before=True)


@BY_ALL_WAYS
async def test_an_object_without_a_tag_is_compared(way: str) -> None:
    """It may be plaintext that a sweep encrypted in place."""
    on = bench(way)
    sent = request(on, way)
    await on.serve(sent)
    await relabel(on, upload_tag=None)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert on.storage.calls[way] == 1
    other = request(on, way, data=DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(AlreadyExistsError):
        await on.serve(other, seen_before=True)
    shorter = request(on, way, data=DATA[:-1])
    with pytest.raises(AlreadyExistsError):
        await on.serve(shorter, seen_before=True)


@BY_ALL_WAYS
async def test_plaintext_under_the_uploads_id_is_compared(way: str) -> None:
    on = bench(way, ring=keyring(plaintext=True), encryption_enabled=False)
    sent = request(on, way)
    await on.serve(sent)
    assert await on.metadata() == {"enc-upload": UPLOAD_ID}
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    on.storage.plant(TARGET, DATA[::-1], Headers({"enc-upload": UPLOAD_ID}))
    with pytest.raises(AlreadyExistsError):
        await on.serve(sent, seen_before=True)
    assert (await on.storage.read(TARGET))[1] == DATA[::-1]


async def test_an_object_without_a_tag_is_refused_without_a_staged_body() -> None:
    """There is nothing to compare the object with."""
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.serve(sent)
    await relabel(on, upload_tag=None)
    await on.storage.delete(STAGED)
    with pytest.raises(StagedBodyMissingError):
        await on.serve(sent, seen_before=True)


@STAGED_WAYS
async def test_plaintext_that_is_published_again_is_completed_again(way: str) -> None:
    """Its staged body was deleted once it was stored; another length is another object."""
    on = bench(way, ring=keyring(plaintext=True), encryption_enabled=False)
    sent = request(on, way)
    await on.serve(sent)
    await on.uploader.discard_body(sent, "api")
    assert await on.serve(sent) == UploadResult(len(DATA), 1)
    on.storage.plant(TARGET, DATA[1:], Headers({"enc-upload": UPLOAD_ID}))
    with pytest.raises(AlreadyExistsError):
        await on.serve(sent)


@pytest.mark.parametrize("changed", [{"dek_admin": "AAAA"}, {"dek_user": "AAAA"}])
async def test_wraps_that_do_not_verify_leave_the_staged_body(changed: dict[str, Any]) -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.serve(sent)
    await relabel(on, **changed)
    with pytest.raises(CorruptObjectError) as refused:
        await on.serve(sent, seen_before=True)
    await UploadHandler(on.uploader).after_refusal(sent, ORIGIN, refused.value)
    assert await on.exists(STAGED)


async def test_an_own_object_that_was_cut_is_corrupt() -> None:
    on = bench()
    sent = request(on)
    await on.serve(sent)
    head, body = await on.storage.read(TARGET)
    on.storage.plant(TARGET, body[: sealed_size(50_000)], head.headers)
    with pytest.raises(CorruptObjectError):
        await on.serve(sent, seen_before=True)


@pytest.mark.parametrize(
    ("size_bytes", "error"),
    [
        (HEADER_BYTES, CorruptObjectError),
        (sealed_size(0) - 1, CorruptObjectError),
        (sealed_size(0), AlreadyExistsError),
    ],
)
async def test_an_own_object_without_a_tag_that_no_sealing_makes_as_long_is_corrupt(
    size_bytes: int, error: type[CodedError]
) -> None:
    """Its header verifies, and what follows is shorter than a chunk."""
    on = bench()
    sent = request(on)
    await on.serve(sent)
    await relabel(on, upload_tag=None)
    head, body = await on.storage.read(TARGET)
    on.storage.plant(TARGET, body[:size_bytes], head.headers)
    with pytest.raises(error):
        await on.serve(sent, seen_before=True)


async def test_rewraps_keep_the_tag() -> None:
    on = bench()
    sent = request(on)
    await on.serve(sent)
    tag = (await on.metadata())["enc-upload-tag"]
    await on.rotate()
    await reconcile_object("acme", "k", on.storage, on.keyrings, OPERATOR_KEYS)
    assert (await on.metadata())["enc-upload-tag"] == tag
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)


@BY_ALL_WAYS
@pytest.mark.parametrize("seen_before", [False, True])
async def test_forged_plaintext_under_the_uploads_id_is_never_encrypted(
    way: str, *, seen_before: bool
) -> None:
    """It was there before, or came during the put, has the body's length, and is left alone."""
    on = bench(way)

    async def forge() -> None:
        on.storage.plant(TARGET, FORGED, OWN)

    sent = request(on, way)
    on.storage.before_next("read_start" if seen_before else way, forge)
    with pytest.raises(CorruptObjectError):
        await on.serve(sent, seen_before=seen_before)
    assert (await on.storage.read(TARGET))[1] == FORGED


@BY_ALL_WAYS
async def test_a_sealed_body_stripped_of_its_metadata_is_corrupt(way: str) -> None:
    """It is longer than the plaintext: reported as corrupt, and left alone."""
    on = bench(way)
    sent = request(on, way)
    await on.serve(sent)
    sealed = (await on.storage.read(TARGET))[1]
    on.storage.plant(TARGET, sealed, OWN)
    with pytest.raises(CorruptObjectError):
        await on.serve(sent, seen_before=True)
    assert (await on.storage.read(TARGET))[1] == sealed


async def test_own_plaintext_without_a_staged_body_stays() -> None:
    """The object proves nothing, so it is left alone."""
    on = bench("put_stream")
    sent = request(on, "put_stream")
    on.storage.plant(TARGET, DATA, OWN)
    await on.storage.delete(STAGED)
    with pytest.raises(StagedBodyMissingError):
        await on.serve(sent, seen_before=True)
    assert (await on.storage.read(TARGET))[1] == DATA


async def test_its_own_empty_object_is_not_reported_as_stored() -> None:
    """A put that was cut off may leave the metadata without the body."""
    on = bench()
    sent = request(on)
    await on.serve(sent)
    head, _ = await on.storage.read(TARGET)
    on.storage.plant(TARGET, b"", head.headers)
    with pytest.raises(CorruptObjectError, match="is empty"):
        await on.serve(sent, seen_before=True)


@BY_ALL_WAYS
async def test_an_expired_upload_that_was_stored_is_completed(way: str) -> None:
    """A request past its age is answered from its target, and stores nothing (SPEC 6.3)."""
    on = bench(way)
    sent = request(on, way)
    role = UploadHandler(on.uploader)
    assert await role.find_completed(sent, ORIGIN) is None
    assert on.storage.calls[way] == 0
    await on.serve(sent)
    done = await role.find_completed(sent, ORIGIN)
    assert done is not None
    assert isinstance(done.event, UploadStored)
    assert (done.event.size, done.event.generation) == (len(DATA), 1)
    assert on.storage.calls[way] == 1
    assert await role.find_completed(sent, replace(ORIGIN, publisher="web")) is None


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (DeletedKeyError("k"), False),
        (BodyTooLargeError("k"), False),
        (AlreadyExistsError("k"), True),  # nothing with another upload's id is there
        (BadSignatureError("k"), True),
        (NotPermittedError("k"), True),
        (CorruptObjectError("k"), True),
        (StagedBodyMissingError("k"), True),
    ],
)
async def test_a_permanent_refusal_deletes_the_staged_body(
    error: CodedError, *, stays: bool
) -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await UploadHandler(on.uploader).after_refusal(sent, ORIGIN, error)
    assert await on.exists(STAGED) is stays


async def test_a_key_taken_by_another_upload_deletes_the_staged_body() -> None:
    on = bench("put_stream")
    await on.serve(request(on, "put_stream", upload_id=OTHER_ID))
    sent = request(on, "put_stream")
    with pytest.raises(AlreadyExistsError) as refused:
        await on.serve(sent)
    await UploadHandler(on.uploader).after_refusal(sent, ORIGIN, refused.value)
    assert not await on.exists(STAGED)


async def test_only_older_items_are_removed() -> None:
    storage = MemoryStorage()
    await storage.put(".keyturn/staging/api/old", b"sealed", Headers({}))
    await storage.put(".keyturn/doctor/killed/1", b"probe", Headers({}))
    await storage.put("acme/old", b"object", Headers({}))
    await storage.put(".keyturn/keyrings/acme.json", b"{}", Headers({}))
    await storage.create_multipart("acme/abandoned", Headers({}))
    storage.advance(_AGE.total_seconds() + 1)
    await storage.put(".keyturn/staging/api/new", b"sealed", Headers({}))
    await storage.put(".keyturn/doctor/running/1", b"probe", Headers({}))
    await storage.create_multipart("acme/under way", Headers({}))

    swept = await clean_staging(storage, older_than=_AGE, now=storage.now)

    assert swept == (2, 1)
    assert list(storage.stored_keys()) == [
        ".keyturn/doctor/running/1",
        ".keyturn/keyrings/acme.json",
        ".keyturn/staging/api/new",
        "acme/old",
    ]
    assert [left.key async for left in storage.list_multipart_uploads("")] == ["acme/under way"]


async def test_multipart_uploads_of_other_applications_are_left_alone() -> None:
    """Their first segment looks like a project, but none has a keyring (SPEC 10)."""
    on = bench("complete_multipart")
    theirs = object_s3_key("videos", "raw.mp4")
    await on.storage.create_multipart(theirs, Headers({}))
    await on.storage.create_multipart(TARGET, Headers({}))
    later = datetime.now(UTC).replace(year=2100)
    counts = await clean_staging(on.storage, older_than=later - datetime.now(UTC) - _DAY, now=later)
    assert counts == (0, 1)
    assert await on.open_uploads() == [theirs]
