"""A multipart upload is completed, or leaves nothing behind (SPEC 7.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import MissingError, RefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.storage.multipart import abort_multipart, open_multipart
from keyturn_workers.storage.streaming_body import KnownLengthBody
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.core.storage_values import MultipartUpload

PLAIN = Headers({})


async def _open_uploads(storage: MemoryStorage) -> list[MultipartUpload]:
    return [upload async for upload in storage.list_multipart_uploads("")]


async def test_a_completed_upload_is_an_object() -> None:
    storage = MemoryStorage()
    async with open_multipart(storage, "a/k", Headers({"a": "1"})) as upload_id:
        part = await storage.upload_part("a/k", upload_id, 1, b"body")
        await storage.complete_multipart("a/k", upload_id, [part])
    head, body = await storage.read("a/k")
    assert (head.metadata, body) == ({"a": "1"}, b"body")
    assert await _open_uploads(storage) == []


async def test_a_failure_aborts_the_upload_and_is_raised_as_it_was() -> None:
    storage = MemoryStorage()

    async def fail() -> None:
        async with open_multipart(storage, "a/k", PLAIN) as upload_id:
            await storage.upload_part("a/k", upload_id, 1, b"body")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await _open_uploads(storage) == []
    with pytest.raises(MissingError):
        await storage.head("a/k")


async def test_a_cancellation_aborts_the_upload_even_if_it_is_repeated() -> None:
    entered, aborting, answer = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(MemoryStorage):
        async def abort_multipart(self, key: str, upload_id: str) -> None:
            aborting.set()
            await answer.wait()
            await super().abort_multipart(key, upload_id)
            aborted.set()

    aborted, storage = asyncio.Event(), Slow()

    async def upload() -> None:
        async with open_multipart(storage, "a/k", PLAIN):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload())
    await entered.wait()
    assert len(await _open_uploads(storage)) == 1
    task.cancel()
    await aborting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answer.set()
    await aborted.wait()
    assert await _open_uploads(storage) == []


@pytest.mark.parametrize("failure", [StorageUnavailableError("canary"), RefusedError("canary")])
async def test_a_failed_abort_is_logged_and_hides_no_error(
    failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = MemoryStorage()
    storage.fail_next("abort_multipart", failure)
    with pytest.raises(LookupError):
        async with open_multipart(storage, "a/k", PLAIN):
            raise LookupError
    output = "".join(capsys.readouterr())
    assert "multipart upload not aborted" in output
    assert type(failure).__name__ in output
    assert "canary" not in output


async def test_an_upload_that_is_gone_is_aborted() -> None:
    await abort_multipart(MemoryStorage(), "a/k", "none")


async def _chunks(*given: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in given:
        yield chunk
    if error is not None:
        raise error


async def _sent(body: KnownLengthBody) -> tuple[bytes, Exception | None]:
    """What the storage was given, and the error if the body did not end."""
    sent = b""
    try:
        async for piece in body.pieces():
            sent += piece
    except (LookupError, ValueError) as exc:
        return sent, exc
    return sent, None


@pytest.mark.parametrize(
    "given", [(), (b"",), (b"abc",), (b"a", b"bc"), (b"", b"a", b"", b"bc", b"")]
)
async def test_a_body_of_its_length_is_sent_whole(given: tuple[bytes, ...]) -> None:
    body = b"".join(given)
    assert await _sent(KnownLengthBody(_chunks(*given), len(body))) == (body, None)
    assert await KnownLengthBody(_chunks(*given), len(body)).read_all() == body


@pytest.mark.parametrize(
    ("given", "size_bytes", "reason"),
    [((b"abc",), 4, "shorter"), ((), 1, "shorter"), ((b"a", b"bc"), 2, "longer")],
)
async def test_a_body_of_another_length_is_never_completed(
    given: tuple[bytes, ...], size_bytes: int, reason: str
) -> None:
    """Its last piece is held back: the storage has fewer bytes than were announced."""
    sent, failure = await _sent(KnownLengthBody(_chunks(*given), size_bytes))
    assert len(sent) < size_bytes
    assert isinstance(failure, ValueError)
    with pytest.raises(ValueError, match=reason):
        await KnownLengthBody(_chunks(*given), size_bytes).read_all()


@pytest.mark.parametrize("given", [(), (b"abc",), (b"ab", b"c")])
async def test_a_source_that_fails_at_the_end_completes_nothing(given: tuple[bytes, ...]) -> None:
    error = LookupError()
    sent, failure = await _sent(KnownLengthBody(_chunks(*given, error=error), 3))
    assert len(sent) < 3
    assert failure is error
