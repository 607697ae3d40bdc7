"""The broker goes away in the middle of the work, or the way to it does (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn.crypto import VerifyKey
from tools.harness.loopback import proxy_before
from tools.harness.scene import check_queues_empty, served_uploads
from tools.harness.wire import consume_stream, open_wire, verified_events

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

    from tools.harness.deployment import Deployment
    from tools.harness.scene import Scene
    from tools.harness.wire import Wire
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_UPLOADS = 150
_CUTS = 4


async def read_stream(deployment: Deployment, expected: set[str], timeout_s: float) -> None:
    """Read the event stream from its beginning until it has reported all of these uploads."""
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)
    missing = set(expected)
    over = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        signature = str(message.headers.get("keyturn-signature"))
        for event in verified_events(verify, deployment.name, message.body, signature):
            assert event["type"] == "upload.stored"
            missing.discard(event["upload_id"])
        if not missing:
            over.set()
        await message.ack()

    async with (
        asyncio.timeout(timeout_s),
        await aio_pika.connect(deployment.amqp_url) as connection,
    ):
        await consume_stream(connection, "keyturn.events", take)
        await over.wait()


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_uploads_survive_a_broker_restart(
    ceph_enrolled: Scene, own_rabbitmq: RabbitMQ, how: str
) -> None:
    """The worker reconnects by itself; every confirmed upload is stored and reported."""
    scene = await ceph_enrolled.on(own_rabbitmq.url)
    async with scene.worker("upload", UPLOAD_CONCURRENCY="4") as running:
        async with open_wire(scene.deployment) as wire:
            uploads = [
                await scene.upload(wire, f"{how}/{number}", os.urandom(1000))
                for number in range(_UPLOADS)
            ]
            await wire.outcome(uploads[_UPLOADS // 10].upload_id)
            before = len(served_uploads(running))
            assert before < _UPLOADS
            await asyncio.to_thread(_lose, own_rabbitmq, how)
        ids = {made.upload_id for made in uploads}
        await read_stream(scene.deployment, ids, timeout_s=60)
        async with open_wire(scene.deployment) as wire:
            # It goes on serving what comes new.
            after = await scene.upload(wire, f"{how}/after", b"new")
            await wire.outcome(after.upload_id)
            assert await running.terminate() == 0
            await check_queues_empty(wire)
    await asyncio.to_thread(_check, scene)


def _lose(broker: RabbitMQ, how: str) -> None:
    if how == "restart":
        broker.restart()
        return
    for queue in ("keyturn.upload", "keyturn.upload.dead"):
        broker.wait_until_registered(queue)
    broker.wait_until_streams_registered()
    broker.kill()
    broker.start()


def _check(scene: Scene) -> None:
    for key in scene.plaintexts:
        scene.check_object(key)
    scene.check_nothing_left()
    scene.check_logs()


async def _settle(scene: Scene, wire: Wire) -> None:
    """Workers without cuts, until nothing is left on the queue."""
    for _ in range(5):
        if await wire.depth("keyturn.upload") == 0:
            return
        async with scene.worker("upload") as running:
            for _ in range(600):
                if await wire.depth("keyturn.upload") == 0:
                    break
                await asyncio.sleep(0.05)
            assert await running.terminate() == 0


async def test_dropped_connections_are_reestablished(scene: Scene) -> None:
    """Cut several times under load: nothing is lost, nothing is stored twice."""
    async with proxy_before(scene.deployment.amqp_url) as way:
        near = scene.through(way.url)
        async with (
            near.worker("upload", UPLOAD_CONCURRENCY="4") as running,
            open_wire(scene.deployment) as wire,
        ):
            every: list[str] = []
            for cut in range(_CUTS):
                uploads = [
                    await scene.upload(wire, f"cut/{cut}/{number}", os.urandom(50))
                    for number in range(40)
                ]
                every += [made.upload_id for made in uploads]
                await wire.outcome(uploads[3].upload_id)
                assert way.cut() > 0
            # Of every cut: one that came again may be the last of all.
            for upload_id in every:
                await wire.outcome(upload_id)
            last = await scene.upload(wire, "cut/last", b"still there")
            await wire.outcome(last.upload_id)
            assert await running.terminate() == 0
            # What was given again after a cut, its event published before, may still be on the
            # queue, or come back to it from a worker that ends: the next one settles it.
            await _settle(scene, wire)
            ids = {event["upload_id"] for event in wire.events}
            assert len(ids) == len(scene.plaintexts)
            assert {event["type"] for event in wire.events} == {"upload.stored"}
            await check_queues_empty(wire)
    await asyncio.to_thread(_check, scene)
