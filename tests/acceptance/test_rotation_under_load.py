"""Two rotations and a master key sweep over many objects, under uploads and SIGKILL (SPEC 8).

Most of the objects are sealed and put by the test itself, since what matters here is what becomes
of them; hundreds more come through the queue, before and all the while. Four workers serve them:
for uploads, for control, and two for sweeps. One after another is killed.

On Ceph, and with fewer objects on SeaweedFS. With `KEYTURN_TEST_LARGE=1`, Ceph has 2,000 objects
when the first rotation begins, instead of 480.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tools.harness import requests as rq
from tools.harness.canaries import MARKER
from tools.harness.deployment import Deployment
from tools.harness.scene import (
    Scene,
    check_queues_empty,
    enroll_projects,
    events_of,
    master_keys_setting,
    wait_for_end,
    wait_until_drained,
)
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tools.harness.process import WorkerProcess
    from tools.harness.tenants import Tenant
    from tools.harness.wire import Wire
    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

_KIB = 1024
_EDGES = (0, 1, 16383, 16384, 16385)
_ROLES = ("upload", "control", "sweep", "sweep")
_BETWEEN_UPLOADS_S = 0.2
_CANARIES = 30
_LEASE_S = 3
# Of a machine that has little time for it: on an idle one the whole test takes under a minute.
_TIMEOUT_S = 200
_SETTINGS = {"LEASE_S": str(_LEASE_S), "KEYRING_CACHE_S": "0.5", "SWEEP_PAGE_KEYS": "50"}


@dataclass(frozen=True)
class _Load:
    """How much there is, and where.

    Attributes:
        server: The fixture of the S3 server.
        by_hand: Objects that the test puts itself.
        uploaded_before: Objects that were uploaded before the first rotation.
        kills: At least so many workers are killed.
        hundreds_of_kib: How many of those put by hand have hundreds of KiB.
        many_mib: How many of those put by hand have several MiB.
    """

    server: str
    by_hand: int
    uploaded_before: int
    kills: int
    hundreds_of_kib: int
    many_mib: int


_CEPH = _Load("ceph", 400, 80, 6, 20, 4)
_CEPH_LARGE = _Load("ceph", 1700, 300, 8, 40, 4)
_LOADS = {
    "ceph": _CEPH_LARGE if os.environ.get("KEYTURN_TEST_LARGE") == "1" else _CEPH,
    "seaweedfs": _Load("seaweedfs", 90, 30, 3, 4, 1),
}


def _plaintexts(load: _Load, dice: random.Random) -> dict[str, bytes]:
    """What is put by hand: mostly a few KiB, as the edges of the format have it, some large."""
    sizes = [*_EDGES]
    sizes += [dice.randint(100 * _KIB, 900 * _KIB) for _ in range(load.hundreds_of_kib)]
    sizes += [dice.randint(3 * _KIB**2, 9 * _KIB**2) for _ in range(load.many_mib)]
    sizes += [dice.randint(0, 8 * _KIB) for _ in range(load.by_hand - len(sizes))]
    dice.shuffle(sizes)
    return {
        f"by hand/{n:04}": (MARKER + dice.randbytes(size))[:size] for n, size in enumerate(sizes)
    }


class _Crew:
    """Four workers, one of which is killed and replaced all the time."""

    def __init__(self, scene: Scene, stack: AsyncExitStack, settings: dict[str, str]) -> None:
        self._scene = scene
        self._stack = stack
        self._settings = settings
        self._dice = random.Random(11)  # noqa: S311  # only chooses whom to kill
        self._running: list[WorkerProcess] = []
        self._over = asyncio.Event()
        self.kills: list[str] = []

    async def start(self) -> None:
        self._running = list(await asyncio.gather(*map(self._new, _ROLES)))

    async def _new(self, role: str) -> WorkerProcess:
        worker = self._scene.worker(role, point="nowhere", **self._settings)
        return await self._stack.enter_async_context(worker)

    async def keep_killing(self) -> None:
        """Kill one and start another in its place, until `end`."""
        while not self._over.is_set():
            # Time to get into the middle of something: whom it meets must not depend on what
            # is going on.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._dice.uniform(2, 4))
            at = self._dice.randrange(len(_ROLES))
            await self._running[at].kill()
            self.kills.append(_ROLES[at])
            self._running[at] = await self._new(_ROLES[at])

    async def end(self, killing: asyncio.Task[None]) -> None:
        """Stop killing; the running workers get SIGTERM, and exit cleanly."""
        self._over.set()
        await killing
        for running in self._running:
            assert await running.terminate() == 0


class _Uploads:
    """Uploads through the queue, a few per second until stopped."""

    def __init__(self, scene: Scene, wire: Wire) -> None:
        self._scene = scene
        self._wire = wire
        self._dice = random.Random(5)  # noqa: S311  # only spreads sizes
        self._over = asyncio.Event()
        self.ids: list[str] = []

    async def publish(self) -> None:
        number = len(self.ids)
        large = number % 100 == 7
        size = 2_000_000 if large else self._dice.randint(0, 8 * _KIB)
        made = await self._scene.upload(
            self._wire, f"uploaded/{number:04}", os.urandom(size), staged=large or number % 50 == 9
        )
        self.ids.append(made.upload_id)
        if number >= _CANARIES:
            # Every log is searched for each of these: a sample is enough.
            self._scene.canaries.secrets.popitem()
            self._scene.canaries.secrets.popitem()

    async def keep_coming(self) -> None:
        """Publish until `end`."""
        while not self._over.is_set():
            await self.publish()
            with suppress(TimeoutError):  # a rate, not a wait
                await asyncio.wait_for(self._over.wait(), _BETWEEN_UPLOADS_S)

    async def end(self, coming: asyncio.Task[None]) -> None:
        """Stop publishing, and wait until all published uploads are reported."""
        self._over.set()
        await coming
        await self.wait_until_reported()

    async def wait_until_reported(self) -> None:
        for upload_id in self.ids:
            event = await self._wire.outcome(upload_id)
            assert event["type"] == "upload.stored", event


async def _rotate_twice(scene: Scene, wire: Wire, tenant: Tenant) -> None:
    """A rotation, another one in the middle of it, and the clean end of both."""
    first = tenant.rotation(expected_generation=1)
    await scene.publish(wire, first)
    await wire.event(lambda event: event["type"] == "sweep.progressed")
    second = tenant.rotation(expected_generation=2)
    await scene.publish(wire, second)
    await wait_for_end(wire, second["rotation_id"], "rotation.accepted")
    assert "rotation.completed" not in {event["type"] for event in wire.events}
    for rotation in (first, second):
        event = await wait_for_end(
            wire, rotation["rotation_id"], "rotation.completed", timeout_s=_TIMEOUT_S
        )
        assert event["clean"] is True, event


@pytest.mark.parametrize("load", _LOADS.values(), ids=_LOADS)
async def test_rotations_survive_killed_workers(
    load: _Load, request: pytest.FixtureRequest, vhost_url: str
) -> None:
    """Each object opens with both keys and no older one, unchanged; everything is reported."""
    server: S3Server = request.getfixturevalue(load.server)
    bucket = await asyncio.to_thread(new_bucket, server)
    scene = Scene(Deployment(vhost_url, server, bucket), "fire")
    (tenant,) = await enroll_projects(scene, ["fire"])
    masters = {"m1": scene.deployment.master_key, "m2": os.urandom(32)}
    by_hand = _plaintexts(load, random.Random(3))  # noqa: S311  # plaintexts of a test
    await asyncio.to_thread(tenant.put_all, by_hand)
    async with AsyncExitStack() as stack:
        crew = _Crew(scene, stack, {**_SETTINGS, "MASTER_KEYS": master_keys_setting(masters)})
        await crew.start()
        wire = await stack.enter_async_context(open_wire(scene.deployment))
        uploads = _Uploads(scene, wire)
        for _ in range(load.uploaded_before):
            await uploads.publish()
        await uploads.wait_until_reported()
        await asyncio.to_thread(tenant.remember, dict(scene.plaintexts))
        before = set(scene.plaintexts)
        coming = asyncio.create_task(uploads.keep_coming())
        killing = asyncio.create_task(crew.keep_killing())
        await _rotate_twice(scene, wire, tenant)
        sweep = rq.sweep("*", master_key="m2")
        await scene.publish(wire, sweep)
        tenant.masters = masters
        await wait_for_end(wire, sweep["sweep_id"], "sweep.completed", timeout_s=_TIMEOUT_S)
        assert len(crew.kills) >= 2, "hardly a worker was killed while keys were rotated"
        async with asyncio.timeout(_TIMEOUT_S):
            while len(crew.kills) < load.kills:  # noqa: ASYNC110  # the crew has no event
                await asyncio.sleep(0.2)
        await uploads.end(coming)
        await wait_until_drained(wire)
        await crew.end(killing)
        assert len(uploads.ids) > load.uploaded_before + 30
        _check_reported(wire, sweep["sweep_id"], uploads.ids, load.by_hand + load.uploaded_before)
        await check_queues_empty(wire)
    late = {key: plain for key, plain in scene.plaintexts.items() if key not in before}
    await asyncio.to_thread(_check, scene, tenant, late)


def _check_reported(wire: Wire, sweep_id: str, upload_ids: list[str], before: int) -> None:
    """Nothing is rejected; every completion event is clean."""
    assert not [event for event in wire.events if event["type"].endswith(".rejected")]
    ends = [event for event in wire.events if event["type"].endswith(".completed")]
    for event in ends:
        assert event["clean"] is True, event
        assert event["objects"] == event["current"] >= before, event
    assert any(sweep_id in event.values() for event in ends)
    for upload_id in upload_ids:
        assert {event["type"] for event in events_of(wire, upload_id)} == {"upload.stored"}


def _check(scene: Scene, tenant: Tenant, late: dict[str, bytes]) -> None:
    keyring = tenant.keyring()
    assert (keyring["generation"], keyring["master_key"]) == (3, "m2")
    assert [entry["kek"] for entry in keyring["history"]] == [None, None]
    tenant.remember(late)
    tenant.check(generation=3)
    scene.check_nothing_left()
    scene.canaries.secrets |= tenant.secrets()
    scene.check_logs()
