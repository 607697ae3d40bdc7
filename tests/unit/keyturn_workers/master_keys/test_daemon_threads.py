"""Blocking calls in threads that no caller and no exit waits for."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from keyturn_workers.master_keys.daemon_threads import DaemonThreads

_HANGS_AT_EXIT = """
import asyncio, threading
from keyturn_workers.master_keys.daemon_threads import DaemonThreads

async def main():
    try:
        await DaemonThreads("test", 1).run(threading.Event().wait, 0.05)
    except TimeoutError:
        print("gave up")

asyncio.run(main())
"""


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends hanging calls, at the latest with the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_result_comes_back_from_another_thread() -> None:
    threads = DaemonThreads("test", 2)
    assert await threads.run(threading.current_thread, 5) is not threading.current_thread()
    threads.close()


async def test_an_error_comes_back() -> None:
    threads = DaemonThreads("test", 1)
    with pytest.raises(ValueError, match="seven"):
        await threads.run(lambda: int("seven"), 5)
    assert await threads.run(lambda: 7, 5) == 7
    threads.close()


async def test_calls_share_at_most_size_threads(release: threading.Event) -> None:
    threads = DaemonThreads("test", 2)
    begun = threading.Semaphore(0)

    def call() -> str:
        begun.release()
        release.wait()
        return threading.current_thread().name

    calls = [asyncio.create_task(threads.run(call, 30)) for _ in range(6)]
    for _ in range(2):
        await asyncio.to_thread(begun.acquire)
    assert not begun.acquire(blocking=False)
    release.set()
    assert len(set(await asyncio.gather(*calls))) <= 2
    threads.close()


async def test_an_idle_thread_is_used_again() -> None:
    threads = DaemonThreads("test", 100)
    names = {await threads.run(lambda: threading.current_thread().name, 5) for _ in range(50)}
    assert len(names) < 50
    threads.close()


async def test_a_hanging_call_costs_its_thread_and_no_other(release: threading.Event) -> None:
    threads = DaemonThreads("test", 2)
    with pytest.raises(TimeoutError):
        await threads.run(release.wait, 0.05)
    assert [await threads.run(lambda: 7, 5) for _ in range(20)] == [7] * 20
    threads.close()


async def test_a_call_that_no_thread_began_in_time_is_dropped(release: threading.Event) -> None:
    threads = DaemonThreads("test", 1)
    hanging = asyncio.create_task(threads.run(release.wait, 30))
    await asyncio.sleep(0)  # it is in the queue
    called = []
    with pytest.raises(TimeoutError):
        await threads.run(lambda: called.append(1), 0.05)
    release.set()
    await hanging
    assert await threads.run(lambda: 7, 5) == 7
    assert called == []
    threads.close()


async def test_threads_end_when_they_are_closed() -> None:
    threads = DaemonThreads("test", 1)
    thread = await threads.run(threading.current_thread, 5)
    threads.close()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


def test_a_hanging_call_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS_AT_EXIT],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "gave up\n"
