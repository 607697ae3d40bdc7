"""A large body in parts: their size, their order, and what earlier deliveries left (SPEC 7.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import RefusedError
from keyturn_workers.storage import Headers
from keyturn_workers.upload import UploadResult
from keyturn_workers.upload.put import abort_leftovers, part_size, put_parts
from tests.unit.keyturn_workers.upload.bench import DATA, TARGET, bench, request
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage import Part

MIB: Final = 1024**2


class SlowParts(MemoryStorage):
    """Holds each part until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: set[int] = set()
        self.most = 0
        self.canceled: set[int] = set()
        self.go_on: dict[int, asyncio.Event] = {}
        self.changed = asyncio.Event()

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        self.in_flight.add(number)
        self.most = max(self.most, len(self.in_flight))
        self.changed.set()
        try:
            await self.go_on.setdefault(number, asyncio.Event()).wait()
            return await super().upload_part(key, upload_id, number, body)
        except asyncio.CancelledError:
            self.canceled.add(number)
            raise
        finally:
            self.in_flight.discard(number)

    async def until(self, *numbers: int) -> None:
        while self.in_flight != set(numbers):
            self.changed.clear()
            await self.changed.wait()

    def release(self, number: int) -> None:
        self.go_on.setdefault(number, asyncio.Event()).set()


async def _parts(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def test_a_part_has_the_size_that_is_wanted() -> None:
    assert part_size(10_000 * 8 * MIB, 8 * MIB) == 8 * MIB


def test_parts_grow_so_that_no_body_has_more_than_10_000() -> None:
    assert part_size(10_000 * 8 * MIB + 1, 8 * MIB) == 8 * MIB + 1


async def test_parts_are_put_a_few_at_a_time_and_returned_in_order() -> None:
    storage = SlowParts()
    upload_id = await storage.create_multipart(TARGET, Headers({}))
    bodies = [bytes([number]) * 9 for number in range(5)]
    async with asyncio.timeout(10):
        putting = asyncio.create_task(put_parts(storage, TARGET, upload_id, _parts(*bodies)))
        await storage.until(1, 2, 3)
        storage.release(3)
        await storage.until(1, 2, 4)
        for number in (5, 4, 2, 1):
            storage.release(number)
        done = await putting
    assert storage.most == 3
    assert [part.number for part in done] == [1, 2, 3, 4, 5]
    await storage.complete_multipart(TARGET, upload_id, done)
    assert (await storage.read(TARGET))[1] == b"".join(bodies)


async def test_a_part_that_fails_cancels_the_others() -> None:
    storage = SlowParts()
    upload_id = await storage.create_multipart(TARGET, Headers({}))
    storage.fail_next("upload_part", RefusedError("no"))
    async with asyncio.timeout(10):
        putting = asyncio.create_task(put_parts(storage, TARGET, upload_id, _parts(b"1", b"2")))
        await storage.until(1, 2)
        storage.release(2)
        with pytest.raises(RefusedError):
            await putting
    assert (storage.canceled, storage.in_flight) == ({1}, set())


async def test_a_body_that_fails_cancels_its_parts() -> None:
    async def damaged() -> AsyncIterator[bytes]:
        yield b"1"
        await storage.until(1)
        raise ValueError("of the body")

    storage = SlowParts()
    upload_id = await storage.create_multipart(TARGET, Headers({}))
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="of the body"):
            await put_parts(storage, TARGET, upload_id, damaged())
    assert storage.canceled == {1}


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
