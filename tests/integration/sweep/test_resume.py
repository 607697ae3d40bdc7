"""Sweeps whose workers and messages are lost: other workers resume them (SPEC 8.5).

Here the roles run as separate processes, so that a sweep worker can be killed.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from faststream.rabbit import RabbitBroker

from keyturn import topology
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.sweep.periodic import STALLED_AFTER, PeriodicScan
from keyturn_workers.pipeline.worker.wiring import Wiring
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings
from keyturn_workers.storage.s3 import open_storage
from tests.integration.sweep.scene import WORKER_ENV, Project, Scene, counts
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.process import worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers

SWEEP_QUEUES = [
    name
    for queue in (topology.PLAN_QUEUE, topology.SWEEP_QUEUE)
    for name in (queue, *(topology.retry_name(queue, s) for s in topology.ALL_DELAYS_S))
]


@asynccontextmanager
async def without_sweepers(broker: Servers, s3: S3Server) -> AsyncIterator[Scene]:
    """A worker that serves requests; the sweeps that they start wait on the broker."""
    deployment = Deployment(await fresh_amqp_url(broker), s3, new_bucket(s3))
    async with (
        worker(deployment.worker_env(**WORKER_ENV), "control") as process,
        open_wire(deployment) as wire,
    ):
        yield Scene(WorkerUnderTest(deployment, process, wire))


async def killed_in_the_middle(scene: Scene, project: Project) -> None:
    """A separate sweep worker, killed as soon as one page of the project is done."""
    async with worker(scene.deployment.worker_env(**WORKER_ENV), "sweep") as process:
        line, skipped = "", 0
        while '"page done"' not in line:
            line = await process.logged(f'"project":"{project.name}","round"', after=skipped)
            skipped = process.lines.index(line) + 1
        await process.kill()


async def accepted(project: Project) -> str:
    """Start a rotation; returns its id."""
    document = project.rotation()
    event = await project.scene.first_event(document)
    assert event["type"] == "rotation.accepted"
    return str(document["rotation_id"])


def is_done(end: dict[str, Any], objects: int) -> None:
    # What a worker did that died before it reported is in no count.
    assert counts(end) | {"rewrapped": 0} == {
        "objects": objects,
        "current": objects,
        "rewrapped": 0,
        "clean": True,
    }


async def resumed(deployment: Deployment) -> int:
    """Look at all records once, as a sweep worker does periodically; all count as stalled."""
    env = deployment.worker_env(**WORKER_ENV)
    values = {name.removeprefix("KEYTURN_").lower(): value for name, value in env.items()}
    settings = WorkerSettings.model_validate(values)
    async with (
        open_storage(settings, capabilities=Capabilities(), max_connections=8) as storage,
        RabbitBroker(deployment.amqp_url, logger=None) as broker,
    ):
        keys = operator_keys(settings.master_keys)
        process = Wiring(settings, storage, broker, keys, HeldCustomerKeys(), WorkerMetrics())
        periodic = PeriodicScan(process._sweep_context, process._sweep, process._starter)
        return await periodic.scan(datetime.now(UTC) + STALLED_AFTER + timedelta(seconds=5))


async def test_a_sweep_whose_worker_and_messages_are_lost_is_resumed(
    broker: Servers, ceph: S3Server
) -> None:
    """Another process continues: from redelivered messages, and without any message too."""
    async with without_sweepers(broker, ceph) as scene:
        projects = [await scene.enrolled(name) for name in ("lost", "never", "killed")]
        plaintexts = [project.fill(40) for project in projects]
        lost, never, killed = projects
        rotations = [await accepted(lost)]
        await killed_in_the_middle(scene, lost)
        rotations.append(await accepted(never))
        # The broker loses its messages: of one sweep in its middle, of one never started.
        for name in SWEEP_QUEUES:
            queue = await scene.wire.channel.get_queue(name, ensure=False)
            await queue.purge()
        assert await resumed(scene.deployment) == 2
        # This one's messages the broker keeps, and gives to the next worker.
        rotations.append(await accepted(killed))
        await killed_in_the_middle(scene, killed)
        async with worker(scene.deployment.worker_env(**WORKER_ENV), "sweep") as process:
            for rotation_id in rotations:
                is_done(await scene.ended(rotation_id), 40)
            await process.terminate()
        for project, expected in zip(projects, plaintexts, strict=True):
            project.assert_opens_as(expected)
        # A sweep that has ended needs no recovery.
        assert await resumed(scene.deployment) == 0


async def test_forged_hints_prove_nothing(broker: Servers, ceph: S3Server) -> None:
    """An attacker who can write the broker changes no key and proves nothing (SPEC 13)."""
    async with without_sweepers(broker, ceph) as scene:
        project = await scene.enrolled("hinted")
        plaintexts = project.fill(10)
        rotation_id = await accepted(project)
        step = {"type": "sweep.step", "project": "hinted", "step": 10**9}
        page = {"type": "sweep.page", "project": "hinted", "round": rotation_id}
        hints: list[tuple[str, dict[str, Any]]] = [
            (topology.PLAN_QUEUE, step),
            (topology.PLAN_QUEUE, step | {"step": 0, "project": "other"}),
            (topology.PLAN_QUEUE, step | {"project": "*"}),
            *((topology.PLAN_QUEUE, step | {"step": n}) for n in range(20)),
            (topology.SWEEP_QUEUE, page | {"page": 0, "attempt": 99}),
            (topology.SWEEP_QUEUE, page | {"page": 99, "attempt": 0}),
            (topology.SWEEP_QUEUE, page | {"page": 0, "attempt": 0, "project": "other"}),
            (topology.SWEEP_QUEUE, step),
            (topology.PLAN_QUEUE, {"type": "sweep.ended", "clean": True}),
        ]
        for queue, hint in hints:
            message = aio_pika.Message(json.dumps(hint).encode())
            await scene.wire.channel.default_exchange.publish(message, queue)
        async with worker(scene.deployment.worker_env(**WORKER_ENV), "sweep"):
            is_done(await scene.ended(rotation_id), 10)
        project.assert_opens_as(plaintexts)
        for queue in (topology.PLAN_QUEUE, topology.SWEEP_QUEUE):
            dead_letter = await scene.wire.take(f"{queue}.dead")
            assert dead_letter.headers["keyturn-code"] == "malformed_request"
            assert await scene.wire.depth(f"{queue}.dead") == 0


async def test_a_forged_record_is_one_dead_letter(broker: Servers, ceph: S3Server) -> None:
    """A project whose record was overwritten: one dead letter; no other project waits for it.

    Its request, sent again, replaces that record.
    """
    async with without_sweepers(broker, ceph) as scene:
        forged, other = await scene.enrolled("forged"), await scene.enrolled("other")
        plaintexts = forged.fill(3)
        other.fill(2)
        document = forged.rotation()
        await scene.first_event(document)
        scene.bucket.put(".keyturn/sweeps/forged.json", b'{"v": 1}', {})
        async with worker(scene.deployment.worker_env(**WORKER_ENV), "sweep") as process:
            dead_letter = await scene.dead(topology.PLAN_QUEUE, '"project":"forged"')
            assert dead_letter.headers["keyturn-code"] == "corrupt_object"
            # The forged one is left, and those that look after the others get past it.
            rotation_id = await accepted(other)
            await resumed(scene.deployment)
            again = await scene.first_event(document)
            assert (again["type"], again["generation"]) == ("rotation.accepted", 2)
            is_done(await scene.ended(rotation_id), 2)
            assert await scene.wire.depth(f"{topology.PLAN_QUEUE}.dead") == 0
            is_done(await scene.ended(document["rotation_id"]), 3)
            await process.terminate()
        forged.assert_opens_as(plaintexts)
