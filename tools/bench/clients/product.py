"""The product's storage, as its workers use it: through the port, with all that it checks."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from keyturn.settings import S3Settings
from keyturn_workers.storage import Headers, IfAbsent
from keyturn_workers.storage.s3 import open_storage
from tools.bench.bare import METADATA
from tools.bench.clients.asking import BODY, CONNECTIONS, CONTENT_TYPE, RANGE_BYTES, lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage import Storage
    from tools.bench.clients.asking import Client, Place

_HEADERS = Headers(METADATA, CONTENT_TYPE)


class Product:
    """`keyturn_workers.storage`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def put(self, key: str) -> str:
        put = self._storage.put(key, BODY, _HEADERS, condition=IfAbsent(), lease=lease())
        return (await put).etag

    async def get(self, key: str) -> None:
        await self._storage.read_start(key, RANGE_BYTES)

    async def head(self, key: str) -> None:
        await self._storage.head(key)

    async def copy(self, key: str, etag: str) -> None:
        await self._storage.copy_onto_itself(key, _HEADERS, source_etag=etag, lease=lease())


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Client]:
    """By the settings of the environment, as a worker opens it."""
    del place
    async with open_storage(S3Settings(), max_connections=CONNECTIONS) as storage:
        yield Product(storage)
