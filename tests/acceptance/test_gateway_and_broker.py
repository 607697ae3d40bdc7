"""The broker goes away under a running gateway, and comes back (SPEC 9.4, 9.6)."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

from tools.harness.canaries import MARKER
from tools.harness.http import Client
from tools.harness.process import gateway

if TYPE_CHECKING:
    from tools.harness.scene import Scene
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_WAIT = {"Prefer": "wait=30"}


async def test_it_publishes_again_once_the_broker_is_back(
    ceph_enrolled: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """While it is away objects are read, uploads and deletes refused; no restart is needed."""
    scene = await ceph_enrolled.on(own_rabbitmq.url)
    env = scene.deployment.gateway_env(GATEWAY_PUBLISH_TIMEOUT_S="2")
    async with scene.worker("upload") as worker, gateway(env) as process:
        scene.logs.append(process.lines)
        client = Client(process, scene.deployment.api_key)
        bodies = {name: MARKER + os.urandom(5000) for name in ("before", "away", "after")}

        async def put(name: str) -> int:
            answer = await client.request(
                scene.project, name, _WAIT, method="PUT", body=bodies[name]
            )
            return answer.status

        assert await put("before") == 201
        own_rabbitmq.wait_until_registered("keyturn.upload")
        own_rabbitmq.wait_until_streams_registered()
        await asyncio.to_thread(own_rabbitmq.kill)
        assert await put("away") == 503
        assert (await client.request(scene.project, "before", method="DELETE")).status == 503
        assert (await client.request(scene.project, "before")).body == bodies["before"]
        assert not await _is_ready(client)
        await asyncio.to_thread(own_rabbitmq.start)
        async with asyncio.timeout(60):
            # Each comes back in its own time.
            while True:
                if await _is_ready(client) and await put("after") == 201:
                    break
                await asyncio.sleep(0.2)
        assert (await client.request(scene.project, "after")).body == bodies["after"]
        assert (await client.request(scene.project, "away")).status == 404
        assert await worker.terminate() == 0
    scene.check_nothing_left()
    scene.check_logs()


async def _is_ready(client: Client) -> bool:
    answer = await client.send("GET", "/readyz")
    broker = json.loads(answer.body)["checks"]["broker"]
    assert (answer.status == 200) is broker
    return answer.status == 200
