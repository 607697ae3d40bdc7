"""An ingest worker killed between an object that it found and the end of its listing (SPEC 17.4).

Whatever it had requested or recorded, the next worker ingests the rest, and every object is
stored once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import to_base64
from tools.harness.canaries import MARKER
from tools.harness.scene import check_queues_empty
from tools.harness.sources import DropBucket, sources_env
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from tools.harness.scene import Scene
    from tools.servers import S3Server

pytestmark = pytest.mark.servers
_OBJECTS = 20


@pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
@pytest.mark.parametrize(
    "point",
    [
        "source-found",
        "source-request-before",
        "source-request-after",
        "source-record-before",
        "source-record-after",
    ],
)
async def test_every_object_of_a_source_survives_a_crash(
    scene: Scene, moto: S3Server, point: str, *, delete: bool
) -> None:
    name = f"drop-{os.urandom(4).hex()}"
    drop = DropBucket(moto, name, versioned=True, fields={"watch": True, "delete": delete})
    settings = sources_env(scene.deployment, drop)
    watching = {
        **settings,
        "SOURCE_POLL_S": "1",
        "PUBLISHER_NAME": "api",
        "PUBLISHER_KEY": to_base64(scene.deployment.publisher_seed),
    }
    async with (
        scene.worker("upload", **settings),
        open_wire(scene.deployment) as wire,
    ):
        async with scene.worker("ingest", point=point, **watching) as dying:
            ids = {}
            for number in range(_OBJECTS):
                key = f"ingest/{point}-{delete}-{number}"
                scene.plaintexts[key] = MARKER + os.urandom(100 + number)
                ids[key] = drop.put(key, scene.plaintexts[key]).upload_id(scene.deployment.name)
                if number == 0:
                    # What is put while it lists is found by the next listing.
                    assert await dying.ended() == -signal.SIGKILL
        async with scene.worker("ingest", **watching) as next_one:
            for key, upload_id in ids.items():
                event = await wire.outcome(upload_id)
                assert (event["type"], event["size"]) == (
                    "upload.stored",
                    len(scene.plaintexts[key]),
                )
            async with asyncio.timeout(150):  # a delete that failed is repeated after a minute
                while delete and any(map(drop.read, ids)):  # noqa: ASYNC110  # a bucket
                    await asyncio.sleep(0.2)
            assert await next_one.terminate() == 0
        await check_queues_empty(wire)
    for key, upload_id in ids.items():
        scene.check_object(key, upload_id)
        assert drop.read(key) == (None if delete else scene.plaintexts[key])
    scene.check_nothing_left()
    scene.check_logs()
