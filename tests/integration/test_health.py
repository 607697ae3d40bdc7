"""Health endpoints with broker and consumers there and gone; staging swept by a real worker."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import aio_pika
import aiohttp
import pytest

from keyturn.topology import SWEEP_QUEUE
from keyturn_workers.pipeline.amqp.declarations import declare
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.servers.process import free_port

if TYPE_CHECKING:
    from tools.servers import RabbitMQ, S3Server

pytestmark = pytest.mark.servers


async def _get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.json()


async def _consuming(port: int) -> dict[str, float]:
    """By queue, whether the worker says that it consumes it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        text = await answer.text()
    found = re.findall(r'^keyturn_consuming\{queue="keyturn\.(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {queue: float(value) for queue, value in found}


async def _until(port: int, status: int, *, missing: str = "") -> dict[str, Any]:
    """Ask until it answers so and, where one is named, says that this check does not hold."""
    async with asyncio.timeout(60):
        while True:
            found, body = await _get(port, "/readyz")
            if found == status and not body["checks"].get(missing, False):
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
        assert body["checks"] == {"broker": True, "consumers": True, "storage": True, "marks": True}
        own_rabbitmq.process.end()
        await _until(port, 503, missing="broker")
        await _until(port, 503, missing="consumers")
        assert (await _get(port, "/healthz"))[0] == 200
        own_rabbitmq.start()
        await _until(port, 200)
        assert await running.terminate() == 0


async def test_not_ready_while_the_broker_takes_no_events(
    own_rabbitmq: RabbitMQ, ceph: S3Server, ceph_bucket: str
) -> None:
    """At its alarm, the broker still delivers and answers, but no request can be settled."""
    deployment = Deployment(own_rabbitmq.url, ceph, ceph_bucket)
    port = free_port()
    async with worker(deployment.worker_env(HEALTH_PORT=str(port))) as running:
        await _until(port, 200)
        await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=True)
        try:
            body = await _until(port, 503, missing="broker")
            assert body["checks"] == {
                "broker": False,
                "consumers": True,
                "storage": True,
                "marks": True,
            }
            assert "memory or disk alarm" in body["problems"]["broker"]
            assert (await _get(port, "/healthz"))[0] == 200
        finally:
            await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=False)
        await _until(port, 200)
        assert await running.terminate() == 0


async def test_not_ready_without_its_consumers(
    vhost_url: str, ceph: S3Server, ceph_bucket: str
) -> None:
    """The broker canceled a consumer on an open connection: not ready until it is back."""
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    port = free_port()
    async with (
        worker(deployment.worker_env(HEALTH_PORT=str(port))) as running,
        await aio_pika.connect(vhost_url) as connection,
    ):
        await _until(port, 200)
        await (await connection.channel()).queue_delete(SWEEP_QUEUE)
        body = await _until(port, 503, missing="consumers")
        assert body["checks"] == {
            "broker": True,
            "consumers": False,
            "storage": True,
            "marks": True,
        }
        assert (await _get(port, "/healthz"))[0] == 200
        assert await _consuming(port) == {"upload": 1, "control": 1, "plan": 1, "sweep": 0}
        await declare(vhost_url)
        await _until(port, 200)
        assert await _consuming(port) == {"upload": 1, "control": 1, "plan": 1, "sweep": 1}
        assert await running.terminate() == 0


async def test_a_worker_sweeps_staging(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> None:
    """A staged body that no request names goes once it is older than any request may be."""
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    key = ".keyturn/staging/api/3b7a4f5e-0000-4000-8000-000000000000"
    stored_objects.s3_client(deployment).put_object(Bucket=ceph_bucket, Key=key, Body=b"sealed")
    env = deployment.worker_env(
        REQUEST_MAX_AGE_S="1", STAGING_GRACE_S="0", STAGING_SWEEP_INTERVAL_S="0.5"
    )
    async with worker(env, "upload") as running:
        assert '"bodies":1' in await running.logged("staging cleaned")
    assert stored_objects.list_keys(deployment, ".keyturn/staging/") == []
