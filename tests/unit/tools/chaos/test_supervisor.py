"""The supervisor of `make chaos` records unexpected exits and failed shutdowns."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tools.chaos import processes as crews
from tools.chaos.processes import ManagedProcess, Supervisor, run_supervisor
from tools.harness.console import ConsoleDeployment
from tools.harness.loopback import proxy
from tools.harness.process import WorkerProcess, worker
from tools.servers import S3Server
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NAME = "upload-1"


@asynccontextmanager
async def _one_worker(
    folder: Path, **more: str
) -> AsyncIterator[tuple[Supervisor, ManagedProcess]]:
    """A supervisor with one worker, which waits for an unreachable broker and storage."""
    nowhere = free_port()
    s3 = S3Server(f"http://127.0.0.1:{nowhere}", "key", "secret", "us-east-1", "given")
    deployment = ConsoleDeployment(f"amqp://guest:guest@127.0.0.1:{nowhere}/", s3, "bucket")
    async with proxy(nowhere) as broker_proxy, run_supervisor(deployment, folder) as supervisor:
        port = free_port()
        env = deployment.worker_env(HEALTH_PORT=str(port), LOG_LEVEL="debug", **more)
        process = supervisor.processes[NAME] = ManagedProcess(NAME, broker_proxy, env, port)
        await supervisor.start(NAME)
        yield supervisor, process


async def _process(process: ManagedProcess, number: int) -> int:
    """The id of the post's n-th process, once it has logged something."""
    async with asyncio.timeout(60):
        while len(process.logs) < number:  # noqa: ASYNC110  # the supervisor has no event for it
            await asyncio.sleep(0.01)
    await process.logs[number - 1].logged("")
    return process.logs[number - 1].process.pid


async def test_an_exit_that_nobody_requested_is_recorded(tmp_path: Path) -> None:
    """And the process is started again."""
    async with _one_worker(tmp_path) as (supervisor, process):
        first = await _process(process, 1)
        os.kill(first, signal.SIGKILL)
        assert await _process(process, 2) != first
        (message,) = supervisor.unexpected_exits
        assert message.startswith(f"{NAME} exited by itself, status -9: ")
        assert supervisor.statuses == []


async def test_an_exit_is_recorded_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with _one_worker(tmp_path, EVENT_KEY="no key") as (supervisor, process):
        await _process(process, 3)
        assert len(supervisor.unexpected_exits) >= 2
        assert "status 2: " in supervisor.unexpected_exits[0]
        assert "KEYTURN_EVENT_KEY" in supervisor.unexpected_exits[0]
        process.stop_requested = True


async def test_requested_exits_are_not_recorded(tmp_path: Path) -> None:
    async with _one_worker(tmp_path) as (supervisor, process):
        await _process(process, 1)
        await supervisor.kill(NAME)
        await _process(process, 2)
        await supervisor.terminate(NAME)
        await _process(process, 3)
        await supervisor.terminate(NAME, successor=False)
        assert (supervisor.unexpected_exits, supervisor.statuses) == ([], [])
        assert supervisor.done == {"kill -9 of upload": 1, "SIGTERM of upload": 2}
        assert len(process.logs) == 3


_STANDS_IN = """
import signal, sys, time
signal.signal(signal.SIGTERM, {handler})
print("worker started", file=sys.stderr, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("handler", "within_s", "status"),
    [
        ("lambda *_: sys.exit(3)", 40, 3),
        ("signal.SIG_DFL", 40, -15),
        # It does not exit in time, and is gone afterwards all the same.
        ("signal.SIG_IGN", 0.5, None),
    ],
)
async def test_a_failed_shutdown_is_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handler: str,
    within_s: float,
    status: int | None,
) -> None:
    monkeypatch.setattr(crews, "_END_S", within_s)
    program = (sys.executable, "-c", _STANDS_IN.format(handler=handler))
    monkeypatch.setattr(crews, "worker", partial(worker, program=program))
    async with _one_worker(tmp_path) as (supervisor, process):
        await _process(process, 1)
        await supervisor.terminate(NAME, successor=False)
        assert supervisor.statuses == [
            f"{NAME} exited with {status} within {within_s} s of SIGTERM"
        ]
        assert supervisor.unexpected_exits == []
        assert process.logs[0].process.returncode == (-signal.SIGKILL if status is None else status)


@pytest.mark.parametrize(
    ("events", "knows"),
    [
        ({}, False),
        ({"gateway started": 5}, False),
        ({"gateway started": 20}, True),
        ({"gateway started": 20, "marks are not current": 19}, False),
        ({"gateway started": 20, "marks are not current": 19, "marks are current": 1}, True),
        ({"gateway started": 20, "marks are not current": 3}, True),
    ],
    ids=["no start", "just started", "read", "no broker", "broker again", "broker lost later"],
)
def test_a_gateway_knows_the_marks_once_it_has_read_them(
    events: dict[str, int], *, knows: bool
) -> None:
    nothing: Any = None
    now = datetime.now(UTC)
    lines = [
        f'{{"event":"{event}","timestamp":"{now - timedelta(seconds=age_s)}"}}'
        for event, age_s in events.items()
    ]
    process = ManagedProcess("gateway-1", nothing, {}, 0, running=WorkerProcess(nothing, lines))
    assert process.knows_marks() is knows


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], False),
        (["worker started roles=['ingest']"], False),
        (["the broker cannot be reached (refused) address=amqp://b", "worker started"], False),
        (["worker started", "the broker cannot be reached (refused) address=amqp://b"], True),
        (["worker started", "the broker cannot be reached (refused)"], False),
    ],
    ids=["silent", "started", "started late", "starts again", "reconnects"],
)
def test_a_start_is_repeated_after_the_broker_was_lost_in_it(
    lines: list[str], expected: bool
) -> None:
    assert crews._starts_again(lines) is expected
