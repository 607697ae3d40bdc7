"""Every genuine request is answered, despite poison messages and refused events (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn.topology import (
    CONTROL_QUEUE,
    EVENTS_STREAM,
    EXCHANGE,
    PUBLISHER_EVENTS_EXCHANGE,
    UPLOAD_QUEUE,
)
from tests.acceptance.test_broker_loss import read_stream
from tools.harness import requests as rq
from tools.harness.amqp1 import POISONS, open_sender
from tools.harness.scene import check_queues_empty
from tools.harness.wire import SignedPublisher, Wire, open_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.harness.scene import Scene
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_DEAD = f"{UPLOAD_QUEUE}.dead"


async def test_poison_costs_its_queue_alone_for_seconds_and_no_request_its_answer(
    moto_scene: Scene,
) -> None:
    """RabbitMQ cannot deliver a poison message to a worker: each attempt ends a connection."""
    scene, clock = moto_scene, asyncio.get_running_loop().time
    async with scene.worker() as running, open_wire(scene.deployment) as wire:
        uploads = [await scene.upload(wire, f"before/{n}", os.urandom(99)) for n in range(20)]
        began = clock()
        address = f"/exchanges/{EXCHANGE}/upload.requested"
        async with open_sender(scene.deployment.amqp_url, address) as sender:
            for name in ("uuid", "footer"):
                await sender.send(b"poison", POISONS[name])
        uploads += [await scene.upload(wire, f"after/{n}", os.urandom(99)) for n in range(20)]
        for _ in range(5):
            request = rq.enroll(scene.deployment, scene.project)  # refused: it is enrolled
            request_id = await SignedPublisher(scene.deployment, wire).publish(request)
            await wire.outcome(request_id, timeout_s=5)
        control_s = clock() - began
        for made in uploads:
            event = await wire.outcome(made.upload_id, timeout_s=40)
            assert event["type"] == "upload.stored"
        print(
            f"5 control requests after {control_s:.1f} s, 40 uploads after {clock() - began:.1f} s"
        )
        # The answers may come before the poison messages have used up their deliveries.
        async with asyncio.timeout(40):
            while await wire.depth(_DEAD) < 2:  # noqa: ASYNC110  # the broker has no event
                await asyncio.sleep(0.1)
        assert await running.terminate() == 0
        await check_queues_empty(wire, _DEAD, f"{CONTROL_QUEUE}.dead")
        assert await wire.depth(_DEAD) == 2  # only the poison messages used up their deliveries


@asynccontextmanager
async def _events_refused(url: str, event_type: str) -> AsyncIterator[Wire]:
    """Until the end of the block no stream takes these events: publishing them fails."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        stream = await channel.get_queue(EVENTS_STREAM, ensure=False)
        by_publisher = await channel.get_exchange(PUBLISHER_EVENTS_EXCHANGE, ensure=False)
        await stream.unbind(EXCHANGE, event_type)
        await by_publisher.unbind(EXCHANGE, event_type)
        yield Wire(channel, [])
        await stream.bind(EXCHANGE, event_type)
        await by_publisher.bind(EXCHANGE, event_type)


async def test_requests_whose_events_are_refused_for_long_are_answered_after_the_repair(
    moto_enrolled: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """Scaled down: the queue's limit is 2 deliveries instead of 100."""
    scene = await moto_enrolled.on(own_rabbitmq.url)
    own_rabbitmq.control("set_policy", "scaled", f"^{UPLOAD_QUEUE}$", '{"delivery-limit": 2}')
    async with scene.worker("upload") as running:
        async with _events_refused(scene.deployment.amqp_url, "upload.stored") as wire:
            uploads = [await scene.upload(wire, f"k/{n}", os.urandom(99)) for n in range(5)]
            seen = 0
            for _ in range(4 * len(uploads)):
                await running.logged('"delivery not finished"', after=seen)
                seen = 1 + next(
                    n
                    for n, line in enumerate(running.lines)
                    if n >= seen and '"delivery not finished"' in line
                )
        ids = {made.upload_id for made in uploads}
        await read_stream(scene.deployment, ids, timeout_s=40)
        assert await running.terminate() == 0
        async with open_wire(scene.deployment) as wire:
            await check_queues_empty(wire)
    for key in scene.plaintexts:
        scene.check_object(key)
