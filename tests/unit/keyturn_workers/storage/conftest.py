"""What the storage's unit tests share."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import uvloop

from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.unit.keyturn_workers.storage.scripted_server import scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer


# How a transport is closed or aborted is the event loop's own code: workers run on uvloop.
_ON_BOTH_LOOPS = ("test_s3_http", "test_s3_connections")


@pytest.fixture(autouse=True)
def no_server_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that the environment names is for other tests."""
    for name in os.environ:
        if name.startswith(("KEYTURN_S3_", "AWS_")):
            monkeypatch.delenv(name)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A hook of pytest-asyncio."""
    if item.path.stem in _ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def storage(server: ScriptedServer) -> AsyncIterator[S3Storage]:
    """Its order of keys is known, so that scripts need no requests that find it out."""
    by_bytes = Capabilities(lists_by_path=False)
    async with open_storage(server.settings(), capabilities=by_bytes, max_connections=4) as storage:
        yield storage
