"""A gateway process: it starts without its broker, and learns what its bucket does."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from structlog.testing import capture_logs

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import AddressError, RefusedError
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.gateway import server
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.server import detect_capabilities
from keyturn_workers.process.background import background
from keyturn_workers.process.settings import GatewaySettings
from tests.unit.keyturn_workers.gateway.serving import ask
from tests.unit.keyturn_workers.storage.probe.broken_storages import ListsLate
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.deployment import Deployment
from tools.harness.memory_storage import MemoryStorage
from tools.servers import S3Server
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from keyturn_workers.core.storage_values import Headers, WriteResult

# --- A gateway process: it starts without its broker, and needs its address


_S3: Final = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
# No server listens there.
_DEPLOYMENT: Final = Deployment("amqp://127.0.0.1:1/", _S3, "bucket")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a gateway would change in its process."""
    monkeypatch.setattr(server, "reduce_garbage_collection", lambda: None)


def _settings(monkeypatch: pytest.MonkeyPatch, **more: str) -> GatewaySettings:
    for name, value in _DEPLOYMENT.gateway_env(**more).items():
        monkeypatch.setenv(name, value)
    return GatewaySettings.read()


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    """Serves nothing."""
    del scope, receive, send
    raise AssertionError


async def test_an_address_in_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(AddressError, match="change KEYTURN_GATEWAY_PORT"):
        await server.serve(_settings(monkeypatch, GATEWAY_PORT=str(port)), _never)
    taken.close()
    await taken.wait_closed()


async def test_without_a_broker_it_starts_and_says_that_it_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    @asynccontextmanager
    async def in_memory(*_: object, max_connections: int, **__: object) -> AsyncIterator[Any]:
        calls.append(max_connections)
        yield MemoryStorage()

    monkeypatch.setattr(server, "open_storage", in_memory)
    settings = _settings(
        monkeypatch, GATEWAY_CONCURRENCY="7", AMQP_URL=f"amqp://127.0.0.1:{free_port()}/"
    )
    with capture_logs():
        async with (
            server.open_app(settings, GatewayMetrics(), HeldCustomerKeys()) as app,
            asyncio.timeout(30),
        ):
            alive, ready = await ask(app, "GET", "/healthz"), await ask(app, "GET", "/readyz")
    assert alive.status == 200
    checks = {"broker": False, "storage": True}
    body = {"ready": False, "writes": False, "checks": checks}
    assert (ready.status, ready.document()) == (503, body)
    # Each request may hold one, and keyrings, records and health need some as well.
    assert calls[0] > 7


# --- The gateway asks in its own staging folder whether listings show overwrites (SPEC 8.4)


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


async def test_detection_ends_if_it_is_canceled_as_the_storage_fails() -> None:
    """`asyncio.gather` raises the error of a put that fails at that moment, instead."""
    failing = asyncio.Event()

    class Fails(MemoryStorage):
        async def put(self, key: str, body: bytes, headers: Headers, **how: Any) -> WriteResult:
            if key.endswith("/0"):
                await failing.wait()
                raise StorageUnavailableError("down")
            await asyncio.sleep(60)
            return await super().put(key, body, headers, **how)

    with capture_logs() as logs:
        async with background(detect_capabilities(Fails(), "gateway", retry_s=60)):
            await asyncio.sleep(0.01)
            failing.set()
            await asyncio.sleep(0)
    assert logs == []  # "background work does not end"


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
