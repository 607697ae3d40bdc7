"""What the storage's unit tests share."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import uvloop

from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.storage.credentials import Credentials
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.storage.s3_connections import open_pool
from keyturn_workers.storage.s3_http import S3HttpClient
from tests.unit.keyturn_workers.storage.servers import scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.unit.keyturn_workers.storage.servers import ScriptedServer


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
    """As `open_storage` makes it; a session of botocore would take longer than most tests.

    Its order of keys is known, so that scripts need no requests that find it out.
    """
    settings = server.settings()
    assert settings.s3_access_key_id is not None
    assert settings.s3_secret_access_key is not None
    base_url = f"{settings.s3_endpoint_url}/{settings.s3_bucket}/"
    async with open_pool(base_url, 4) as pool:
        http = S3HttpClient(
            pool,
            base_url=base_url,
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            credentials=Credentials(
                settings.s3_access_key_id, settings.s3_secret_access_key.get_secret_value()
            ),
        )
        yield S3Storage(http, Capabilities(lists_by_path=False))
