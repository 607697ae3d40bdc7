"""A forked process behaves like a started one: its log, its exit status, its signals."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from keyturn_workers.storage import Capabilities
from tools.harness.fork_server import ForkServer, can_fork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

_ENV = {"PATH": os.environ["PATH"], "HOME": "/"}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


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


async def test_nothing_outlives_the_server(tmp_path: Path) -> None:
    server = ForkServer()
    running = await server.start("http.server", ["0"], _ENV, tmp_path)
    server.close()
    assert await running.wait() == -signal.SIGKILL
    assert not psutil.pid_exists(running.pid)


def test_what_the_interpreter_reads_at_its_start_cannot_be_given_later() -> None:
    assert can_fork(_ENV)
    assert not can_fork(_ENV | {"PYTHONPATH": "/"})


async def test_known_capabilities_reach_the_worker(server: ForkServer, tmp_path: Path) -> None:
    """A worker that assumes them does not contact its storage; here there is none."""
    module = "tests.unit.tools.harness.print_capabilities"
    known = Capabilities(copy_keeps_tags=True, lists_by_path=False)
    assuming = await server.start(module, [], _ENV, tmp_path, capabilities=known)
    assert (await assuming.stderr.read()).decode().strip() == str(known)
    measuring = await server.start(module, [], _ENV, tmp_path)
    assert b"no S3 credentials" in await measuring.stderr.read()
    assert await measuring.wait() == 1
