"""An upload, over all its deliveries: what changes and what fails meanwhile (SPEC 7, 8.2).

Own plaintext that was forbidden before its upload was published is encrypted. What exists at the
key proves nothing, so what is sealed is always the request's own body.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, commits_to, seal, upload_tag
from keyturn.errors import (
    AlreadyExistsError,
    CodedError,
    CorruptObjectError,
    DeletedKeyError,
    MalformedRequestError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import Wraps, parse
from keyturn.metadata import upload_tag as tag_of
from keyturn_workers.core.errors import (
    MissingError,
    PreconditionError,
    RefusedError,
    UnstorableKeyError,
)
from keyturn_workers.core.storage_values import Capabilities, Headers, IfAbsent, IfMatch
from keyturn_workers.core.wraps import verify_upload
from keyturn_workers.pipeline.upload.attempt import Attempt, Upload
from keyturn_workers.pipeline.upload.uploader import UploadResult
from tests.support.scrape import risen, shown
from tests.unit.keyturn_workers.factories import ADMIN_KEKS, keyring
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import Page
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

if TYPE_CHECKING:
    from typing import Any

    from keyturn.messages import UploadRequested
    from keyturn_workers.core.storage_values import Condition
    from tests.unit.keyturn_workers.pipeline.upload.bench import Bench

BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
OWN = Headers({"enc-upload": UPLOAD_ID})
FORGED = bytes(len(DATA))
DELETED = Headers({"enc-algo": "deleted", "enc-dek-admin": "AAAA"})


@BY_ALL_WAYS
async def test_a_rotation_during_the_put_rewraps_the_object(way: str) -> None:
    """The wraps are of the old generation, and renewed before the result is published."""
    on = bench(way)
    on.storage.before_next(way, on.rotate)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA
    assert (await on.metadata())["enc-upload"] == UPLOAD_ID
    assert on.storage.calls["copy_onto_itself"] == 1


async def test_two_rotations_during_an_upload_rewrap_the_object_twice() -> None:
    """Once more during the rewrap."""
    on = bench()
    on.storage.before_next("put", on.rotate)
    on.storage.before_next("copy_onto_itself", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 3)
    assert await on.plaintext() == DATA


async def test_a_new_master_key_during_the_put_rewraps_the_object() -> None:
    """The admin wrap follows the master key that the keyring names."""
    on = bench()

    async def reseal() -> None:
        on.write_keyring(replace(on.ring, master_key="m2"))

    on.storage.before_next("put", reseal)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA
    assert (await on.metadata())["enc-kek-admin"] == "m2"


async def test_a_rotation_before_the_completion_starts_the_upload_again() -> None:
    """The wraps were fixed when the upload began: it is aborted and done again."""
    on = bench("complete_multipart")
    on.storage.before_next("upload_part", on.rotate)
    assert await on.serve(request(on, "complete_multipart")) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA
    assert on.storage.calls["create_multipart"] == 2
    assert on.storage.calls["complete_multipart"] == 1
    assert on.storage.calls["copy_onto_itself"] == 0
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_plaintext_forbidden_during_the_put_is_encrypted(way: str) -> None:
    """Plaintext that is forbidden by the time it is stored is encrypted in place."""
    on = bench(way, ring=keyring(plaintext=True), encryption_enabled=False)

    async def forbid() -> None:
        on.write_keyring(replace(on.ring, plaintext_allowed=False))

    on.storage.before_next(way, forbid)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_a_rotation_during_a_put_of_plaintext_changes_no_object() -> None:
    """There is nothing to rewrap; the published generation is the current one."""
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    on.storage.before_next("put", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 2)
    assert (await on.storage.read(TARGET))[1] == DATA


@BY_ALL_WAYS
async def test_an_expired_lease_puts_the_object_again(way: str) -> None:
    """The storage refuses the late put; the keyring is read again, and the object put again."""
    on = bench(way)

    async def stall() -> None:
        on.storage.advance(60)
        await on.rotate()

    on.storage.before_next(way, stall)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA
    assert on.storage.calls[way] == 2
    assert on.storage.calls["copy_onto_itself"] == 0
    assert await on.open_uploads() == []


async def test_an_object_stored_by_another_delivery_is_completed() -> None:
    """Between its reads of the target and of staging, another delivery stored the object."""
    on = bench("put_stream")
    sent = request(on, "put_stream")

    async def finish_first() -> None:
        await on.serve(sent)
        await on.uploader.discard_body(sent, "api")

    on.storage.before_next("stream", finish_first)
    assert await on.serve(sent) == UploadResult(len(DATA), 1)
    assert on.storage.calls["put_stream"] == 1
    assert not await on.exists(STAGED)


@BY_ALL_WAYS
@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({}, AlreadyExistsError),
        ({"enc-upload": OTHER_ID}, AlreadyExistsError),
        ({"enc-algo": "deleted"}, DeletedKeyError),
        ({"enc-algo": "deleted", "enc-upload": UPLOAD_ID}, DeletedKeyError),
        ({"enc-upload": UPLOAD_ID}, CorruptObjectError),
        ({"enc-upload": UPLOAD_ID, "enc-algo": "ROT13"}, CorruptObjectError),
        ({"enc-upload": UPLOAD_ID, "enc-algo": "Cobblestone-256"}, CorruptObjectError),
    ],
)
async def test_a_key_taken_during_the_put_refuses_the_upload(
    way: str, metadata: dict[str, str], error: type[CodedError]
) -> None:
    """Another writer took the key meanwhile: its object decides, and stays."""
    on = bench(way)

    async def take() -> None:
        on.storage.plant(TARGET, b"first", Headers(metadata))

    sent = request(on, way)
    on.storage.before_next(way, take)
    with pytest.raises(error):
        await on.serve(sent)
    assert (await on.storage.read(TARGET))[1] == b"first"
    assert await on.open_uploads() == []


@BY_ALL_WAYS
async def test_a_key_that_the_storage_cannot_hold_is_refused_for_good(way: str) -> None:
    """A retry would end the same way: the request is refused at once, with the reason."""
    on = bench(way)
    on.storage.fail_next(way, UnstorableKeyError("the key is too long"))
    with pytest.raises(MalformedRequestError, match="the key is too long"):
        await on.serve(request(on, way))
    assert await on.open_uploads() == []


@pytest.mark.parametrize(
    ("are_paths", "below", "error"),
    [
        (True, "acme/k/child", MalformedRequestError),
        (True, "acme/kk", StorageUnavailableError),
        (False, "acme/k/child", StorageUnavailableError),
    ],
)
@BY_ALL_WAYS
async def test_a_put_is_refused_although_no_object_exists(
    way: str, below: str, error: type[CodedError], *, are_paths: bool
) -> None:
    """For good where keys are paths and this one is a folder; elsewhere it may pass."""
    on = bench(way)
    on.storage.capabilities = replace(on.storage.capabilities, keys_are_paths=are_paths)
    on.storage.plant(below, b"", Headers({}))
    on.storage.fail_next(way, PreconditionError("put: PreconditionFailed"), times=4)
    with pytest.raises(error):
        await on.serve(request(on, way))
    assert await on.open_uploads() == []


async def test_a_key_that_means_another_object_is_refused_before_anything_is_read() -> None:
    on = bench()
    on.storage.capabilities = Capabilities(keys_are_paths=True)
    sent = request(on).model_copy(update={"key": "a\\b"})
    with pytest.raises(MalformedRequestError):
        await on.serve(sent)
    assert not on.storage.calls


@pytest.mark.parametrize("seen_before", [False, True])
async def test_a_first_delivery_of_an_inline_upload_does_not_read_its_target(
    *, seen_before: bool
) -> None:
    """Its first delivery costs no read of the target."""
    on = bench()
    await on.serve(request(on), seen_before=seen_before)
    assert on.storage.calls["read_start"] == int(seen_before)
    assert on.storage.calls["list_multipart_uploads"] == 0  # no inline body goes in parts


async def test_the_second_upload_of_a_key_is_refused() -> None:
    """The second finds the first one's object and leaves it alone."""
    on = bench()
    await on.serve(request(on, data=b"first"))
    with pytest.raises(AlreadyExistsError):
        await on.serve(request(on, data=b"second", upload_id=OTHER_ID))
    assert await on.plaintext() == b"first"


async def test_a_completed_upload_is_reconciled() -> None:
    on = bench()
    sent = request(on)
    await on.serve(sent)
    await on.rotate()
    assert await on.uploader.find_completed(sent, "api") == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA


async def test_completion_is_unknown_while_the_storage_fails() -> None:
    on = bench()
    on.storage.fail_next("read_start", StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await on.uploader.find_completed(request(on), "api")


# Stages that are measured.

_BYTES = "keyturn_stored_bytes_total"


_STAGE = 'keyturn_stage_seconds_count{queue="keyturn.upload",stage="'


async def _measured(on: Bench, upload: UploadRequested, **more: Any) -> dict[str, float]:
    """How often each stage was measured, and the bytes stored, for this upload."""
    before = shown(on.metrics)
    await on.serve(upload, **more)
    rise = risen(on.metrics, before)
    return {name.removeprefix(_STAGE).removesuffix('"}'): value for name, value in rise.items()}


async def test_a_first_inline_delivery_measures_three_stages() -> None:
    on = bench()
    expected = {"open": 1, "store": 1, "settle": 1, _BYTES: len(DATA)}
    assert await _measured(on, request(on)) == expected


async def test_a_staged_upload_reads_its_target_first() -> None:
    on = bench("put_stream")
    expected = {"look": 1, "open": 1, "store": 1, "settle": 1, _BYTES: len(DATA)}
    assert await _measured(on, request(on, "put_stream")) == expected


async def test_an_existing_object_is_not_stored_again() -> None:
    """A second delivery finds its object current, or rewraps it."""
    on = bench()
    upload = request(on)
    await on.serve(upload)
    assert await _measured(on, upload, seen_before=True) == {"look": 1}
    await on.rotate()
    assert await _measured(on, upload, seen_before=True) == {"look": 1, "settle": 1}


# Failures.


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
    """The put never arrived: the next delivery stores the object under its own DEK."""
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


async def test_a_staged_body_that_cannot_be_deleted_is_left_to_the_cleanup() -> None:
    """The upload is published anyway."""
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.serve(sent)
    on.storage.fail_next("delete", StorageUnavailableError("down"))
    await on.uploader.discard_body(sent, "api")
    assert await on.exists(STAGED)


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


# Plaintext that was forbidden meanwhile.


def plaintext_bench(way: str) -> Bench:
    return bench(way, ring=keyring(plaintext=True), encryption_enabled=False)


async def forbid(on: Bench) -> None:
    on.write_keyring(replace(on.ring, plaintext_allowed=False))


async def put_and_die(on: Bench, way: str, sent: UploadRequested) -> None:
    """A delivery whose worker dies between the put of plaintext and its event."""

    async def die() -> None:
        on.storage.fail_next("read", StorageUnavailableError("killed"))

    on.storage.before_next(way, die)
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    assert "enc-algo" not in await on.metadata()


@pytest.mark.parametrize(
    ("way", "data"),
    [*((way, DATA) for way in WAYS), ("put", b""), ("put_stream", b"")],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
async def test_the_next_delivery_encrypts_plaintext_that_is_forbidden(
    way: str, data: bytes
) -> None:
    on = plaintext_bench(way)
    sent = request(on, way, data=data)
    await put_and_die(on, way, sent)
    await forbid(on)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(data), 1)
    assert await on.plaintext() == data
    assert (await on.metadata())["enc-upload"] == UPLOAD_ID
    assert await on.open_uploads() == []


# Tags, on a storage whose copies drop them.

TAGS: Final = {"team": "legal"}


async def tagged_and_behind() -> tuple[Bench, UploadRequested]:
    """An upload that was stored, tagged and overtaken by a rotation before it was acknowledged."""
    on = bench()
    sent = request(on)
    await on.serve(sent)
    await on.storage.write_tags(TARGET, TAGS)
    await on.rotate()
    return on, sent


class _KilledError(Exception):
    """The process is killed at this point."""


@pytest.mark.parametrize(
    "error",
    [_KilledError(), StorageUnavailableError("no response"), RefusedError("AccessDenied")],
    ids=["killed", "no response", "refused"],
)
async def test_an_upload_whose_tags_cannot_be_put_back_loses_none(error: Exception) -> None:
    """A worker that dies or fails between its copy and the tags would lose them for good."""
    on, sent = await tagged_and_behind()
    on.storage.fail_next("write_tags", error, times=9)
    with pytest.raises(StorageUnavailableError, match="a sweep does that"):
        await on.serve(sent, seen_before=True)
    assert await on.storage.read_tags(TARGET) == TAGS


async def test_an_upload_with_tags_is_finished_once_a_sweep_has_rewrapped_it() -> None:
    on, sent = await tagged_and_behind()
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent, seen_before=True)
    await Page(on.storage, on.ring).process()
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)
    assert await on.storage.read_tags(TARGET) == TAGS
    assert await on.plaintext() == DATA


async def test_an_upload_without_tags_or_whose_storage_keeps_them_needs_no_sweep() -> None:
    for tags, capabilities in (({}, Capabilities()), (TAGS, Capabilities(copy_keeps_tags=True))):
        on, sent = await tagged_and_behind()
        on.storage.capabilities = capabilities
        await on.storage.write_tags(TARGET, tags)
        assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)
        assert await on.storage.read_tags(TARGET) == tags


async def test_plaintext_that_is_still_allowed_stays() -> None:
    on = plaintext_bench("put")
    sent = request(on)
    await put_and_die(on, "put", sent)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == DATA


async def test_plaintext_replaced_before_the_put_is_not_overwritten() -> None:
    """The put is conditional on the ETag that was compared."""
    on = bench()
    sent = request(on)
    on.storage.plant(TARGET, DATA, OWN)

    async def replace_it() -> None:
        on.storage.plant(TARGET, FORGED, OWN)

    on.storage.before_next("put", replace_it)
    with pytest.raises(CorruptObjectError):
        await on.serve(sent, seen_before=True)
    assert (await on.storage.read(TARGET))[1] == FORGED


async def test_plaintext_encrypted_by_another_delivery_is_completed() -> None:
    on = bench()
    sent = request(on)
    on.storage.plant(TARGET, DATA, OWN)

    async def other() -> None:
        await on.serve(sent, seen_before=True)

    on.storage.before_next("put", other)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_an_empty_body_deleted_meanwhile_stays_deleted() -> None:
    """A tombstone has the ETag of an empty body: the condition alone would overwrite it."""
    on = bench()
    sent = request(on, data=b"")
    on.storage.plant(TARGET, b"", OWN)

    async def nothing() -> None:
        pass

    async def delete() -> None:
        on.storage.plant(TARGET, b"", DELETED)

    on.storage.before_next("read_start", nothing)  # the look that finds the plaintext
    on.storage.before_next("read_start", delete)
    with pytest.raises(DeletedKeyError):
        await on.serve(sent, seen_before=True)
    assert (await on.metadata())["enc-algo"] == "deleted"


async def _begin(on: Bench, condition: Condition | None = None, **changed: Any) -> Attempt:
    upload = Upload(request(on).model_copy(update=changed), "api")
    snapshot = await on.keyrings.read_fresh("acme")
    return Attempt.begin(on.context, upload, b"t" * 32, condition or IfAbsent(), snapshot)


@pytest.mark.parametrize(
    ("encryption_enabled", "plaintext_allowed", "condition", "is_encrypted"),
    [
        (True, True, IfAbsent(), True),
        (True, False, IfAbsent(), True),
        (False, False, IfAbsent(), True),
        (False, True, IfAbsent(), False),
        # Over the upload's own plaintext, which is forbidden by now.
        (False, True, IfMatch("etag"), True),
    ],
)
async def test_an_object_is_plaintext_only_if_settings_and_keyring_allow_it(
    *, encryption_enabled: bool, plaintext_allowed: bool, condition: Condition, is_encrypted: bool
) -> None:
    ring = keyring(plaintext=plaintext_allowed)
    on = bench(ring=ring, encryption_enabled=encryption_enabled)
    assert (await _begin(on, condition)).is_encrypted is is_encrypted


async def test_an_encrypted_objects_metadata_opens_and_has_the_uploads_tag() -> None:
    on = bench()
    attempt = await _begin(on, metadata={"author": "kim"})
    metadata = attempt.headers(5).metadata
    wraps = parse(metadata)
    assert isinstance(wraps, Wraps)
    header = seal(attempt.dek, BODY_CONTEXT, b"hello")[:HEADER_BYTES]
    verified = verify_upload(wraps, header, "k", on.ring, ADMIN_KEKS)
    assert (verified.dek, verified.current) == (attempt.dek, True)
    assert metadata["author"] == "kim"
    assert metadata["enc-upload"] == UPLOAD_ID
    assert tag_of(metadata) == upload_tag(
        attempt.dek,
        publisher="api",
        project="acme",
        object_key="k",
        upload_id=UPLOAD_ID,
        size_bytes=5,
    )


async def test_plaintext_has_the_callers_metadata_and_the_uploads_id_alone() -> None:
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    attempt = await _begin(on, metadata={"author": "kim"})
    assert attempt.headers(5).metadata == {"author": "kim", "enc-upload": UPLOAD_ID}


@pytest.mark.parametrize(
    ("content_type", "stored"), [("text/plain", "text/plain"), ("  ", None), (None, None)]
)
async def test_a_blank_content_type_is_none(content_type: str | None, stored: str | None) -> None:
    attempt = await _begin(bench(), content_type=content_type)
    assert attempt.headers(5).content_type == stored


async def test_an_attempt_prints_no_key() -> None:
    attempt = await _begin(bench())
    assert repr(attempt.dek) not in repr(attempt)
    assert repr(attempt.transport_key) not in repr(attempt)
    assert repr(replace(attempt, dek=b"")) == repr(attempt)


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
    dek = verify_upload(wraps, second[:HEADER_BYTES], "k", on.ring, ADMIN_KEKS).dek
    assert commits_to(dek, BODY_CONTEXT, second[:HEADER_BYTES])
    assert not commits_to(dek, BODY_CONTEXT, first[:HEADER_BYTES])


async def test_plaintext_is_stored_if_encryption_is_off() -> None:
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == DATA
    assert await on.metadata() == {"enc-upload": UPLOAD_ID}
