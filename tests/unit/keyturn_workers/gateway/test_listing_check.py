"""The gateway asks in its own staging folder whether listings show overwrites (SPEC 8.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import RefusedError
from keyturn_workers.gateway.server import detect_capabilities
from keyturn_workers.storage import Capabilities
from tests.unit.keyturn_workers.storage.probe.broken_storages import ListsLate
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.storage import Headers, WriteResult


class Closed(MemoryStorage):
    """Accepts writes in one folder only, like the bucket policy."""

    async def put(self, key: str, body: bytes, headers: Headers, **how: Any) -> WriteResult:
        if not key.startswith(".keyturn/staging/gateway/"):
            raise RefusedError("put: AccessDenied")
        return await super().put(key, body, headers, **how)


async def test_a_storage_whose_listings_show_overwrites_is_detected() -> None:
    storage = Closed()
    await detect_capabilities(storage, "gateway")
    assert storage.capabilities.listings_show_overwrites
    assert storage.stored_keys() == []


async def test_late_listings_are_detected() -> None:
    storage = ListsLate()
    await detect_capabilities(storage, "gateway")
    assert not storage.capabilities.listings_show_overwrites


async def test_the_order_of_listings_is_detected() -> None:
    for by_path in (True, False):
        storage = MemoryStorage(capabilities=Capabilities(lists_by_path=by_path))
        storage.capabilities = Capabilities()
        await detect_capabilities(storage, "gateway")
        assert storage.capabilities.lists_by_path is by_path


async def test_detection_is_retried_if_the_storage_is_unavailable() -> None:
    storage = MemoryStorage()
    storage.fail_next("put", StorageUnavailableError("down"), times=20)
    await detect_capabilities(storage, "gateway", retry_s=0)
    assert storage.capabilities.listings_show_overwrites


async def test_a_gateway_without_write_permission_reads_keyrings_one_by_one() -> None:
    storage = Closed()
    await detect_capabilities(storage, "web")
    assert not storage.capabilities.listings_show_overwrites


class KeysArePaths(MemoryStorage):
    """Takes a backslash for a slash."""

    async def put(self, key: str, body: bytes, headers: Headers, **how: Any) -> WriteResult:
        return await super().put(key.replace("\\", "/"), body, headers, **how)


async def test_keys_that_are_paths_are_detected() -> None:
    """Then a key with a backslash is not read as another one."""
    for storage, are_paths in ((KeysArePaths(), True), (Closed(), False)):
        await detect_capabilities(storage, "gateway")
        assert storage.capabilities.keys_are_paths is are_paths
        assert storage.stored_keys() == []
