"""The body of an upload, from the publisher's seal to the object's (SPEC 3, 6.4, 7)."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.crypto import (
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    seal,
    sealed_size,
    to_base64,
    transport_context,
)
from keyturn.errors import (
    BadSealError,
    BodyTooLargeError,
    StagedBodyMissingError,
    UnknownIntakeKeyError,
)
from keyturn.messages import INLINE_MAX_BYTES, InlineBody
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.upload.attempt import Upload
from keyturn_workers.pipeline.upload.body import (
    decrypt_stream,
    digest,
    open_inline,
    open_plaintext,
    open_staged,
    open_transport_key,
    staged_plaintext_size,
)
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from tests.unit.keyturn_workers.pipeline.upload.bench import (
    DATA,
    OTHER_ID,
    STAGED,
    TARGET,
    UPLOAD_ID,
    Bench,
    bench,
    request,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET: Final = bytes(range(32))
CONTEXT: Final = transport_context(UPLOAD_ID)
SEALED: Final = seal(SECRET, CONTEXT, DATA)


@pytest.mark.parametrize("way", ["put", "put_stream"])
def test_the_size_is_that_of_the_plaintext(way: str) -> None:
    upload = Upload(request(bench(way), way), "api")
    assert upload.size_bytes() == len(DATA)
    assert upload.is_staged is (way == "put_stream")


def test_a_body_of_an_impossible_size_is_a_bad_seal() -> None:
    sent = request(bench())
    too_short = to_base64(bytes(sealed_size(0) - 1))
    upload = Upload(sent.model_copy(update={"body": InlineBody(inline=too_short)}), "api")
    with pytest.raises(BadSealError):
        upload.size_bytes()


def test_the_object_is_the_projects_and_the_staged_body_the_publishers() -> None:
    sent = request(bench("put_stream"), "put_stream")
    assert (Upload(sent, "api").s3_key, Upload(sent, "web").s3_key) == (TARGET, TARGET)
    assert Upload(sent, "api").staging_s3_key == STAGED
    assert Upload(sent, "web").staging_s3_key != STAGED


async def _cut(body: bytes, step: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), step):
        yield body[start : start + step]


async def _decrypted(
    sealed: bytes, step: int = 20_011, *, context: bytes = CONTEXT, into: bytearray | None = None
) -> bytes:
    plaintext = bytearray() if into is None else into
    async for piece in decrypt_stream(_cut(sealed, step), SECRET, context):
        plaintext += piece
    return bytes(plaintext)


def _inline(data: bytes, upload_id: str = UPLOAD_ID) -> InlineBody:
    return InlineBody(inline=to_base64(seal(SECRET, transport_context(upload_id), data)))


@pytest.mark.parametrize("size", [0, 1, INLINE_MAX_BYTES])
def test_an_inline_body_is_its_plaintext(size: int) -> None:
    data = os.urandom(size)
    assert open_inline(_inline(data), SECRET, UPLOAD_ID) == data


def test_an_inline_body_above_the_limit_is_refused_before_it_is_opened() -> None:
    too_large = _inline(bytes(INLINE_MAX_BYTES + 1))
    with pytest.raises(BodyTooLargeError):
        open_inline(too_large, bytes(32), UPLOAD_ID)


def test_an_inline_body_opens_for_its_own_upload_alone() -> None:
    with pytest.raises(BadSealError):
        open_inline(_inline(b"hello", OTHER_ID), SECRET, UPLOAD_ID)


def test_the_size_of_a_staged_body_is_known_before_it_is_read() -> None:
    assert staged_plaintext_size(len(SEALED), len(SEALED)) == len(DATA)
    with pytest.raises(BodyTooLargeError):
        staged_plaintext_size(len(SEALED), len(SEALED) - 1)
    with pytest.raises(BadSealError):
        staged_plaintext_size(HEADER_BYTES, len(SEALED))


@pytest.mark.parametrize("step", [1, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, 10**6])
async def test_a_sealed_body_may_arrive_in_any_pieces(step: int) -> None:
    data = DATA[: 70_000 if step > 7 else 300]
    assert await _decrypted(seal(SECRET, CONTEXT, data), step) == data


async def test_no_byte_of_a_damaged_chunk_is_released() -> None:
    damaged = bytearray(SEALED)
    damaged[HEADER_BYTES + SEALED_CHUNK_BYTES] ^= 1  # the first byte of the second chunk
    released = bytearray()
    with pytest.raises(BadSealError):
        await _decrypted(bytes(damaged), into=released)
    assert bytes(released) == DATA[: len(released)]
    assert len(released) < SEALED_CHUNK_BYTES


@pytest.mark.parametrize("left", [0, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9, -1])
async def test_a_sealed_body_that_ends_early_is_refused(left: int) -> None:
    with pytest.raises(BadSealError):
        await _decrypted(SEALED[:left])


async def test_a_sealed_body_with_bytes_behind_its_end_is_refused() -> None:
    with pytest.raises(BadSealError):
        await _decrypted(SEALED + b"x")


async def test_a_sealed_body_opens_in_its_own_context_alone() -> None:
    with pytest.raises(BadSealError):
        await _decrypted(SEALED, context=transport_context(OTHER_ID))


async def test_the_digest_does_not_depend_on_the_pieces() -> None:
    for step in (7, 20_011, len(DATA)):
        assert await digest(_cut(DATA, step)) == hashlib.sha256(DATA).digest()


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


async def _plaintext(on: Bench, upload: Upload) -> bytes:
    async with open_plaintext(on.context, upload) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("way", ["put", "put_stream"])
async def test_the_plaintext_is_that_of_the_request(way: str) -> None:
    on = bench(way)
    assert await _plaintext(on, Upload(request(on, way), "api")) == DATA


def test_a_sealed_key_opens_for_its_own_object_alone() -> None:
    on = bench()
    sent = request(on)
    assert len(open_transport_key(on.context, Upload(sent, "api"))) == 32
    with pytest.raises(BadSealError):
        open_transport_key(on.context, Upload(sent.model_copy(update={"key": "other"}), "api"))


def test_a_key_sealed_for_an_unknown_intake_key_is_refused() -> None:
    on = bench()
    sent = request(on)
    on.context.sessions = OpenedSessions("test", {})
    with pytest.raises(UnknownIntakeKeyError):
        open_transport_key(on.context, Upload(sent, "api"))


async def test_a_staged_body_is_its_publishers() -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    with pytest.raises(StagedBodyMissingError, match="no body"):
        await _plaintext(on, Upload(sent, "web"))


async def test_a_staged_body_of_another_size_is_not_the_one() -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    _, sealed = await on.storage.read(STAGED)
    on.storage.plant(STAGED, sealed[:-1], Headers({}))
    with pytest.raises(StagedBodyMissingError, match=f"{len(sealed) - 1} bytes"):
        await _plaintext(on, Upload(sent, "api"))


async def test_an_inline_body_is_not_staged() -> None:
    on = bench()
    with pytest.raises(TypeError):
        async with open_staged(on.context, Upload(request(on), "api")):
            pass


async def test_only_so_many_staged_bodies_are_compared_at_once() -> None:
    """Separate from the slots for storing: an upload that is compared may hold one of those."""
    on = bench("put_stream")
    upload = Upload(request(on, "put_stream"), "api")
    async with on.context.stream_slots, on.context.stream_slots:
        async with (
            open_plaintext(on.context, upload),
            open_plaintext(on.context, upload),
        ):
            third = asyncio.create_task(_plaintext(on, upload))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not third.done()
        assert await third == DATA


async def test_a_missing_staged_body_without_an_object_is_refused() -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await on.storage.delete(STAGED)
    with pytest.raises(StagedBodyMissingError):
        await on.serve(sent)
    assert not await on.exists(TARGET)
