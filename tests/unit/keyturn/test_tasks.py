"""Concurrent work: results in order, the first error as it is, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import CorruptObjectError
from keyturn.tasks import cancel_all, gather_all, task_group

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Endless:
    """Work that ends only if it is canceled."""

    def __init__(self) -> None:
        self.is_canceled = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_canceled = True
            raise


async def _fail() -> None:
    raise CorruptObjectError("x") from LookupError("its cause")


async def test_results_are_in_the_order_of_the_work() -> None:
    async def later(number: int) -> int:
        for _ in range(5 - number):
            await asyncio.sleep(0)
        return number

    assert await gather_all(later(number) for number in range(5)) == [0, 1, 2, 3, 4]


async def test_the_first_failure_cancels_the_rest_and_is_raised_as_it_is() -> None:
    other = Endless()
    works: list[Coroutine[Any, Any, None]] = [other.run(), _fail()]
    with pytest.raises(CorruptObjectError) as raised:
        await gather_all(works)
    assert isinstance(raised.value.__cause__, LookupError)
    assert other.is_canceled


async def test_a_failing_block_cancels_its_tasks_and_its_error_is_raised_as_it_is() -> None:
    other = Endless()

    async def fail_in_block() -> None:
        async with task_group() as group:
            group.create_task(other.run())
            await asyncio.sleep(0)
            raise LookupError("of the block")

    with pytest.raises(LookupError, match="of the block"):
        await fail_in_block()
    assert other.is_canceled


async def test_canceled_tasks_have_ended() -> None:
    works = [Endless(), Endless()]
    tasks = {asyncio.create_task(work.run()) for work in works}
    tasks.add(asyncio.create_task(_fail()))
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert all(task.done() for task in tasks)
    assert all(work.is_canceled for work in works)
