"""A process that does not become ready is reported with the end of its log."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tools.harness.process import WorkerProcess
from tools.servers.process import ServerError

_SLOW = "import sys, time; print('loading', file=sys.stderr, flush=True); time.sleep(60)"
_FAILING = "raise SystemExit('no settings')"


async def _start(program: str) -> WorkerProcess:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stderr=asyncio.subprocess.PIPE
    )
    running = WorkerProcess(process)
    running._reader = asyncio.create_task(running._read())
    return running


async def test_one_that_is_not_ready_in_time_is_reported_with_its_log() -> None:
    running = await _start(_SLOW)
    await running.logged("loading")
    with pytest.raises(ServerError, match=r"(?s)'worker started'.*within 0\.1 s.*loading"):
        await running.started("worker started", timeout_s=0.1)
    await running.kill()


async def test_one_that_ends_first_is_reported_with_its_log() -> None:
    running = await _start(_FAILING)
    with pytest.raises(ServerError, match=r"(?s)status 1.*no settings"):
        await running.started("worker started")
