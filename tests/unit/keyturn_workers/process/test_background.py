"""Work beside what a process serves ends with it, whatever a library does to a cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress

import pytest
from aiormq.abc import TaskWrapper
from aiormq.exceptions import ChannelInvalidStateError

from keyturn_workers.process import background as module
from keyturn_workers.process.background import background, repeat, run_to_end


async def test_work_is_repeated_with_pauses_until_it_is_canceled() -> None:
    rounds, third = 0, asyncio.Event()

    async def act() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            third.set()

    async with asyncio.timeout(10), background(repeat(act, lambda: 0)):
        await third.wait()
    ended = rounds
    await asyncio.sleep(0)
    assert rounds == ended


async def _request_on_a_lost_connection() -> None:
    """A request to the broker whose connection is lost as it is canceled."""
    request = TaskWrapper(asyncio.create_task(asyncio.Event().wait()))
    request._exception = ChannelInvalidStateError("closed")
    await request


async def test_one_cancellation_ends_work_that_swallows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Aiormq raises the error of a lost connection instead; work that retries would go on."""
    rounds, begun = 0, asyncio.Event()

    async def act() -> None:
        nonlocal rounds
        rounds += 1
        begun.set()
        try:
            await _request_on_a_lost_connection()
        except ChannelInvalidStateError:
            return
        pytest.fail("aiormq does not swallow cancellations any more")

    async with asyncio.timeout(10), background(repeat(act, lambda: 0)):
        await begun.wait()
    assert rounds == 1
    assert capsys.readouterr().out == ""


async def test_work_that_does_not_end_keeps_the_process_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "END_TIMEOUT_S", 0.01)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with asyncio.timeout(10), background(stubborn()):
        await asyncio.sleep(0)
    assert "background work does not end" in capsys.readouterr().out
    release.set()


async def test_background_work_that_fails_is_logged_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail() -> None:
        raise ValueError("of the work")

    async with background(fail()):
        await asyncio.sleep(0.01)
        output = capsys.readouterr().out
    assert "background work failed" in output
    assert "of the work" in output


async def test_background_work_that_the_client_library_cancels_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A lost connection ends futures as canceled, and with them the task that awaits one."""

    async def lose() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with background(lose()):
        await asyncio.sleep(0.01)
        assert "background work failed" in capsys.readouterr().out
    async with background(asyncio.Event().wait()):  # type: ignore[arg-type]
        await asyncio.sleep(0)
    assert "background work failed" not in capsys.readouterr().out


_ENDING = """
import asyncio, sys
import aio_pika
from keyturn_workers.process.background import run_to_end

async def leave_a_connection_behind():
    called = asyncio.Event()
    server = await asyncio.start_server(lambda *_: called.set(), "127.0.0.1", 0)
    url = "amqp://127.0.0.1:%d/?reconnect_interval=1" % server.sockets[0].getsockname()[1]
    connecting = asyncio.create_task(aio_pika.connect_robust(url))
    await called.wait()
    connecting.cancel()
    return "ended"

print(asyncio.run(run_to_end(leave_a_connection_behind())))
"""


@pytest.mark.slow
def test_a_process_ends_although_a_connection_is_left_that_swallows_its_cancellation() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ENDING], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr.count("Traceback")) == ("ended\n", 0), done.stderr


async def test_tasks_that_never_end_are_named_and_keep_the_process_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "END_TIMEOUT_S", 0.3)
    is_over = False

    async def swallow() -> None:
        while not is_over:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    stubborn = asyncio.create_task(swallow(), name="stubborn")

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async with asyncio.timeout(10):
        assert await run_to_end(work()) == 7
    assert "stubborn" in capsys.readouterr().out
    is_over = True
    stubborn.cancel()
    await asyncio.wait({stubborn})
