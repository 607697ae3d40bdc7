"""The body of a request is opened from the message or from staging (SPEC 3, 6.4, 7.2)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import BadSealError, StagedBodyMissingError, UnknownIntakeKeyError
from keyturn_workers.storage import Headers
from keyturn_workers.upload.attempt import Upload
from keyturn_workers.upload.body import open_plaintext, open_staged, open_transport_key
from tests.unit.keyturn_workers.upload.bench import DATA, STAGED, TARGET, Bench, bench, request


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
    on.context.intake_keys = {}
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
