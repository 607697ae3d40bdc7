"""Processes under test: one not ready is reported; a forked one behaves like a started one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from keyturn_workers.core.storage_values import Capabilities
from tools.harness.fork_server import ForkServer, can_fork
from tools.harness.process import WorkerProcess
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SLOW = "import sys, time; print('loading', file=sys.stderr, flush=True); time.sleep(60)"
_FAILING = "raise SystemExit('no settings')"


async def _start(program: str) -> WorkerProcess:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stderr=asyncio.subprocess.PIPE
    )
    running = WorkerProcess(process)
    running._reader = asyncio.create_task(running._read())
    return running


async def test_a_process_that_is_not_ready_in_time_is_reported_with_its_log() -> None:
    running = await _start(_SLOW)
    await running.logged("loading")
    with pytest.raises(ServerError, match=r"(?s)'worker started'.*within 0\.1 s.*loading"):
        await running.started("worker started", timeout_s=0.1)
    await running.kill()


async def test_a_process_that_ends_first_is_reported_with_its_log() -> None:
    running = await _start(_FAILING)
    with pytest.raises(ServerError, match=r"(?s)status 1.*no settings"):
        await running.started("worker started")


# A forked process: its log, its exit status, its signals.


_ENV = {"PATH": os.environ["PATH"], "HOME": "/"}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.mark.slow
async def test_a_command_reads_its_own_arguments_and_environment(
    server: ForkServer, tmp_path: Path
) -> None:
    failed = await server.start("keyturn_workers", ["worker", "upload"], _ENV, tmp_path)
    printed = (await failed.stderr.read()).decode()
    assert (await failed.wait(), failed.returncode) == (2, 2)
    assert "KEYTURN_" in printed
    assert failed.stdout is None
    told = await server.start("keyturn_workers", ["--help"], _ENV, tmp_path, reads_output=True)
    assert told.stdout is not None
    assert b"worker" in await told.stdout.read()
    assert await told.wait() == 0
    wrong = await server.start("keyturn_workers", ["worker", "no-such-role"], _ENV, tmp_path)
    assert b"no-such-role" in await wrong.stderr.read()
    assert await wrong.wait() == 2


@pytest.mark.slow
async def test_a_signal_ends_one_and_leaves_the_others(server: ForkServer, tmp_path: Path) -> None:
    first = await server.start("http.server", ["0"], _ENV, tmp_path)
    second = await server.start("http.server", ["0"], _ENV, tmp_path)
    async with asyncio.timeout(30):
        while psutil.Process(first.pid).cwd() != str(tmp_path):  # noqa: ASYNC110  # it has just begun
            await asyncio.sleep(0.01)
    first.kill()
    assert await first.wait() == -signal.SIGKILL
    assert second.returncode is None
    second.terminate()
    assert await second.wait() == -signal.SIGTERM


@pytest.mark.slow
async def test_an_ended_process_leaves_no_descriptor_open(
    server: ForkServer, tmp_path: Path
) -> None:
    open_files = []
    for _ in range(3):
        ended = await server.start("keyturn_workers", ["--help"], _ENV, tmp_path)
        await ended.stderr.read()
        assert await ended.wait() == 0
        open_files.append(psutil.Process().num_fds())
    assert open_files[0] == open_files[-1]


@pytest.mark.slow
async def test_nothing_outlives_the_server(tmp_path: Path) -> None:
    server = ForkServer()
    running = await server.start("http.server", ["0"], _ENV, tmp_path)
    server.close()
    assert await running.wait() == -signal.SIGKILL
    assert not psutil.pid_exists(running.pid)


@pytest.mark.slow
def test_what_the_interpreter_reads_at_its_start_cannot_be_given_later() -> None:
    assert can_fork(_ENV)
    assert not can_fork(_ENV | {"PYTHONPATH": "/"})


@pytest.mark.slow
async def test_known_capabilities_reach_the_worker(server: ForkServer, tmp_path: Path) -> None:
    """A worker that assumes them does not contact its storage; here there is none."""
    module = "tests.unit.tools.harness.print_capabilities"
    known = Capabilities(copy_keeps_tags=True, lists_by_path=False)
    assuming = await server.start(module, [], _ENV, tmp_path, capabilities=known)
    assert (await assuming.stderr.read()).decode().strip() == str(known)
    measuring = await server.start(module, [], _ENV, tmp_path)
    assert b"no S3 credentials" in await measuring.stderr.read()
    assert await measuring.wait() == 1
