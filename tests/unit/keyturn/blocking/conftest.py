"""A gateway in memory, and a file system of its project."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.fsspec import KeyturnFileSystem
from tests.unit.keyturn.blocking.memory_gateway import MemoryGateway, memory_gateway
from tests.unit.keyturn.gateway.gateway import API_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[MemoryGateway]:
    with memory_gateway() as running:
        yield running


@pytest.fixture
def files(memory: MemoryGateway) -> KeyturnFileSystem:
    return KeyturnFileSystem(gateway=memory.url, api_key=API_KEY, skip_instance_cache=True)
