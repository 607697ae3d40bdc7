"""An attempt puts the object at once, streamed or in parts (SPEC 7.2, 8.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import BadSealError, BodyTooLargeError, StagedBodyMissingError
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Headers, IfAbsent, IfMatch
from keyturn_workers.upload import UploadResult
from keyturn_workers.upload.attempt import Attempt, Upload
from keyturn_workers.upload.body import open_transport_key
from keyturn_workers.upload.put import PutResult, StateMovedError, put_object
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.upload.bench import (
    DATA,
    PART_BYTES,
    STAGED,
    TARGET,
    UPLOAD_ID,
    WAYS,
    Bench,
    bench,
    request,
)

if TYPE_CHECKING:
    from keyturn_workers.storage import Condition

BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
STAGED_WAYS = pytest.mark.parametrize("way", ["put_stream", "complete_multipart"])


async def _attempt(
    on: Bench, way: str, data: bytes = DATA, condition: Condition | None = None
) -> Attempt:
    upload = Upload(request(on, way, data=data), "api")
    transport_key = open_transport_key(on.context, upload)
    snapshot = await on.keyrings.read_leased("acme")
    return Attempt.begin(on.context, upload, transport_key, condition or IfAbsent(), snapshot)


async def _put(
    on: Bench, way: str, data: bytes = DATA, condition: Condition | None = None
) -> PutResult:
    return await put_object(on.context, await _attempt(on, way, data, condition))


@BY_ALL_WAYS
async def test_the_result_describes_the_object(way: str) -> None:
    on = bench(way)
    put = await _put(on, way)
    assert await on.plaintext() == DATA
    assert put.etag == (await on.storage.head(TARGET)).etag
    assert (put.size_bytes, put.is_encrypted) == (len(DATA), True)
    assert put.snapshot.desired.generation == 1


@pytest.mark.parametrize(("size", "in_parts"), [(PART_BYTES, True), (PART_BYTES - 1000, False)])
async def test_a_body_goes_in_parts_if_its_ciphertext_is_larger_than_one(
    size: int, *, in_parts: bool
) -> None:
    on = bench("complete_multipart")
    await _put(on, "complete_multipart", DATA[:size])
    assert on.storage.calls["put_stream"] == int(not in_parts)
    assert on.storage.calls["complete_multipart"] == int(in_parts)
    assert await on.plaintext() == DATA[:size]


async def test_a_replacement_is_streamed_however_large_it_is() -> None:
    """A completion can be conditional on absence alone."""
    on = bench("complete_multipart")
    on.storage.plant(TARGET, DATA, Headers({"enc-upload": UPLOAD_ID}))
    etag = (await on.storage.head(TARGET)).etag
    await _put(on, "complete_multipart", condition=IfMatch(etag))
    assert (on.storage.calls["put_stream"], on.storage.calls["create_multipart"]) == (1, 0)
    assert await on.plaintext() == DATA


async def test_an_empty_replacement_is_put_at_once() -> None:
    """Streamed, it could outlast its lease, and bring back an object that was deleted."""
    on = bench("put_stream")
    on.storage.plant(TARGET, b"", Headers({"enc-upload": UPLOAD_ID}))
    etag = (await on.storage.head(TARGET)).etag
    await _put(on, "put_stream", b"", IfMatch(etag))
    assert (on.storage.calls["put"], on.storage.calls["put_stream"]) == (1, 0)
    assert await on.plaintext() == b""


@BY_ALL_WAYS
async def test_a_put_is_conditional(way: str) -> None:
    on = bench(way)
    on.storage.plant(TARGET, b"first", Headers({}))
    with pytest.raises(PreconditionError):
        await _put(on, way)
    assert (await on.storage.read(TARGET))[1] == b"first"
    assert await on.open_uploads() == []


@pytest.mark.parametrize("way", ["put", "put_stream"])
async def test_a_put_is_fenced_by_the_lease_of_its_attempt(way: str) -> None:
    on = bench(way)
    attempt = await _attempt(on, way)
    on.storage.advance(60)
    with pytest.raises(RefusedError):
        await put_object(on.context, attempt)
    assert not await on.exists(TARGET)


async def test_a_completion_is_fenced_by_a_keyring_read_after_its_parts() -> None:
    """So the parts may take longer than a lease; the completion may not."""
    on = bench("complete_multipart")

    async def stall() -> None:
        on.storage.advance(60)

    on.storage.before_next("upload_part", stall)
    assert (await _put(on, "complete_multipart")).size_bytes == len(DATA)
    await on.storage.delete(TARGET)
    on.storage.before_next("complete_multipart", stall)
    with pytest.raises(RefusedError):
        await _put(on, "complete_multipart")
    assert await on.open_uploads() == []


async def test_a_rotation_before_the_completion_stores_nothing() -> None:
    on = bench("complete_multipart")
    on.storage.before_next("upload_part", on.rotate)
    with pytest.raises(StateMovedError):
        await _put(on, "complete_multipart")
    assert not await on.exists(TARGET)
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_only_one_put_of_an_encrypted_object_may_be_within_its_lease(way: str) -> None:
    ring = replace(keyring(), lease_s=15)
    assert (await _put(bench(way, ring=ring), way)).within_lease is (way != "complete_multipart")
    plain = replace(keyring(plaintext=True), lease_s=15)
    on = bench(way, ring=plain, encryption_enabled=False)
    assert not (await _put(on, way)).within_lease
    assert (await on.storage.read(TARGET))[1] == DATA


@STAGED_WAYS
async def test_a_staged_body_above_the_limit_is_not_read(way: str) -> None:
    on = bench(way)
    attempt = await _attempt(on, way)
    on.context.limits = replace(on.context.limits, upload_max_bytes=len(DATA))
    with pytest.raises(BodyTooLargeError):
        await put_object(on.context, attempt)
    assert on.storage.calls["stream"] == 0


@STAGED_WAYS
async def test_without_its_staged_body_nothing_is_put(way: str) -> None:
    on = bench(way)
    attempt = await _attempt(on, way)
    await on.storage.delete(STAGED)
    with pytest.raises(StagedBodyMissingError):
        await put_object(on.context, attempt)
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_a_body_under_another_key_is_not_stored(way: str) -> None:
    on = bench(way)
    attempt = replace(await _attempt(on, way), transport_key=bytes(32))
    with pytest.raises(BadSealError):
        await put_object(on.context, attempt)
    assert not await on.exists(TARGET)
    assert await on.open_uploads() == []


async def test_parts_that_were_aborted_are_missing() -> None:
    on = bench("complete_multipart")
    on.storage.fail_next("complete_multipart", MissingError("NoSuchUpload"))
    with pytest.raises(MissingError):
        await _put(on, "complete_multipart")


@BY_ALL_WAYS
async def test_an_upload_is_stored_once(way: str) -> None:
    """By the expected call, once, under both wraps; nothing else is called."""
    on = bench(way)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert (await on.metadata())["enc-upload"] == UPLOAD_ID
    put = {name: on.storage.calls[name] for name in ("put", "put_stream", "complete_multipart")}
    assert put == {name: int(name == way) for name in put}
    assert on.storage.calls["copy_onto_itself"] == 0
