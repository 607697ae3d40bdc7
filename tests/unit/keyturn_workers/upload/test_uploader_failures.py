"""Failures in the middle of an upload, and what its next delivery does (SPEC 7.1)."""

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


async def test_a_keyring_that_is_gone_after_the_put_stops_the_upload() -> None:
    """A result that cannot be checked is not published; a later delivery finds its object."""
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
    """Credentials that may not write: retried later, and no part is left open."""
    on = bench(way)
    on.storage.fail_next(way, RefusedError("no"), times=20)
    with pytest.raises(StorageUnavailableError, match="refuses"):
        await on.serve(request(on, way))
    assert 1 < on.storage.calls[way] < 10
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_a_false_precondition_failure_is_survived(way: str) -> None:
    """The condition failed on this upload's own object, stored by the first send of the put."""
    on = bench(way)
    on.storage.fail_next(way, PreconditionError("412"), after_effect=True)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert on.storage.calls[way] == 1


async def test_a_false_precondition_failure_during_a_rotation_is_survived() -> None:
    """The object is its own, one generation behind."""
    on = bench()
    on.storage.fail_next("put", PreconditionError("412"), after_effect=True)
    on.storage.before_next("read_start", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA


@BY_ALL_WAYS
async def test_a_precondition_failure_without_an_object_is_unavailable_storage(way: str) -> None:
    """Published neither as stored nor as taken: retried later."""
    on = bench(way)
    on.storage.fail_next(way, PreconditionError("412"))
    with pytest.raises(StorageUnavailableError, match="no object exists"):
        await on.serve(request(on, way))
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_a_lost_response_stores_nothing_twice(way: str) -> None:
    """The outcome is unknown: the next delivery reads the target, and stores nothing twice."""
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
async def test_a_lost_request_is_sent_again_under_a_new_dek(way: str) -> None:
    """The put never arrived: the next delivery stores the object under a DEK of its own."""
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
async def test_a_keyring_that_is_unreadable_after_the_put_delays_the_result(way: str) -> None:
    """Stored but not checked: the next delivery finishes it."""
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
    """A lost put and the next one share no key: headers and DEKs differ."""
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


async def test_a_staged_body_that_cannot_be_deleted_is_left_to_the_cleanup() -> None:
    """The upload is published anyway."""
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.serve(sent)
    on.storage.fail_next("delete", StorageUnavailableError("down"))
    await on.uploader.discard_staged(sent, "api")
    assert await on.exists(STAGED)


@pytest.mark.parametrize("way", ["put_stream", "complete_multipart"])
async def test_a_staged_body_damaged_at_its_end_is_refused(way: str) -> None:
    """No object, no open parts, and the staged body is unchanged."""
    on = bench(way)
    sent = request(on, way)
    _, sealed = await on.storage.read(STAGED)
    on.storage.plant(STAGED, sealed[:-1] + bytes([sealed[-1] ^ 1]), Headers({}))
    with pytest.raises(BadSealError):
        await on.serve(sent)
    assert not await on.exists(TARGET)
    assert await on.exists(STAGED)
    assert await on.open_uploads() == []


async def test_parts_of_a_killed_worker_are_aborted() -> None:
    """The next delivery aborts them; those of another key stay."""
    on = bench("complete_multipart")
    for key in (TARGET, TARGET + "ey"):
        upload_id = await on.storage.create_multipart(key, Headers({}))
        await on.storage.upload_part(key, upload_id, 1, b"part")
    await on.serve(request(on, "complete_multipart"), seen_before=True)
    assert await on.open_uploads() == [TARGET + "ey"]


async def test_copies_of_a_retry_do_not_abort_each_other() -> None:
    """A broker writer copied one retry: no copy aborts the parts of another."""
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
    """The open parts may belong to a sweep's copy of the object onto itself."""
    on = bench("complete_multipart")
    sent = request(on, "complete_multipart")
    await on.serve(sent)
    await on.storage.create_multipart(TARGET, Headers({}))
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.open_uploads() == [TARGET]


async def test_parts_that_cannot_be_listed_do_not_fail_the_upload() -> None:
    on = bench("complete_multipart")
    on.storage.fail_next("list_multipart_uploads", StorageUnavailableError("down"))
    sent = request(on, "complete_multipart")
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)


async def test_an_upload_whose_parts_were_aborted_is_retried() -> None:
    """The parts are gone at the completion: retried later, and stored then."""
    on = bench("complete_multipart")
    sent = request(on, "complete_multipart")
    on.storage.fail_next("complete_multipart", MissingError("NoSuchUpload"))
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_an_unknown_projects_parts_are_left_alone() -> None:
    """A request for a project without a keyring is refused, and aborts nothing."""
    on = bench("complete_multipart")
    sent = _for_project(request(on, "complete_multipart"), "videos")
    await on.storage.create_multipart(object_s3_key("videos", "k"), Headers({}))
    with pytest.raises(CodedError):
        await on.serve(sent, seen_before=True)
    assert await on.open_uploads() == [object_s3_key("videos", "k")]


def _for_project(sent: UploadRequested, project: str) -> UploadRequested:
    return sent.model_copy(update={"project": project})
