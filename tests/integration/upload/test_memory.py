"""A worker's memory does not grow with the bodies that it has served or refused (SPEC 7).

`make bench ARGS="--only memory"` measures 2,000 bodies of each kind. Here, fewer of them show the
same: a worker that keeps them grows by more than their size, which is six times what is allowed.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import psutil
import pytest

from keyturn.topology import UPLOAD_QUEUE
from tools.harness import requests

if TYPE_CHECKING:
    from tools.harness.worker_under_test import WorkerUnderTest

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MIB = 2**20
_BODY = os.urandom(250_000)
_AT_ONCE = 64
_WARM = 2 * _AT_ONCE
_COUNT = 6 * _AT_ONCE
_GROWTH_MAX_BYTES = 16 * _MIB


async def _send(served: WorkerUnderTest, kind: str, count: int) -> None:
    """Send messages of a kind, and wait until the worker has received them."""
    for _ in range(0, count, _AT_ONCE):
        keys = [f"{kind}/{requests.new_id()}" for _ in range(_AT_ONCE)]
        made = [requests.upload(served.deployment, "acme", key, _BODY).document for key in keys]
        signed = [served.sign(each) for each in made]
        await asyncio.gather(
            *(
                served.wire.publish(s.routing_key, s.body, {} if kind == "unsigned" else s.headers)
                for s in signed
            )
        )
    async with asyncio.timeout(120):
        while await served.wire.depth(UPLOAD_QUEUE):  # noqa: ASYNC110  # the broker has no event
            await asyncio.sleep(0.05)


async def _resident_bytes(process: psutil.Process) -> int:
    """The lowest value in two seconds: the last deliveries, in flight, have bodies too."""
    lowest: int = process.memory_info().rss
    for _ in range(20):
        await asyncio.sleep(0.1)
        lowest = min(lowest, process.memory_info().rss)
    return lowest


@pytest.mark.parametrize("kind", ["stored", "unsigned"])
async def test_memory_is_flat_under_large_bodies(served: WorkerUnderTest, kind: str) -> None:
    process = psutil.Process(served.process.process.pid)
    await _send(served, kind, _WARM)
    before = await _resident_bytes(process)
    await _send(served, kind, _COUNT)
    # On a busy machine, the last deliveries keep their bodies for longer. A worker that keeps
    # bodies for good never passes.
    growth = await _resident_bytes(process) - before
    for _ in range(10):
        if growth < _GROWTH_MAX_BYTES:
            break
        growth = await _resident_bytes(process) - before
    assert growth < _GROWTH_MAX_BYTES
