"""What is more urgent goes first, though no report waits forever (SPEC 16.1)."""

from __future__ import annotations

import asyncio
import time

from keyturn_workers.status.records import Pace
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.status.bucket import Bucket, request


async def test_a_batch_begins_at_once_if_there_is_nothing_else() -> None:
    async with asyncio.timeout(0.2):
        await Pace(lambda: 0, max_wait_s=9).next_batch()


async def test_a_batch_waits_for_others_until_they_are_done_or_it_has_waited_long() -> None:
    others = 1
    waiting = asyncio.create_task(Pace(lambda: others, max_wait_s=9).next_batch())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    others = 0
    async with asyncio.timeout(1):
        await waiting
    began = time.monotonic()
    await Pace(lambda: 1, max_wait_s=0.05).next_batch()
    assert 0.05 <= time.monotonic() - began < 1


async def test_reports_do_not_wait_for_each_other() -> None:
    """Two in hand, and nothing else: each counts itself and the other one."""
    bucket = Bucket()
    await bucket.enroll(keyring())
    reader = bucket.new_reader(in_hand=lambda: 2)
    async with asyncio.timeout(0.2):
        await asyncio.gather(*(reader.report(request("projects")) for _ in range(2)))


async def test_a_report_waits_for_another_request() -> None:
    bucket, in_hand = Bucket(), 2
    await bucket.enroll(keyring())
    reader = bucket.new_reader(in_hand=lambda: in_hand)
    reading = asyncio.create_task(reader.report(request("projects")))
    await asyncio.sleep(0.02)
    assert bucket.storage.calls["read"] == 0
    in_hand = 1
    async with asyncio.timeout(1):
        assert (await reading).code is None
    assert bucket.storage.calls["read"] == 1
