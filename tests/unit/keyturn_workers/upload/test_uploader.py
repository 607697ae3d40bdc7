"""What changes during an upload: keyring, lease, and the object at its key (SPEC 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    CodedError,
    CorruptObjectError,
    DeletedKeyError,
    StorageUnavailableError,
)
from keyturn_workers.storage import Headers
from keyturn_workers.upload import UploadResult
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.upload.bench import (
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
    from keyturn.messages import UploadRequested

from typing import TYPE_CHECKING

from tests.support.scrape import risen, shown

if TYPE_CHECKING:
    from keyturn.messages import UploadRequested


BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)


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


async def test_plaintext_is_stored_if_encryption_is_off() -> None:
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == DATA
    assert await on.metadata() == {"enc-upload": UPLOAD_ID}


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
        await on.uploader.discard_staged(sent, "api")

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


_BYTES = "keyturn_stored_bytes_total"


_STAGE = 'keyturn_stage_seconds_count{queue="keyturn.upload",stage="'


async def _measured(on: Bench, asked: UploadRequested, **more: Any) -> dict[str, float]:
    """How often each stage was measured, and the bytes stored, for this upload."""
    before = shown(on.metrics)
    await on.serve(asked, **more)
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
    asked = request(on)
    await on.serve(asked)
    assert await _measured(on, asked, seen_before=True) == {"look": 1}
    await on.rotate()
    assert await _measured(on, asked, seen_before=True) == {"look": 1, "settle": 1}
