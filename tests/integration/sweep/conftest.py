"""A worker for a whole module, and the module's scenarios, which run against it at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.integration.sweep.scene import WORKER_ENV, Scene
from tools.harness.worker_under_test import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tools.servers import S3Server, Servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    request: pytest.FixtureRequest, broker: Servers, ceph: S3Server
) -> AsyncIterator[Scene]:
    """A worker of all roles on Ceph; the module's `MORE_ENV` are further settings of it."""
    env: dict[str, str] = getattr(request.module, "MORE_ENV", {})
    async with run_worker(broker, ceph, **WORKER_ENV, **env) as running:
        yield Scene(running)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    request: pytest.FixtureRequest, scene: Scene
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """The selected scenarios of the module, all under way: `SCENARIOS` by name."""
    asked_for = {
        item.callspec.params["scenario"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    tasks = {
        name: asyncio.create_task(play(scene), name=name)
        for name, play in request.module.SCENARIOS.items()
        if name in asked_for
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
