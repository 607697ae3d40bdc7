"""An attempt puts the object at once, streamed or in parts (SPEC 7.2, 8.4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.errors import (
    BadSealError,
    BodyTooLargeError,
    StagedBodyMissingError,
    StorageUnavailableError,
)
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_values import Headers, IfAbsent, IfMatch
from keyturn_workers.pipeline.upload.attempt import Attempt, Upload
from keyturn_workers.pipeline.upload.body import open_transport_key
from keyturn_workers.pipeline.upload.put import (
    PutResponse,
    PutResult,
    StateMovedError,
    abort_leftovers,
    exists_within_lease,
    put_object,
)
from keyturn_workers.pipeline.upload.uploader import UploadResult
from tests.unit.keyturn_workers.factories import keyring, snapshot
from tests.unit.keyturn_workers.pipeline.upload.bench import (
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
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.storage_values import Condition

MIB: Final = 1024**2
LEASE_S: Final = 15
READ_AT: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
SENT_S: Final = 1000.0
RING: Final = replace(keyring(), lease_s=LEASE_S)
OBSERVED: Final = snapshot(RING, read_at=READ_AT, sent_s=SENT_S, lease_s=LEASE_S)
PUT: Final = PutResponse(
    READ_AT + timedelta(seconds=14), agrees=True, received_s=SENT_S + 14.9, by_one_put=True
)

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


@pytest.mark.parametrize("is_encrypted", [True, False], ids=["sealed", "plaintext"])
async def test_no_body_lands_under_a_state_that_ended_while_it_was_sent(
    *, is_encrypted: bool
) -> None:
    """The lease limits when a put begins; the rotation comes while the body is sent."""
    ring = replace(keyring(plaintext=True), lease_s=LEASE_S)
    on = bench("put_stream", ring=ring, encryption_enabled=is_encrypted)
    attempt = await _attempt(on, "put_stream")

    async def rotate() -> None:
        on.storage.advance(LEASE_S - 1)
        await on.rotate()

    on.storage.before_next("put_stream", rotate)
    with pytest.raises(StateMovedError):
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


async def test_only_what_is_open_at_this_very_key_is_aborted() -> None:
    storage = MemoryStorage()
    for key in (TARGET, TARGET, TARGET + "ey"):
        await storage.create_multipart(key, Headers({}))
    await abort_leftovers(storage, TARGET)
    assert [row.key async for row in storage.list_multipart_uploads("")] == [TARGET + "ey"]
    assert storage.calls["abort_multipart"] == 2


@pytest.mark.parametrize("error", [StorageUnavailableError("down"), RefusedError("no")])
async def test_leftovers_that_cannot_be_listed_are_left_to_the_cleanup(error: Exception) -> None:
    storage = MemoryStorage()
    await storage.create_multipart(TARGET, Headers({}))
    storage.fail_next("list_multipart_uploads", error)
    await abort_leftovers(storage, TARGET)
    assert [row.key async for row in storage.list_multipart_uploads("")] == [TARGET]


async def test_parts_of_a_killed_worker_are_aborted() -> None:
    """The next delivery aborts them; those of another key stay."""
    on = bench("complete_multipart")
    for key in (TARGET, TARGET + "ey"):
        upload_id = await on.storage.create_multipart(key, Headers({}))
        await on.storage.upload_part(key, upload_id, 1, b"part")
    await on.serve(request(on, "complete_multipart"), seen_before=True)
    assert await on.open_uploads() == [TARGET + "ey"]


async def test_parts_that_cannot_be_listed_do_not_fail_the_upload() -> None:
    on = bench("complete_multipart")
    on.storage.fail_next("list_multipart_uploads", StorageUnavailableError("down"))
    sent = request(on, "complete_multipart")
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)


def test_an_encrypted_put_within_the_lease_needs_no_second_read() -> None:
    assert exists_within_lease(OBSERVED, PUT, is_encrypted=True)


@pytest.mark.parametrize(
    ("snapshot", "put", "is_encrypted"),
    [
        ({}, {}, False),
        ({}, {"by_one_put": False}, True),
        # By the storage's clock: a whole lease after the keyring's read is too late.
        ({}, {"date": READ_AT + timedelta(seconds=15)}, True),
        ({}, {"date": READ_AT + timedelta(days=1)}, True),
        ({}, {"date": None}, True),
        # By the process's own: a front end 16 s slow, or one that dates before the commit.
        ({}, {"date": READ_AT, "received_s": SENT_S + 15}, True),
        ({}, {"date": READ_AT - timedelta(seconds=1), "received_s": SENT_S + 16}, True),
        # A listing sent before a rotation and answered 20 s after it.
        ({"sent_s": SENT_S - 20}, {}, True),
        # The storage's clock contradicts itself: of the put, or of the keyring's read.
        ({}, {"agrees": False}, True),
        ({"leased": False}, {}, True),
        # A worker with a longer lease than the record names.
        ({"keyring": replace(RING, lease_s=14)}, {}, True),
    ],
)
def test_any_other_put_needs_a_second_read(
    snapshot: dict[str, Any], put: dict[str, Any], *, is_encrypted: bool
) -> None:
    assert not exists_within_lease(
        replace(OBSERVED, **snapshot), replace(PUT, **put), is_encrypted=is_encrypted
    )


def test_a_shorter_lease_than_the_records_is_enough() -> None:
    snapshot = replace(OBSERVED, keyring=replace(RING, lease_s=60))
    assert exists_within_lease(snapshot, PUT, is_encrypted=True)
    late = replace(PUT, date=READ_AT + timedelta(seconds=20))
    assert not exists_within_lease(snapshot, late, is_encrypted=True)


def leased_bench(way: str = "put", **more: Any) -> Bench:
    return bench(way, **{"ring": RING, **more})


@pytest.mark.parametrize(
    ("way", "reads"), [("put", 1), ("put_stream", 1), ("complete_multipart", 3)]
)
async def test_reads_of_the_keyring(way: str, reads: int) -> None:
    """One read for one put; an upload in parts reads before and after."""
    on = leased_bench(way)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert on.storage.calls["read"] == reads
    assert await on.plaintext() == DATA


@pytest.mark.parametrize("way", WAYS)
async def test_plaintext_always_needs_a_second_read(way: str) -> None:
    """The keyring forbade plaintext during the put: no sweep would encrypt it."""
    ring = replace(keyring(plaintext=True), lease_s=LEASE_S)
    on = leased_bench(way, ring=ring, encryption_enabled=False)

    async def forbid() -> None:
        on.write_keyring(replace(on.ring, plaintext_allowed=False))

    on.storage.before_next(way, forbid)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_a_rotation_during_the_put_is_left_to_its_sweep() -> None:
    """The object exists within a lease of the rotation: every proof of its sweep comes later."""
    on = leased_bench()
    on.storage.before_next("put", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert on.storage.calls["copy_onto_itself"] == 0


async def test_a_put_that_outlasts_its_lease_reads_the_keyring_again() -> None:
    on = leased_bench("put_stream")
    original = on.storage.put_stream

    async def slow(*args: Any, **kwargs: Any) -> Any:
        written = await original(*args, **kwargs)
        await on.rotate()
        on.storage.advance(LEASE_S)
        # Dated before the commit.
        return replace(written, date=on.storage.now - timedelta(seconds=LEASE_S + 1))

    on.storage.put_stream = slow  # type: ignore[method-assign]
    assert await on.serve(request(on, "put_stream")) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA


async def test_a_keyring_read_of_more_than_a_sixth_of_a_lease_gives_no_lease() -> None:
    on = leased_bench()
    original, slow_reads = on.storage.read, [2.6, 2.6, 2.6, 2.4, 0.0]

    async def slow(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        on.storage.advance(slow_reads.pop(0))
        return answer

    on.storage.read = slow  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailableError, match="no lease"):
        await on.serve(request(on))
    assert on.storage.calls["put"] == 0
    on.storage.advance(10)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
