"""A body in parts: their sizes, and a few of them in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn.parts import part_size, send_parts, split_into_parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1024**2
DATA = bytes(range(256)) * 5


class SlowParts:
    """Holds each part until the test lets it go; the parts in `refused` fail then."""

    def __init__(self, *refused: int) -> None:
        self.refused = refused
        self.in_flight: set[int] = set()
        self.most = 0
        self.canceled: set[int] = set()
        self.go_on: dict[int, asyncio.Event] = {}
        self.changed = asyncio.Event()

    async def send(self, number: int, body: bytes) -> tuple[int, bytes]:
        self.in_flight.add(number)
        self.most = max(self.most, len(self.in_flight))
        self.changed.set()
        try:
            await self.go_on.setdefault(number, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.canceled.add(number)
            raise
        finally:
            self.in_flight.discard(number)
        if number in self.refused:
            raise LookupError("of the part")
        return number, body

    async def until(self, *numbers: int) -> None:
        while self.in_flight != set(numbers):
            self.changed.clear()
            await self.changed.wait()

    def release(self, number: int) -> None:
        self.go_on.setdefault(number, asyncio.Event()).set()


async def _pieces(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def _cut(data: bytes, step: int) -> AsyncIterator[bytes]:
    return _pieces(*(data[start : start + step] for start in range(0, len(data), step)))


def test_a_part_has_the_size_that_is_wanted() -> None:
    assert part_size(10_000 * 8 * MIB, 8 * MIB) == 8 * MIB


def test_parts_grow_so_that_no_body_has_more_than_10_000() -> None:
    assert part_size(10_000 * 8 * MIB + 1, 8 * MIB) == 8 * MIB + 1


@pytest.mark.parametrize("step", [1, 99, 100, 101, 5000])
async def test_parts_have_one_size_and_the_last_one_may_be_shorter(step: int) -> None:
    data = DATA[:1050]
    parts = [part async for part in split_into_parts(_cut(data, step), 100)]
    assert [len(part) for part in parts] == [100] * 10 + [50]
    assert b"".join(parts) == data


async def test_a_body_of_whole_parts_has_no_empty_one() -> None:
    parts = [part async for part in split_into_parts(_cut(DATA[:300], 70), 100)]
    assert [len(part) for part in parts] == [100, 100, 100]
    assert [part async for part in split_into_parts(_cut(b"", 70), 100)] == []


async def test_parts_are_sent_a_few_at_a_time_and_returned_in_order() -> None:
    slow = SlowParts()
    bodies = [bytes([number]) * 9 for number in range(5)]
    async with asyncio.timeout(10):
        sending = asyncio.create_task(send_parts(_pieces(*bodies), slow.send, at_once=3))
        await slow.until(1, 2, 3)
        slow.release(3)
        await slow.until(1, 2, 4)
        for number in (5, 4, 2, 1):
            slow.release(number)
        sent = await sending
    assert slow.most == 3
    assert sent == list(enumerate(bodies, start=1))


async def test_a_part_that_fails_cancels_the_others() -> None:
    slow = SlowParts(2)
    async with asyncio.timeout(10):
        sending = asyncio.create_task(send_parts(_pieces(b"1", b"2"), slow.send, at_once=3))
        await slow.until(1, 2)
        slow.release(2)
        with pytest.raises(LookupError, match="of the part"):
            await sending
    assert (slow.canceled, slow.in_flight) == ({1}, set())


async def test_a_body_that_fails_cancels_its_parts() -> None:
    slow = SlowParts()

    async def damaged() -> AsyncIterator[bytes]:
        yield b"1"
        await slow.until(1)
        raise ValueError("of the body")

    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="of the body"):
            await send_parts(damaged(), slow.send, at_once=3)
    assert slow.canceled == {1}
