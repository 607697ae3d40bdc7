"""A gateway that ends, and one without its broker (SPEC 9): what was begun is finished."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from keyturn.crypto import new_api_key
from tests.integration.gateway.scene import plain
from tools.harness import stored_objects
from tools.harness.http import object_target, request
from tools.harness.process import gateway
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Scene
    from tools.harness.process import GatewayProcess

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_PLAINTEXT = plain(32 * 1024 * 1024)
GATEWAY_ENV = {"GATEWAY_PUBLISH_TIMEOUT_S": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    scene.put("film", _PLAINTEXT)


async def test_without_a_broker_reading_goes_on(scene: Scene) -> None:
    """What is to be published is refused, and leaves nothing; readiness says so."""
    scene.put("x", plain(100))
    assert (await scene.client.request("acme", "x")).body == plain(100)
    body = json.dumps({"api_key": new_api_key()}).encode()
    for answer in (
        await scene.client.request("acme", "y", method="PUT", body=plain(10)),
        await scene.client.request("acme", "y", {"Prefer": "wait=5"}, method="PUT", body=plain(10)),
        await scene.client.send("POST", "/v1/projects/acme/rotations", body=body),
    ):
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert "broker" in answer.problem["detail"]
    ready = await scene.client.send("GET", "/readyz")
    assert (ready.status, json.loads(ready.body)["checks"]) == (
        503,
        {"broker": False, "storage": True},
    )
    assert (await scene.client.send("GET", "/healthz")).status == 200


async def test_without_a_broker_nothing_stays_in_staging(scene: Scene) -> None:
    """A large body is not left there by an upload without an event."""
    answer = await scene.client.request("acme", "z", method="PUT", body=plain(9 * 1024 * 1024))
    assert answer.status == 503
    assert stored_objects.list_keys(scene.deployment, ".keyturn/staging/") == []
    assert stored_objects.list_multipart_uploads(scene.deployment) == []


@asynccontextmanager
async def _begun(
    process: GatewayProcess, api_key: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A download of which the head came, and nothing more is taken for now."""
    got, writer = await asyncio.open_connection(process.host, process.port, limit=4096)
    try:
        headers = [("Authorization", f"Bearer {api_key}")]
        writer.write(request("GET", object_target("acme", "film"), headers))
        await asyncio.wait_for(got.readuntil(b"\r\n\r\n"), 10)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        yield got, writer
    finally:
        writer.transport.abort()


async def test_sigterm_during_a_download(scene: Scene) -> None:
    """It takes no new connection, finishes the answer, and ends with status 0."""
    async with (
        gateway(scene.deployment.gateway_env()) as process,
        _begun(process, scene.deployment.api_key) as (got, writer),
    ):
        idle, idle_writer = await asyncio.open_connection(process.host, process.port)
        process.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(idle.read(), 10) == b""  # closed: nothing was under way
        idle_writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(process.host, process.port)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        body = await asyncio.wait_for(got.readexactly(len(_PLAINTEXT)), 30)
        assert body == _PLAINTEXT
        assert await asyncio.wait_for(got.read(), 10) == b""
        assert await process.ended() == 0
    assert "gateway stopped" in process.lines[-1]


async def test_sigterm_with_a_client_that_reads_nothing(scene: Scene) -> None:
    """What is not finished within the grace is cut; the status is 0."""
    async with (
        gateway(scene.deployment.gateway_env(SHUTDOWN_GRACE_S="1")) as process,
        _begun(process, scene.deployment.api_key) as (got, writer),
    ):
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await got.readexactly(len(_PLAINTEXT))


async def test_a_killed_gateway_does_not_affect_another(scene: Scene) -> None:
    """Its readers' answers are cut; another one serves the same at once."""
    async with (
        gateway(scene.deployment.gateway_env()) as second,
        _begun(second, scene.deployment.api_key) as (got, writer),
    ):
        await second.kill()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await got.readexactly(len(_PLAINTEXT))
    assert (await scene.client.request("acme", "film")).body == _PLAINTEXT


async def test_a_port_in_use_is_reported_in_one_line(scene: Scene) -> None:
    """One line that says so, and status 1."""
    env = scene.deployment.gateway_env(GATEWAY_PORT=str(scene.process.port))
    with pytest.raises(ServerError, match="cannot listen"):
        async with gateway(env):
            pass
