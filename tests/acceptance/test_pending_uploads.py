"""Uploads that the gateway accepted and no worker has served (SPEC 9.4, 13)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import new_api_key
from tools.harness.bucket import Bucket
from tools.harness.canaries import MARKER
from tools.harness.http import Client
from tools.harness.process import gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tools.harness.scene import Scene
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_KIB = 1024
_WAIT = {"Prefer": "wait=30"}
_UNTIL_S = 60


async def _until(send: Callable[[], Awaitable[int]], statuses: set[int]) -> None:
    while True:
        if await send() in statuses:
            return
        await asyncio.sleep(0.1)


async def _until_stored(client: Client, scene: Scene, bodies: Mapping[str, bytes]) -> None:
    """Wait until each body is what its key holds."""
    for key, body in bodies.items():
        while True:
            answer = await client.request(scene.project, key)
            if answer.status != 404:
                break
            await asyncio.sleep(0.1)
        assert answer.body == body


async def test_one_api_key_cannot_fill_the_broker_while_no_worker_runs(scene: Scene) -> None:
    """455 MiB were accepted in ten seconds. What is accepted is stored once a worker runs."""
    other_key = new_api_key()
    Bucket(scene.deployment).put_keyring("other", other_key)
    async with scene.worker("upload") as worker:  # it declares the queues
        assert await worker.terminate() == 0
    env = scene.deployment.gateway_env(GATEWAY_PENDING_BYTES=str(4096 * _KIB))
    async with gateway(env) as process:
        scene.logs.append(process.lines)
        client = Client(process, scene.deployment.api_key)
        bodies = {f"flood/{n}": MARKER + os.urandom(200 * _KIB) for n in range(40)}

        async def put(key: str, project: str = scene.project, token: str | None = None) -> int:
            answer = await client.request(
                project, key, method="PUT", body=bodies.get(key, b"x"), token=token
            )
            if answer.status == 429:
                assert answer.code == "too_many_requests"
                assert answer.headers["retry-after"] == "1"
            return answer.status

        statuses = dict(zip(bodies, await asyncio.gather(*map(put, bodies)), strict=True))
        accepted = [key for key, status in statuses.items() if status == 202]
        assert sorted(statuses.values()) == [202] * 20 + [429] * 20  # 20 of them are 4 MiB
        assert await put("theirs", "other", other_key) == 202

        async with scene.worker("upload") as worker:
            async with asyncio.timeout(_UNTIL_S):
                await _until_stored(client, scene, {key: bodies[key] for key in accepted})
                await _until(lambda: put("later"), {202, 409})  # the places are free
            assert await worker.terminate() == 0
        for key in set(bodies) - set(accepted):
            assert (await client.request(scene.project, key)).status == 404
    scene.check_nothing_left()
    scene.check_logs()


async def test_a_broker_at_its_alarm_is_a_503_within_a_second(
    ceph_enrolled: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """Objects are read, nothing that was accepted is lost, and no restart is needed."""
    scene = await ceph_enrolled.on(own_rabbitmq.url)
    async with (
        scene.worker() as first,
        gateway(scene.deployment.gateway_env()) as process,
    ):
        scene.logs.append(process.lines)
        client = Client(process, scene.deployment.api_key)
        bodies = {name: MARKER + os.urandom(5000) for name in ("alarm/a", "alarm/b", "alarm/c")}
        large = bytes(300 * _KIB)

        async def put(key: str, **more: str) -> int:
            body = large if key == "alarm/large" else bodies.get(key, b"x")
            answer = await client.request(scene.project, key, more, method="PUT", body=body)
            return answer.status

        assert await put("alarm/a", **_WAIT) == 201
        assert await first.terminate() == 0
        assert await put("alarm/b") == 202  # waits on its queue
        await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=True)
        async with scene.worker() as second:
            rotations = f"/v1/projects/{scene.project}/rotations"
            new_key = f'{{"api_key": "{new_api_key()}"}}'.encode()
            took_s = []
            for _ in range(2):
                for send in (
                    put("alarm/during"),
                    put("alarm/large"),
                    client.request(scene.project, "alarm/a", method="DELETE"),
                    client.send("POST", rotations, body=new_key),
                ):
                    began = time.monotonic()
                    answer = await send
                    status = answer if isinstance(answer, int) else answer.status
                    assert status == 503
                    took_s.append(time.monotonic() - began)
            # The first of all is sent, the others are not. Other work may delay some of them.
            assert min(took_s[1:]) < 1, took_s
            assert max(took_s) < 15, took_s
            assert (await client.request(scene.project, "alarm/a")).body == bodies["alarm/a"]
            await asyncio.to_thread(own_rabbitmq.set_memory_alarm, on=False)
            async with asyncio.timeout(_UNTIL_S):
                await _until(lambda: put("alarm/c", **_WAIT), {201, 409})
                await _until_stored(client, scene, bodies)
            assert await second.terminate() == 0
    scene.check_nothing_left()
    scene.check_logs()
