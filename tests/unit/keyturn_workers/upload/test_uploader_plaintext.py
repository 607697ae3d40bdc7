"""Own plaintext that was forbidden before its upload was published is encrypted (SPEC 8.2).

What stands proves nothing: an upload's id is not authenticated, so a bucket writer can put
plaintext of their own under it. Only plaintext that equals the request's body is this upload's
own, and what is sealed is always the request's own body.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import (
    CorruptObjectError,
    DeletedKeyError,
    StagedBodyMissingError,
    StorageUnavailableError,
)
from keyturn_workers.storage import Headers
from keyturn_workers.upload import UploadResult
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.upload.bench import (
    DATA,
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

BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)
OWN = Headers({"enc-upload": UPLOAD_ID})
FORGED = bytes(len(DATA))
DELETED = Headers({"enc-algo": "deleted", "enc-dek-admin": "AAAA"})


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


async def test_plaintext_that_is_still_allowed_stays() -> None:
    on = plaintext_bench("put")
    sent = request(on)
    await put_and_die(on, "put", sent)
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == DATA


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
