"""`/healthz`, `/readyz` and `/metrics` of a worker: alive is not yet ready (SPEC 11)."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from keyturn_workers.errors import AddressError
from keyturn_workers.worker import health
from keyturn_workers.worker.health import health_server, run_checks
from keyturn_workers.worker.metrics import WorkerMetrics
from tools.servers.process import free_port

if TYPE_CHECKING:
    from keyturn_workers.worker.health import Check


async def _holds() -> bool:
    return True


async def _fails() -> bool:
    return False


async def _raises() -> bool:
    raise ConnectionError("a secret address")


async def _hangs() -> bool:
    return await asyncio.Event().wait()


async def _get(checks: dict[str, Check], path: str) -> tuple[int, Any]:
    port = free_port()
    async with (
        health_server("127.0.0.1", port, checks, WorkerMetrics().registry),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.json()


async def test_a_process_that_responds_is_alive_whatever_its_checks_say() -> None:
    assert await _get({"broker": _raises}, "/healthz") == (200, {"status": "alive"})


async def test_a_worker_is_ready_if_every_check_passes() -> None:
    checks: dict[str, Check] = {"broker": _holds, "storage": _holds}
    expected = {"ready": True, "checks": {"broker": True, "storage": True}}
    assert await _get(checks, "/readyz") == (200, expected)


async def test_one_check_that_does_not_pass_is_enough_to_be_not_ready() -> None:
    checks: dict[str, Check] = {"broker": _fails, "storage": _holds}
    expected = {"ready": False, "checks": {"broker": False, "storage": True}}
    assert await _get(checks, "/readyz") == (503, expected)


async def test_a_check_that_raises_or_takes_too_long_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "_CHECK_TIMEOUT_S", 0.01)
    checks: dict[str, Check] = {"raises": _raises, "hangs": _hangs, "holds": _holds}
    assert await run_checks(checks) == {"raises": False, "hangs": False, "holds": True}


async def test_checks_do_not_wait_for_each_other() -> None:
    both = asyncio.Barrier(2)

    async def meets() -> bool:
        await both.wait()
        return True

    async with asyncio.timeout(10):
        assert await run_checks({"one": meets, "other": meets}) == {"one": True, "other": True}


async def test_the_server_ends_with_its_block() -> None:
    port = free_port()
    async with health_server("127.0.0.1", port, {}, WorkerMetrics().registry):
        pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_in_use_is_reported_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=r"in use.*change KEYTURN_HEALTH_PORT"):
            async with health_server("127.0.0.1", port, {}, WorkerMetrics().registry):
                pass


async def test_port_0_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.web.TCPSite", None)
    async with health_server("127.0.0.1", 0, {}, WorkerMetrics().registry):
        pass


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF\n",
        ),
    ],
)
async def test_metrics_are_served_in_the_format_that_is_accepted(
    accept: str, content_type: str, end: str
) -> None:
    """With the memory and the collections of the process."""
    metrics, port = WorkerMetrics(), free_port()
    metrics.registry.add_process()
    async with (
        health_server("127.0.0.1", port, {}, metrics.registry),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}) as answer,
    ):
        text = await answer.text()
        assert (answer.status, answer.headers["Content-Type"][: len(content_type)]) == (
            200,
            content_type,
        )
    for name in ("process_resident_memory_bytes ", "python_info{", "python_gc_collections_total{"):
        assert f"\n{name}" in text
    assert text.endswith(end)
    assert "_created" not in text
