"""What fails or is lost in the middle of an upload, and what its next delivery does (SPEC 7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    commits_to,
)
from keyturn.errors import (
    BadSealError,
    CodedError,
    StagedBodyMissingError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import Wraps, parse
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.objects.verify import verify
from keyturn_workers.storage import Headers
from keyturn_workers.upload import UploadResult
from tests.unit.keyturn_workers.factories import MASTER_KEYS, OPERATOR_KEYS
from tests.unit.keyturn_workers.upload.bench import DATA, STAGED, TARGET, WAYS, bench, request

if TYPE_CHECKING:
    from keyturn.messages import UploadRequested


BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)


async def test_keyring_gone_after_the_put() -> None:
    """What cannot be checked is not told; a later delivery finds its object."""
    on = bench()

    async def remove() -> None:
        await on.storage.delete(keyring_s3_key("acme"))

    sent = request(on)
    on.storage.before_next("put", remove)
    with pytest.raises(UnknownProjectError):
        await on.serve(sent)
    await on.rotate()
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)


@BY_ALL_WAYS
async def test_a_put_that_is_always_refused_is_unavailable_storage(way: str) -> None:
    """Keys that may not write: put off after a few tries, and not a part left open."""
    on = bench(way)
    on.storage.fail_next(way, RefusedError("no"), times=20)
    with pytest.raises(StorageUnavailableError, match="refuses"):
        await on.serve(request(on, way))
    assert 1 < on.storage.calls[way] < 10
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_false_precondition_failure(way: str) -> None:
    """The condition failed on this upload's own object: a resent put met its first attempt."""
    on = bench(way)
    on.storage.fail_next(way, PreconditionError("412"), after_effect=True)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert on.storage.calls[way] == 1


async def test_a_false_precondition_failure_during_a_rotation_is_survived() -> None:
    """The object that it meets is its own, and of yesterday's generation."""
    on = bench()
    on.storage.fail_next("put", PreconditionError("412"), after_effect=True)
    on.storage.before_next("read_start", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA


@BY_ALL_WAYS
async def test_a_precondition_failure_without_an_object_is_unavailable_storage(way: str) -> None:
    """Told neither as stored nor as taken: tried again later."""
    on = bench(way)
    on.storage.fail_next(way, PreconditionError("412"))
    with pytest.raises(StorageUnavailableError, match="no object exists"):
        await on.serve(request(on, way))
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_answer_lost(way: str) -> None:
    """Nobody knows whether it was stored: the next delivery looks, and stores nothing twice."""
    on = bench(way)
    sent = request(on, way)
    on.storage.fail_next(way, StorageUnavailableError("lost"), after_effect=True)
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    before = await on.storage.read(TARGET)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == before[1]
    assert on.storage.calls[way] == 1


@BY_ALL_WAYS
async def test_request_lost(way: str) -> None:
    """It never arrived: the next delivery stores it, under a DEK of its own."""
    on = bench(way)
    sent = request(on, way)
    on.storage.fail_next(way, StorageUnavailableError("lost"))
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    assert not await on.exists(TARGET)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_keyring_not_readable_after_the_put(way: str) -> None:
    """Stored but not checked: not told, and finished by the next delivery."""
    on = bench(way)
    sent = request(on, way)

    async def fail_reads() -> None:
        on.storage.fail_next("read", StorageUnavailableError("down"))

    on.storage.before_next(way, fail_reads)
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    await on.rotate()
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA
    assert on.storage.calls[way] == 1


async def test_each_attempt_has_its_own_dek() -> None:
    """A put that was lost and the one that follows share no key: headers differ, DEKs too."""
    on = bench()
    sent = request(on)
    on.storage.fail_next("put", StorageUnavailableError("lost"), after_effect=True)
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    _, first = await on.storage.read(TARGET)
    await on.storage.delete(TARGET)
    await on.serve(sent)
    head, second = await on.storage.read(TARGET)
    wraps = parse(head.metadata)
    assert isinstance(wraps, Wraps)
    desired = on.ring.desired(MASTER_KEYS)
    dek = verify(wraps, second[:HEADER_BYTES], "k", desired, OPERATOR_KEYS).dek
    assert commits_to(dek, BODY_CONTEXT, second[:HEADER_BYTES])
    assert not commits_to(dek, BODY_CONTEXT, first[:HEADER_BYTES])


async def test_a_missing_staged_body_without_an_object_is_refused() -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.storage.delete(STAGED)
    with pytest.raises(StagedBodyMissingError):
        await on.serve(sent)
    assert not await on.exists(TARGET)


async def test_staged_body_not_deleted() -> None:
    """The upload is told all the same; what stays is swept up later."""
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.serve(sent)
    on.storage.fail_next("delete", StorageUnavailableError("down"))
    await on.uploader.discard_staged(sent, "api")
    assert await on.exists(STAGED)


@pytest.mark.parametrize("way", ["put_stream", "complete_multipart"])
async def test_staged_body_damaged_at_its_end(way: str) -> None:
    """Nothing stands, nothing is open, and the staged body is left as it was."""
    on = bench(way)
    sent = request(on, way)
    _, sealed = await on.storage.read(STAGED)
    on.storage.plant(STAGED, sealed[:-1] + bytes([sealed[-1] ^ 1]), Headers({}))
    with pytest.raises(BadSealError):
        await on.serve(sent)
    assert not await on.exists(TARGET)
    assert await on.exists(STAGED)
    assert await on.open_uploads() == []


async def test_leftovers_of_a_killed_worker() -> None:
    """Parts that an earlier delivery left open go with the next one; a neighbour's stay."""
    on = bench("complete_multipart")
    for key in (TARGET, TARGET + "ey"):
        upload_id = await on.storage.create_multipart(key, Headers({}))
        await on.storage.upload_part(key, upload_id, 1, b"part")
    await on.serve(request(on, "complete_multipart"), seen_before=True)
    assert await on.open_uploads() == [TARGET + "ey"]


async def test_copies_of_a_retry_do_not_abort_each_other() -> None:
    """One retry copied by a broker writer: each copy that comes meanwhile takes no parts."""
    on = bench("complete_multipart")
    sent = request(on, "complete_multipart")

    async def more_copies() -> None:
        for _ in range(20):
            on.storage.fail_next("complete_multipart", StorageUnavailableError("slow"))
            with pytest.raises(StorageUnavailableError):
                await on.serve(sent, seen_before=True)
            assert await on.open_uploads() == [TARGET]  # that of the first

    on.storage.before_next("complete_multipart", more_copies)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert await on.open_uploads() == []


async def test_a_delivery_that_finds_its_object_aborts_nothing() -> None:
    """It may be a sweep's copy of the large object onto itself that has parts under way."""
    on = bench("complete_multipart")
    sent = request(on, "complete_multipart")
    await on.serve(sent)
    await on.storage.create_multipart(TARGET, Headers({}))
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.open_uploads() == [TARGET]


async def test_leftovers_that_cannot_be_listed_keep_no_upload_from_its_end() -> None:
    on = bench("complete_multipart")
    on.storage.fail_next("list_multipart_uploads", StorageUnavailableError("down"))
    sent = request(on, "complete_multipart")
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)


async def test_parts_aborted_by_another_delivery() -> None:
    """Its parts are gone at its completion: tried again later, and stored then."""
    on = bench("complete_multipart")
    sent = request(on, "complete_multipart")
    on.storage.fail_next("complete_multipart", MissingError("NoSuchUpload"))
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_an_unknown_projects_parts_are_left_alone() -> None:
    """A request for a project without a keyring is refused; it aborts nothing first."""
    on = bench("complete_multipart")
    sent = _for_project(request(on, "complete_multipart"), "videos")
    await on.storage.create_multipart(object_s3_key("videos", "k"), Headers({}))
    with pytest.raises(CodedError):
        await on.serve(sent, seen_before=True)
    assert await on.open_uploads() == [object_s3_key("videos", "k")]


def _for_project(sent: UploadRequested, project: str) -> UploadRequested:
    return sent.model_copy(update={"project": project})
