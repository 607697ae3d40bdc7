"""A multipart upload is completed, or leaves nothing behind (SPEC 7.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.storage import Headers
from keyturn_workers.storage.port import abort_multipart, open_multipart
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.storage import MultipartUpload

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
