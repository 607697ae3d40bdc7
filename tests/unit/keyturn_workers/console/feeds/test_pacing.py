"""Long work lets others have their turn."""

from __future__ import annotations

import asyncio
import time

from keyturn_workers.console.feeds.pacing import SLICE_S, Pacer


async def test_the_loop_is_not_blocked_for_longer_than_a_slice_and_a_message() -> None:
    pacer, turns = Pacer(), 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    end = time.perf_counter() + 6 * SLICE_S
    while time.perf_counter() < end:
        await pacer.breathe()
    task.cancel()
    assert turns >= 3


async def test_a_share_leaves_the_rest_of_the_time_to_others() -> None:
    pacer, began = Pacer(0.5), time.perf_counter()
    worked = 0.0
    while worked < 4 * SLICE_S:
        before = time.perf_counter()
        while time.perf_counter() - before < SLICE_S:
            pass
        worked += time.perf_counter() - before
        await pacer.breathe()
    assert time.perf_counter() - began > 1.8 * worked
