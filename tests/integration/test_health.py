"""Health endpoints with the broker there and gone; staging swept by a real worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.servers.process import free_port
from tests.support import reader
from tests.support.deployment import Deployment
from tests.support.process import worker

if TYPE_CHECKING:
    from tests.servers import RabbitMQ, S3Server

pytestmark = pytest.mark.servers


async def _get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.json()


async def _until(port: int, status: int) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            found, body = await _get(port, "/readyz")
            if found == status:
                return body
            await asyncio.sleep(0.1)


async def test_ready_while_the_broker_is_there(
    own_rabbitmq: RabbitMQ, ceph: S3Server, ceph_bucket: str
) -> None:
    """Not ready without its broker, alive all the same, and ready again by itself."""
    deployment = Deployment(own_rabbitmq.url, ceph, ceph_bucket)
    port = free_port()
    async with worker(deployment.worker_env(HEALTH_PORT=str(port))) as running:
        body = await _until(port, 200)
        assert body["checks"] == {"broker": True, "consumers": True, "storage": True}
        own_rabbitmq.process.end()
        body = await _until(port, 503)
        assert body["checks"]["broker"] is False
        assert (await _get(port, "/healthz"))[0] == 200
        own_rabbitmq.start()
        await _until(port, 200)
        assert await running.terminate() == 0


async def test_a_worker_sweeps_staging(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> None:
    """A staged body that no request names goes once it is older than any request may be."""
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    key = ".keyturn/staging/api/3b7a4f5e-0000-4000-8000-000000000000"
    reader.s3_client(deployment).put_object(Bucket=ceph_bucket, Key=key, Body=b"sealed")
    env = deployment.worker_env(
        REQUEST_MAX_AGE_S="1", STAGING_GRACE_S="0", STAGING_SWEEP_INTERVAL_S="0.5"
    )
    async with worker(env, "upload") as running:
        assert '"bodies":1' in await running.logged("staging swept")
    assert reader.keys(deployment, ".keyturn/staging/") == []
