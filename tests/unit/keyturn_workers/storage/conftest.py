"""What the storage's unit tests share."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# How a transport is closed or aborted is the event loop's own code: workers run on uvloop.
_ON_BOTH_LOOPS = ("test_s3_http", "test_s3_session")


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
