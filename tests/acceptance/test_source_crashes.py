"""Killed at each point between a request for an object of a source and its end (SPEC 7.1, 17).

The object is stored once and opens with both keys, and the source is emptied; it is never deleted
before its event is published.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tools.harness.canaries import MARKER
from tools.harness.scene import check_queues_empty, events_of
from tools.harness.sources import DropBucket, sources_env
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from tools.harness.scene import Scene
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_SIZES = {"small": 5_000, "large": 6_000_000}
# Whether the object, its event, and the source exist at that point.
POINTS = {
    "taken": (False, False, True),
    "keyring-read": (False, False, True),
    "put-before": (False, False, True),
    "put-after": (True, False, True),
    "event-before": (True, False, True),
    "event-after": (True, True, True),
    "source-delete-before": (True, True, True),
    "source-delete-after": (True, True, False),
    "ack-before": (True, True, False),
}
CASES = [("small", point) for point in POINTS] + [("large", "put-midway")]


@pytest.mark.parametrize("versioned", [False, True], ids=["unversioned", "versioned"])
@pytest.mark.parametrize(("size", "point"), CASES)
async def test_an_object_of_a_source_survives_a_crash(
    scene: Scene, moto: S3Server, size: str, point: str, *, versioned: bool
) -> None:
    drop = DropBucket(moto, versioned=versioned, fields={"delete": True})
    settings = sources_env(scene.deployment, drop)
    is_stored, is_published, is_in_source = POINTS.get(point, (False, False, True))
    key = f"sources/{size}-{point}-{versioned} ü.bin"
    body = MARKER + os.urandom(_SIZES[size])
    scene.plaintexts[key] = body
    named = drop.put(key, body)
    request = drop.request(scene.deployment, named)
    async with (
        scene.worker("upload", point=point, **settings) as dying,
        open_wire(scene.deployment) as wire,
    ):
        await scene.publish(wire, request)
        assert await dying.ended() == -signal.SIGKILL
        assert (scene.find_object(key) is not None) is is_stored
        assert (drop.read(key) is not None) is is_in_source
        if is_published:
            await wire.outcome(request["upload_id"])
        assert bool(events_of(wire, request["upload_id"])) is is_published
        async with scene.worker("upload", **settings) as plain:
            await plain.logged(request["upload_id"])
            assert await plain.terminate() == 0
        event = await wire.outcome(request["upload_id"])
        assert (event["type"], event["size"]) == ("upload.stored", len(body))
        await check_queues_empty(wire)
    assert drop.read(key) is None
    scene.check_object(key, request["upload_id"])
    scene.check_nothing_left()
    scene.check_logs()
