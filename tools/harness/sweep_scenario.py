"""The common steps of sweep tests: enroll projects, request sweeps, wait for their completion."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from keyturn import topology
from keyturn.crypto import to_base64
from tools.harness import requests as rq
from tools.harness.canaries import MARKER
from tools.harness.scene import Scene, events_of
from tools.harness.tenants import Tenant
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tools.harness.wire import Wire

Logs = list[list[str]]
_SHOWN_LINES = 60
# Longer than a message is handled, and shorter than it waits in a retry queue.
_STAYS_EMPTY_S = 1.0


def master_keys_setting(masters: dict[str, bytes]) -> str:
    """The value of the setting `MASTER_KEYS`."""
    return json.dumps({name: to_base64(master) for name, master in masters.items()})


def all_projects_sweep(**more: Any) -> dict[str, Any]:
    """A request to sweep all projects."""
    return {
        "type": "sweep.requested",
        "sweep_id": rq.new_id(),
        "project": "*",
        "requested_at": rq.now(),
        **more,
    }


def small_plaintexts(count: int, prefix: str = "small") -> dict[str, bytes]:
    """`count` small plaintexts that begin with the canary; the first has nothing else."""
    return {f"{prefix}/{n:03} ü.bin": MARKER + os.urandom(37 * n) for n in range(count)}


async def enroll_projects(scene: Scene, projects: Iterable[str]) -> list[Tenant]:
    """Enroll projects of the scene's deployment with one real worker."""
    tenants = [Tenant(scene.deployment, project) for project in projects]
    # The keyring records the longest lease of its writers, and every proof waits two of them:
    # this lease must not exceed those of later workers.
    async with (
        scene.worker("control", LEASE_S="2", KEYRING_CACHE_S="0.5") as running,
        open_wire(scene.deployment) as wire,
    ):
        documents = [rq.enroll(scene.deployment, tenant.project) for tenant in tenants]
        for document in documents:
            await scene.publish(wire, document)
        for document in documents:
            event = await wire.outcome(document["request_id"])
            assert event["type"] == "project.enrolled"
        assert await running.terminate() == 0
    return tenants


async def run_concurrently(
    limit: int, cases: Mapping[str, Callable[[Logs], Awaitable[None]]]
) -> None:
    """Run cases, `limit` at a time, and report every failure with the ends of its workers' logs.

    Each case gets a list to which it adds its workers' logs.
    """
    slots = asyncio.Semaphore(limit)

    async def one(name: str, case: Callable[[Logs], Awaitable[None]]) -> Exception | None:
        logs: Logs = []
        async with slots:
            try:
                await case(logs)
            except Exception as exc:  # noqa: BLE001  # the other cases still run
                exc.add_note(f"in the case {name}")
                for log in logs:
                    exc.add_note("\n".join(["its worker:", *log[-_SHOWN_LINES:]]))
                return exc
        return None

    outcomes = await asyncio.gather(*(one(name, case) for name, case in cases.items()))
    failed = [outcome for outcome in outcomes if outcome is not None]
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(cases)} cases", failed)


async def wait_for_end(
    wire: Wire, request_id: str, kind: str, *, timeout_s: float = 150
) -> dict[str, Any]:
    """Wait for the event of this kind that ends a request; a rejection fails at once."""
    event = await wire.event(
        lambda event: request_id in event.values() and _ends(event, kind), timeout_s=timeout_s
    )
    assert event["type"] == kind, event
    return event


def _ends(event: dict[str, Any], kind: str) -> bool:
    return event["type"] in {
        kind,
        "rotation.failed",
        "rotation.rejected",
        "sweep.failed",
        "sweep.rejected",
        "delete.rejected",
    }


def check_ends(wire: Wire, request_id: str, kind: str, objects: int) -> None:
    """Every completion event of a sweep is clean and has the right counts."""
    ends = [event for event in events_of(wire, request_id) if event["type"] == kind]
    assert ends
    for event in ends:
        assert event["clean"] is True, event
        assert event["objects"] == event["current"] + event["deleted"] == objects, event
        assert (event["failed"], event["noncurrent_stale"]) == (0, 0), event


async def wait_until_drained(wire: Wire, *, timeout_s: float = 60) -> None:
    """Wait until all queues stay empty; duplicates of steps remain for their retry delays.

    A message that a worker is handling is in no queue, and may go to a retry queue next.
    """
    work = (
        topology.UPLOAD_QUEUE,
        topology.CONTROL_QUEUE,
        topology.PLAN_QUEUE,
        topology.SWEEP_QUEUE,
    )
    waits = [topology.retry_name(queue, s) for queue in work for s in topology.ALL_DELAYS_S]
    queues = [*work, *waits]
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(timeout_s):
        empty_since = clock()
        while clock() - empty_since < _STAYS_EMPTY_S:
            await asyncio.sleep(0.1)
            if any([await wire.depth(queue) for queue in queues]):
                empty_since = clock()
