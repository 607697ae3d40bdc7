"""A sweep whose workers end, stall or lose their broker in the middle of a page (SPEC 8.4, 8.5)."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tools.harness.loopback import proxy_before
from tools.harness.scene import (
    Scene,
    check_ends,
    check_queues_empty,
    enroll_projects,
    run_concurrently,
    small_plaintexts,
    wait_for_end,
    wait_until_drained,
)
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.harness.scene import Logs
    from tools.harness.tenants import Tenant
    from tools.harness.wire import Wire
    from tools.servers import RabbitMQ

pytestmark = pytest.mark.servers

_OBJECTS = 12
_SETTINGS = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5", "SWEEP_PAGE_KEYS": "4"}


def _check(scene: Scene, tenant: Tenant, generation: int) -> None:
    keyring = tenant.keyring()
    assert keyring["generation"] == generation
    assert {entry["kek"] for entry in keyring["history"]} == {None}
    assert tenant.left() == []
    tenant.check(generation=generation)
    scene.canaries.secrets |= tenant.secrets()
    scene.check_logs()


async def test_sigterm_in_the_middle_of_a_page(
    ceph_enrolled: Scene, vhosts: Callable[[], str]
) -> None:
    """It ends well, its page finished or given back after the grace; another goes on."""
    scene = await ceph_enrolled.on(vhosts())
    points = ("copy-terminated", "copy-hanging")
    tenants = await enroll_projects(scene, [f"sigterm-{point}" for point in points])
    cases = {
        point: partial(_survives_sigterm, await scene.on(vhosts(), tenant.project), tenant, point)
        for tenant, point in zip(tenants, points, strict=True)
    }
    await run_concurrently(len(points), cases)


async def _survives_sigterm(scene: Scene, tenant: Tenant, point: str, logs: Logs) -> None:
    scene.logs = logs
    grace_s = 3 if point == "copy-hanging" else 20
    await asyncio.to_thread(tenant.put_all, small_plaintexts(_OBJECTS))
    async with (
        scene.worker("control", **_SETTINGS) as control,
        # It alone until it has begun its page: the other one would take them all.
        scene.worker("sweep", point=point, SHUTDOWN_GRACE_S=str(grace_s), **_SETTINGS) as ending,
        open_wire(scene.deployment) as wire,
    ):
        request = tenant.rotation()
        rotation_id = request["rotation_id"]
        await scene.publish(wire, request)
        assert await ending.ended(timeout_s=grace_s + 10) == 0
        assert await asyncio.to_thread(_begun, tenant)
        origin = await asyncio.to_thread(tenant.origin, rotation_id)
        assert origin["end"] is None
        async with scene.worker("sweep", **_SETTINGS) as other:
            await wait_for_end(wire, rotation_id, "rotation.completed")
            await wait_until_drained(wire)
            assert await other.terminate() == 0
        assert await control.terminate() == 0
        await check_queues_empty(wire)
    check_ends(wire, rotation_id, "rotation.completed", _OBJECTS)
    await asyncio.to_thread(_check, scene, tenant, 2)


def _begun(tenant: Tenant) -> bool:
    return 2 in tenant.generations()


async def test_the_broker_restarts_in_the_middle_of_a_sweep(
    ceph_enrolled: Scene, own_rabbitmq: RabbitMQ
) -> None:
    """The same workers find it again, and the sweep goes on to its clean end."""
    scene = await ceph_enrolled.on(own_rabbitmq.url)
    (tenant,) = await enroll_projects(scene, ["restarted"])
    await asyncio.to_thread(tenant.put_all, small_plaintexts(60))
    # The end waits for two leases, so that a broker that is slow to stop stops before it.
    settings = {**_SETTINGS, "LEASE_S": "5"}
    async with scene.worker("sweep", **settings) as one, scene.worker("all", **settings) as other:
        async with open_wire(scene.deployment) as wire:
            request = tenant.rotation()
            rotation_id = request["rotation_id"]
            await scene.publish(wire, request)
            await wire.event(lambda event: event["type"] == "sweep.progressed")
            await asyncio.to_thread(own_rabbitmq.restart)
            assert "rotation.completed" not in {event["type"] for event in wire.events}
        # Both continue to serve: the sweep completes, and a repeated request is answered.
        logs = [asyncio.create_task(each.logged("round ended")) for each in (one, other)]
        done, _ = await asyncio.wait(logs, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert done
        for log in logs:
            log.cancel()
        async with open_wire(scene.deployment) as wire:
            await scene.publish(wire, request)
            await wait_for_end(wire, rotation_id, "rotation.completed")
            await wait_until_drained(wire)
            assert await one.terminate() == 0
            assert await other.terminate() == 0
            check_ends(wire, rotation_id, "rotation.completed", 60)
            await check_queues_empty(wire)
    await asyncio.to_thread(_check, scene, tenant, 2)


async def _rotate(scene: Scene, wire: Wire, tenant: Tenant) -> str:
    request = tenant.rotation()
    await scene.publish(wire, request)
    rotation_id: str = request["rotation_id"]
    return rotation_id


async def test_a_worker_that_stalled_for_two_leases_sets_nothing_back(scene: Scene) -> None:
    """Its late copy is refused by the storage: both clean answers were true, and stay true."""
    (tenant,) = await enroll_projects(scene, ["stalled"])
    await asyncio.to_thread(tenant.put_all, small_plaintexts(_OBJECTS))
    async with proxy_before(scene.deployment.amqp_url) as way:
        near = scene.through(way.url)
        async with (
            near.worker("sweep", point="copy-stalled", **_SETTINGS) as stalled,
            scene.worker("control", **_SETTINGS) as control,
            open_wire(scene.deployment) as wire,
        ):
            first = await _rotate(scene, wire, tenant)
            await stalled.stopped()
            # The broker sees its connection break, and gives the page to another.
            way.cut()
            second = await _rotate(scene, wire, tenant)
            await wait_for_end(wire, second, "rotation.accepted")
            async with scene.worker("sweep", **_SETTINGS) as brisk:
                for rotation_id in (first, second):
                    await wait_for_end(wire, rotation_id, "rotation.completed")
                await asyncio.to_thread(tenant.check, generation=3)
                stalled.process.send_signal(signal.SIGCONT)
                assert "RefusedError" in await stalled.logged("late copy_onto_itself")
                # It works on: a third rotation is both workers' to do.
                third = await _rotate(scene, wire, tenant)
                await wait_for_end(wire, third, "rotation.completed")
                await wait_until_drained(wire)
                for running in (brisk, stalled, control):
                    assert await running.terminate() == 0
            await check_queues_empty(wire)
    for rotation_id in (first, second, third):
        check_ends(wire, rotation_id, "rotation.completed", _OBJECTS)
    await asyncio.to_thread(_check, scene, tenant, 4)


async def test_what_a_stalled_worker_sets_back_within_its_lease_is_found(scene: Scene) -> None:
    """Its copy lands on an object that had moved on; the proof sees it, if no look before does.

    How long this lasts is not specified: either sweep may process it at once.
    """
    # Time for another worker to bring all objects on before it is over.
    settings = {**_SETTINGS, "LEASE_S": "12"}
    (tenant,) = await enroll_projects(scene, ["set-back"])
    await asyncio.to_thread(tenant.put_all, small_plaintexts(_OBJECTS))
    async with (
        proxy_before(scene.deployment.amqp_url) as way,
        proxy_before(scene.deployment.amqp_url) as other_way,
        # It knows the storage's clock by the time that it gets a page.
        scene.through(other_way.url).worker("sweep", **settings) as brisk,
    ):
        other_way.stop()
        async with (
            scene.through(way.url).worker("sweep", point="copy-stalled", **settings) as stalled,
            scene.worker("control", **settings) as control,
            open_wire(scene.deployment) as wire,
        ):
            first = await _rotate(scene, wire, tenant)
            await stalled.stopped()
            way.cut()
            second = await _rotate(scene, wire, tenant)
            await wait_for_end(wire, second, "rotation.accepted")
            other_way.resume()
            await _all_at(tenant, 3)
            stalled.process.send_signal(signal.SIGCONT)
            # Done: the wraps that it had written before are back.
            assert ": NoneType " in await stalled.logged("late copy_onto_itself")
            for rotation_id in (first, second):
                await wait_for_end(wire, rotation_id, "rotation.completed")
            await asyncio.to_thread(tenant.check, generation=3)
            await wait_until_drained(wire)
            for running in (brisk, stalled, control):
                assert await running.terminate() == 0
            await check_queues_empty(wire)
    for rotation_id in (first, second):
        check_ends(wire, rotation_id, "rotation.completed", _OBJECTS)
    await asyncio.to_thread(_check, scene, tenant, 3)


async def _all_at(tenant: Tenant, generation: int) -> None:
    """Wait until every object's label has this generation."""
    async with asyncio.timeout(30):
        while True:
            if set(await asyncio.to_thread(tenant.generations)) == {generation}:
                return
            await asyncio.sleep(0.05)
