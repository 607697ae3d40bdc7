"""Long work lets others have their turn."""

from __future__ import annotations

import asyncio

from keyturn_workers.console.feeds.pacing import SLICE_S, Pacer


async def test_others_have_their_turn_after_each_slice() -> None:
    now, turns = 0.0, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    pacer = Pacer(clock=lambda: now)
    task = asyncio.create_task(others())
    for _ in range(100):
        now += SLICE_S / 10
        await pacer.breathe()
    task.cancel()
    assert 9 <= turns <= 11


def test_a_share_leaves_the_rest_of_the_time_to_others() -> None:
    assert Pacer().pause_s(SLICE_S) == 0
    assert Pacer(0.5).pause_s(SLICE_S) == SLICE_S
    assert Pacer(0.25).pause_s(SLICE_S) == 3 * SLICE_S
    assert Pacer(0.5).pause_s(3600) == 10 * SLICE_S
