"""Two workers on the same upload, or on the same key; one that stalls and comes back late."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from keyturn import topology
from tools.harness.loopback import proxy_before
from tools.harness.scene import check_queues_empty, events_of
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from tools.harness.scene import Scene

pytestmark = pytest.mark.servers

_PAIRS = 20
_LEASE_S = 3


@pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])
async def test_the_same_upload_twice_is_stored_once(scene: Scene, *, staged: bool) -> None:
    """Published twice, consumed by two workers: each is reported as stored, none is rejected."""
    pairs = _PAIRS // 4 if staged else _PAIRS
    size = 1_500_000 if staged else 3000
    async with (
        scene.worker("upload") as one,
        scene.worker("upload") as other,
        open_wire(scene.deployment) as wire,
    ):
        await wire.consumed(topology.UPLOAD_QUEUE, by=2)
        uploads = {}
        for number in range(pairs):
            key = f"twice/{staged}/{number}"
            uploads[key] = await scene.upload(wire, key, os.urandom(size), staged=staged, times=2)
        for made in uploads.values():
            await wire.event(lambda _, made=made: len(events_of(wire, made.upload_id)) == 2)  # type: ignore[misc]
        assert await one.terminate() == 0
        assert await other.terminate() == 0
        assert {event["type"] for event in wire.events} == {"upload.stored"}
        await check_queues_empty(wire)
    assert any("upload.stored" in line for line in one.lines)
    assert any("upload.stored" in line for line in other.lines)
    for key, made in uploads.items():
        scene.check_object(key, made.upload_id)
    scene.check_nothing_left()
    scene.check_logs()


async def test_one_of_two_uploads_gets_a_key(scene: Scene) -> None:
    """Exactly one is stored, the other is refused as already_exists and kept as a letter."""
    async with (
        scene.worker("upload") as one,
        scene.worker("upload") as other,
        open_wire(scene.deployment) as wire,
    ):
        rivals = {}
        for number in range(_PAIRS):
            key = f"rivals/{number}"
            plaintexts = [os.urandom(3000), os.urandom(3000)]
            scene.plaintexts.pop(key, None)
            first = await scene.upload(wire, key, plaintexts[0])
            shown = scene.plaintexts.pop(key)
            second = await scene.upload(wire, key, plaintexts[1])
            rivals[key] = {first.upload_id: shown, second.upload_id: scene.plaintexts[key]}
        for key, pair in rivals.items():
            events = [await wire.outcome(upload_id) for upload_id in pair]
            stored = [event for event in events if event["type"] == "upload.stored"]
            refused = [event for event in events if event["type"] == "upload.rejected"]
            assert (len(stored), len(refused)) == (1, 1)
            assert refused[0]["code"] == "already_exists"
            winner = stored[0]["upload_id"]
            scene.plaintexts[key] = pair[winner]
            scene.check_object(key, winner)
        assert await one.terminate() == 0
        assert await other.terminate() == 0
        assert await wire.depth("keyturn.upload.dead") == _PAIRS
        await check_queues_empty(wire, "keyturn.upload.dead")
    scene.check_logs()


@pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])
async def test_a_late_put_is_refused(scene: Scene, *, staged: bool) -> None:
    """Stopped before its put for longer than the lease; meanwhile another worker stored it."""
    settings = {"LEASE_S": str(_LEASE_S), "KEYRING_CACHE_S": "1"}
    key = f"late/{staged}"
    async with proxy_before(scene.deployment.amqp_url) as way:
        near = scene.through(way.url)
        async with (
            near.worker("upload", point="put-stalled", **settings) as stalled,
            open_wire(scene.deployment) as wire,
        ):
            made = await scene.upload(wire, key, os.urandom(200_000), staged=staged)
            await stalled.stopped()
            # The broker sees its connection break, and gives the message to another.
            way.cut()
            async with scene.worker("upload", **settings) as brisk:
                await brisk.logged(made.upload_id)
                assert await brisk.terminate() == 0
            stored = scene.find_object(key)
            assert stored is not None
            # There is no event at the end of a lease: only time passes.
            await asyncio.sleep(_LEASE_S + 1)
            stalled.process.send_signal(signal.SIGCONT)
            # By its lease, not only by its condition: it would be PreconditionError.
            assert "RefusedError" in await stalled.logged("late put")
            # It is alive and works on, and ends well.
            after = await scene.upload(wire, f"{key}/after", b"next")
            await wire.outcome(after.upload_id)
            assert await stalled.terminate() == 0
            await check_queues_empty(wire)
            assert {event["type"] for event in events_of(wire, made.upload_id)} == {"upload.stored"}
    last = scene.find_object(key)
    assert last is not None
    assert (last.body, last.metadata) == (stored.body, stored.metadata)
    scene.check_object(key, made.upload_id)
    scene.check_object(f"{key}/after", after.upload_id)
    scene.check_nothing_left()
    scene.check_logs()


def _wait_until_stopped(pid: int) -> None:
    """Wait until this child is stopped by a signal."""
    seen = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert seen is not None
    assert seen.si_code == os.CLD_STOPPED
