"""Killed with SIGKILL at each point of a rotation, a sweep of all or a delete (SPEC 8).

Each case has its own project and vhost, and two real processes: one that dies at the
point, and a plain worker that comes after it. The table says what must exist after the crash, and
what must not, so that a case also proves where it struck. Cases run side by side, since most of
their time is waiting for leases. Objects are sealed and put by the test itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.scene import (
    Scene,
    check_ends,
    check_queues_empty,
    enroll_projects,
    events_of,
    master_keys_setting,
    run_concurrently,
    small_plaintexts,
    wait_for_end,
    wait_until_drained,
)
from tools.harness.tenants import find_origin
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.harness.scene import Logs
    from tools.harness.tenants import Tenant
    from tools.harness.wire import Wire
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_OBJECTS = 7
_AT_ONCE = 7
_SETTINGS = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5", "SWEEP_PAGE_KEYS": "3"}
_TAGS = {"team": "blue", "kept": "yes"}


@dataclass(frozen=True)
class Death:
    """One crash point, and what exists and what does not at that point (see `_standing`)."""

    point: str
    stands: str
    lacks: str
    role: str = "all"
    tags: bool = False


# In the order in which a rotation comes by them. `ack-before` is not here: its state is that of
# `event-after`.
DEATHS = {
    "begun": [
        Death("keyring-put-before", "", "turned recorded accepted", "control"),
        Death("keyring-put-after", "turned", "recorded accepted", "control"),
        Death("record-created", "turned recorded", "stepped accepted", "control"),
        Death("event-after", "turned recorded accepted", "stepped", "control"),
    ],
    "stepped": [
        Death("step-recorded", "turned recorded stepped", "copied resulted done"),
        Death("first-page-sent", "turned stepped", "copied resulted done"),
        Death("results-judged", "turned stepped copied resulted", "cleared done"),
    ],
    "paged": [
        Death("copied-first", "stepped copied", "cleared done"),
        Death("page-recorded", "stepped copied resulted", "cleared done"),
        Death("tags-dropped", "stepped copied noted", "cleared done", tags=True),
        Death("copied-all", "stepped copied noted", "cleared done", tags=True),
    ],
    "ended": [
        Death("evidence-kept", "stepped copied kept", "cleared evidenced done completed marked"),
        Death("keyring-cleared", "stepped copied kept cleared", "evidenced done completed marked"),
        Death("evidence-put", "copied kept cleared evidenced", "done completed marked"),
        Death("end-recorded", "copied cleared evidenced done", "kept completed marked"),
        Death("end-published", "copied cleared resulted done completed", "marked"),
        Death("results-deleted", "copied cleared done completed", "resulted marked"),
        Death("end-marked", "copied cleared done completed marked", ""),
    ],
}


def _standing(tenant: Tenant, rotation_id: str, wire: Wire) -> set[str]:
    """What a rotation has left behind so far, in words."""
    keyring, record = tenant.keyring(), tenant.record()
    origin, left = find_origin(record, rotation_id), tenant.left()
    end = origin.get("end") or {}
    types = {event["type"] for event in events_of(wire, rotation_id)}
    found = {
        "turned": keyring["generation"] == 2,
        "cleared": keyring["generation"] == 2 and keyring["history"][0]["kek"] is None,
        "recorded": bool(origin),
        "stepped": record.get("step", 0) > 0,
        "copied": 2 in tenant.generations(),
        "resulted": any("/results/" in key for key in left),
        "noted": any("/tags/" in key for key in left),
        "kept": record.get("clean_end") is not None,
        "evidenced": bool(tenant.evidence()),
        "done": bool(end),
        "marked": end.get("published", False),
        "accepted": "rotation.accepted" in types,
        "completed": "rotation.completed" in types,
    }
    return {word for word, holds in found.items() if holds}


async def _enrolled(
    ceph: S3Server, vhosts: Callable[[], str], projects: list[str]
) -> tuple[Scene, list[Tenant]]:
    """A deployment with these projects, on a vhost without workers."""
    bucket = await asyncio.to_thread(new_bucket, ceph)
    deployment = Deployment(await asyncio.to_thread(vhosts), ceph, bucket)
    scene = Scene(deployment, projects[0])
    return scene, await enroll_projects(scene, projects)


@pytest.mark.parametrize("when", DEATHS)
async def test_a_rotation_survives_a_crash(
    ceph: S3Server, vhosts: Callable[[], str], when: str
) -> None:
    """Accepted, completed and clean; every object opens by both new keys alone, else as before."""
    deaths = DEATHS[when]
    names = [f"{when}-{number}-{death.point}" for number, death in enumerate(deaths)]
    scene, tenants = await _enrolled(ceph, vhosts, names)
    cases = {
        name: partial(_rotation_survives, await scene.on(vhosts(), tenant.project), tenant, death)
        for name, tenant, death in zip(names, tenants, deaths, strict=True)
    }
    await run_concurrently(_AT_ONCE, cases)


async def _rotation_survives(scene: Scene, tenant: Tenant, death: Death, logs: Logs) -> None:
    scene.logs = logs
    tags = _TAGS if death.tags else None
    await asyncio.to_thread(tenant.put_all, small_plaintexts(_OBJECTS), tags=tags)
    async with (
        scene.worker(death.role, point=death.point, **_SETTINGS) as dying,
        open_wire(scene.deployment) as wire,
    ):
        request = tenant.rotation(expected_generation=1)
        rotation_id = request["rotation_id"]
        await scene.publish(wire, request)
        assert await dying.ended(timeout_s=60) == -signal.SIGKILL
        await _check_death(tenant, rotation_id, wire, death)
        async with scene.worker("all", point="nowhere", **_SETTINGS) as plain:
            await wait_for_end(wire, rotation_id, "rotation.completed")
            await wire.event(lambda event: event["type"] == "rotation.accepted")
            await wait_until_drained(wire)
            assert await plain.terminate() == 0
        await check_queues_empty(wire)
    check_ends(wire, rotation_id, "rotation.completed", _OBJECTS)
    accepted = [e for e in events_of(wire, rotation_id) if e["type"] == "rotation.accepted"]
    assert {event["generation"] for event in accepted} == {2}
    await asyncio.to_thread(_check_rotated, scene, tenant, rotation_id)


async def _check_death(tenant: Tenant, rotation_id: str, wire: Wire, death: Death) -> None:
    events = {"accepted", "completed"} & set(death.stands.split())
    for word in events:
        await wire.event(lambda event, word=word: event["type"] == f"rotation.{word}")  # type: ignore[misc]
    standing = await asyncio.to_thread(_standing, tenant, rotation_id, wire)
    assert set(death.stands.split()) <= standing, (death, standing)
    assert not set(death.lacks.split()) & standing, (death, standing)


def _check_rotated(scene: Scene, tenant: Tenant, rotation_id: str) -> None:
    keyring = tenant.keyring()
    assert (keyring["generation"], keyring["history"][0]["kek"]) == (2, None)
    assert tenant.left() == []
    (evidence,) = tenant.check_evidence()
    predicate, end = evidence.proof, tenant.origin(rotation_id)["end"]
    assert [each.id for each in predicate.origins] == [rotation_id]
    assert (predicate.sweep_id, predicate.counts.objects) == (end["round_id"], _OBJECTS)
    tenant.check(generation=2)
    scene.canaries.secrets |= tenant.secrets()
    scene.check_logs()


# A delete: whether the tombstone exists, and whether object.deleted was published. `ack-before` is
# not here: its state is that of `quietly-put-off`.
DELETES = {
    "put-before": (False, False),
    "put-after": (True, False),
    "quietly-put-off": (True, False),
    "event-before": (True, False),
    "event-after": (True, True),
}


async def test_a_delete_survives_a_crash(ceph: S3Server, vhosts: Callable[[], str]) -> None:
    """Reported after two leases; the tombstone exists, and other objects are unchanged."""
    scene, tenants = await _enrolled(ceph, vhosts, [f"delete-{point}" for point in DELETES])
    cases = {
        tenant.project: partial(
            _delete_survives, await scene.on(vhosts(), tenant.project), tenant, point
        )
        for tenant, point in zip(tenants, DELETES, strict=True)
    }
    await run_concurrently(_AT_ONCE, cases)


async def _delete_survives(scene: Scene, tenant: Tenant, point: str, logs: Logs) -> None:
    scene.logs = logs
    await asyncio.to_thread(tenant.put_all, small_plaintexts(2))
    key = next(iter(tenant.objects))
    gone = tenant.objects.pop(key)
    async with (
        scene.worker("control", point=point, **_SETTINGS) as dying,
        open_wire(scene.deployment) as wire,
    ):
        request = tenant.delete(key)
        request_id = request["request_id"]
        await scene.publish(wire, request)
        assert await dying.ended(timeout_s=60) == -signal.SIGKILL
        tombstone_exists, was_reported = DELETES[point]
        shown = stored_objects.read_object(scene.deployment, tenant.project, key)
        assert (shown.metadata["enc-algo"] == "deleted") is tombstone_exists
        body_sha256 = stored_objects.sha256(b"") if tombstone_exists else gone.body_sha256
        assert stored_objects.sha256(shown.body) == body_sha256
        if was_reported:
            await wait_for_end(wire, request_id, "object.deleted")
        assert bool(events_of(wire, request_id)) is was_reported
        async with scene.worker("control", point="nowhere", **_SETTINGS) as plain:
            await wait_for_end(wire, request_id, "object.deleted")
            await wait_until_drained(wire)
            assert await plain.terminate() == 0
        assert {event["type"] for event in events_of(wire, request_id)} == {"object.deleted"}
        await check_queues_empty(wire)
    tenant.check_deleted(key)
    tenant.check(generation=1, deleted=frozenset({key}))
    scene.canaries.secrets |= tenant.secrets()
    scene.check_logs()


@dataclass(frozen=True)
class AllDeath:
    """One point; how many keyrings are under the new key, how many parts are begun, the end."""

    point: str
    resealed: int
    parts: int
    ended: bool = False


ALL_DEATHS = [
    AllDeath("walk-begun", resealed=0, parts=0),
    AllDeath("keyring-put-after", resealed=1, parts=0),
    AllDeath("part-begun", resealed=1, parts=1),
    AllDeath("all-changed", resealed=3, parts=3),
    AllDeath("part-ended", resealed=3, parts=3),
    AllDeath("all-ended", resealed=3, parts=3, ended=True),
    AllDeath("all-end-published", resealed=3, parts=3, ended=True),
]
_PROJECTS = 3


@pytest.mark.parametrize("half", [0, 1])
async def test_a_sweep_of_all_projects_survives_a_crash(
    ceph: S3Server, vhosts: Callable[[], str], half: int
) -> None:
    """Completed and clean with the sums; every keyring and object is under the new key alone."""
    deaths = ALL_DEATHS[half::2]
    await run_concurrently(
        _AT_ONCE, {death.point: partial(_all_survives, ceph, vhosts, death) for death in deaths}
    )


async def _all_survives(
    ceph: S3Server, vhosts: Callable[[], str], death: AllDeath, logs: Logs
) -> None:
    scene, tenants = await _enrolled(ceph, vhosts, ["one", "three", "two"])
    scene.logs = logs
    for tenant in tenants:
        await asyncio.to_thread(tenant.put_all, small_plaintexts(_OBJECTS))
    masters = {"m1": scene.deployment.master_key, "m2": os.urandom(32)}
    for tenant in tenants:
        tenant.masters = masters
    settings = {**_SETTINGS, "MASTER_KEYS": master_keys_setting(masters)}
    request = rq.sweep("*", master_key="m2")
    sweep_id = request["sweep_id"]
    async with (
        scene.worker("all", point=death.point, **settings) as dying,
        open_wire(scene.deployment) as wire,
    ):
        await scene.publish(wire, request)
        assert await dying.ended(timeout_s=60) == -signal.SIGKILL
        assert await asyncio.to_thread(_all_standing, tenants, sweep_id, death.point) == death
        async with scene.worker("all", point="nowhere", **settings) as plain:
            await wire.event(partial(_is_whole_end, sweep_id), timeout_s=150)
            await wait_until_drained(wire)
            assert await plain.terminate() == 0
        await check_queues_empty(wire)
    ends = [event for event in wire.events if _is_whole_end(sweep_id, event)]
    for event in ends:
        assert (event["clean"], event["objects"]) == (True, _OBJECTS * _PROJECTS), event
        assert (event["current"], event["failed"]) == (_OBJECTS * _PROJECTS, 0), event
    await asyncio.to_thread(_check_all, scene, tenants)


def _is_whole_end(sweep_id: str, event: dict[str, Any]) -> bool:
    return (event["type"], event.get("sweep_id")) == ("sweep.completed", sweep_id)


def _all_standing(tenants: list[Tenant], sweep_id: str, point: str) -> AllDeath:
    """What a sweep of all has left behind so far."""
    origin = find_origin(tenants[0].record_of_all(), sweep_id)
    return AllDeath(
        point,
        resealed=[tenant.keyring()["master_key"] for tenant in tenants].count("m2"),
        # Nothing but its part creates a record. A part that ended has left the record.
        parts=sum(bool(tenant.record()) for tenant in tenants),
        ended=origin["end"] is not None,
    )


def _check_all(scene: Scene, tenants: list[Tenant]) -> None:
    for tenant in tenants:
        assert tenant.keyring()["master_key"] == "m2"
        assert tenant.left() == []
        tenant.check(generation=1)
        scene.canaries.secrets |= tenant.secrets()
    scene.check_logs()
