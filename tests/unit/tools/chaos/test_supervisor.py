"""The processes of `make chaos`: who ends by himself, or not in order, is noted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tools.chaos import supervisor as crews
from tools.chaos.supervisor import Crew, Post, crew
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.tcp_proxy import proxy
from tools.servers import S3Server
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NAME = "upload-1"


@asynccontextmanager
async def _one_worker(folder: Path, **more: str) -> AsyncIterator[tuple[Crew, Post]]:
    """A crew of one, whose broker and storage are away: it waits for them."""
    nowhere = free_port()
    s3 = S3Server(f"http://127.0.0.1:{nowhere}", "key", "secret", "us-east-1", "given")
    deployment = Deployment(f"amqp://guest:guest@127.0.0.1:{nowhere}/", s3, "bucket")
    async with proxy(nowhere) as way, crew(deployment, folder) as hired:
        port = free_port()
        env = deployment.worker_env(HEALTH_PORT=str(port), LOG_LEVEL="debug", **more)
        post = hired.posts[NAME] = Post(NAME, way, env, port)
        await hired.start(NAME)
        yield hired, post


async def _process(post: Post, number: int) -> int:
    """The id of the post's n-th process, once it has logged something."""
    async with asyncio.timeout(60):
        while len(post.logs) < number:  # noqa: ASYNC110  # the crew tells nobody
            await asyncio.sleep(0.01)
    await post.logs[number - 1].logged("")
    return post.logs[number - 1].process.pid


async def test_one_that_is_killed_by_somebody_else_is_noted_and_replaced(tmp_path: Path) -> None:
    async with _one_worker(tmp_path) as (hired, post):
        first = await _process(post, 1)
        os.kill(first, signal.SIGKILL)
        assert await _process(post, 2) != first
        (said,) = hired.fallen
        assert said.startswith(f"{NAME} ended by itself, status -9: ")
        assert hired.statuses == []


async def test_one_that_ends_by_itself_is_noted_each_time(tmp_path: Path) -> None:
    """With its last words, which say why."""
    async with _one_worker(tmp_path, EVENT_KEY="no key") as (hired, post):
        await _process(post, 3)
        assert len(hired.fallen) >= 2
        assert all(said.startswith(f"{NAME} ended by itself, status 2: ") for said in hired.fallen)
        assert "KEYTURN_EVENT_KEY" in hired.fallen[0]
        post.asked_to_end = True


async def test_what_the_run_does_itself_is_not_noted(tmp_path: Path) -> None:
    async with _one_worker(tmp_path) as (hired, post):
        await _process(post, 1)
        await hired.kill(NAME)
        await _process(post, 2)
        await hired.terminate(NAME)
        await _process(post, 3)
        await hired.terminate(NAME, successor=False)
        assert (hired.fallen, hired.statuses) == ([], [])
        assert hired.done == {"kill -9 of upload": 1, "SIGTERM of upload": 2}
        assert len(post.logs) == 3


_STANDS_IN = """
import signal, sys, time
signal.signal(signal.SIGTERM, {handler})
print("worker started", file=sys.stderr, flush=True)
time.sleep(600)
"""


def _stand_in(monkeypatch: pytest.MonkeyPatch, handler: str) -> None:
    """Another program in the worker's place, with this handler of SIGTERM."""
    program = (sys.executable, "-c", _STANDS_IN.format(handler=handler))
    monkeypatch.setattr(crews, "worker", partial(worker, program=program))


async def test_one_that_does_not_end_in_time_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is gone afterwards all the same."""
    monkeypatch.setattr(crews, "_END_S", 0.5)
    _stand_in(monkeypatch, "signal.SIG_IGN")
    async with _one_worker(tmp_path) as (hired, post):
        await _process(post, 1)
        await hired.terminate(NAME, successor=False)
        assert hired.statuses == [f"{NAME} ended with None within 0.5 s of SIGTERM"]
        assert post.logs[0].process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("handler", "status"), [("lambda *_: sys.exit(3)", 3), ("signal.SIG_DFL", -15)]
)
async def test_one_that_ends_otherwise_than_in_order_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, status: int
) -> None:
    _stand_in(monkeypatch, handler)
    async with _one_worker(tmp_path) as (hired, post):
        await _process(post, 1)
        await hired.terminate(NAME, successor=False)
        assert hired.statuses == [f"{NAME} ended with {status} within 40 s of SIGTERM"]
        assert hired.fallen == []
