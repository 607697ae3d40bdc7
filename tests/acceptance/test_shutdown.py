"""SIGTERM in the middle of the work: what is held is finished, the rest stays queued (SPEC 6.2)."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tools.harness.loopback import proxy_before
from tools.harness.scene import check_queues_empty, events_of, served_uploads
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from tools.harness.scene import Scene

pytestmark = pytest.mark.servers

_UPLOADS = 200
_PUT_DOWN = 7  # the most that was seen with RabbitMQ 4.0
_SLOW_BYTES = 6_000_000
_SLOW_BYTES_PER_S = 2_000_000


async def test_sigterm_finishes_uploads_in_progress(scene: Scene) -> None:
    """Exit status 0; all reported uploads are acknowledged; another worker does the rest once."""
    async with proxy_before(scene.deployment.s3.endpoint_url) as slow:
        endpoint = {"S3_ENDPOINT_URL": slow.url}
        async with (
            scene.worker("upload", UPLOAD_CONCURRENCY="8", **endpoint) as first,
            open_wire(scene.deployment) as wire,
        ):
            slow.bytes_per_s = _SLOW_BYTES_PER_S
            before_bytes = slow.sent_bytes
            big = await scene.upload(wire, "shutdown/big", os.urandom(_SLOW_BYTES), staged=True)
            # Half of it has gone through the slow way, which takes seconds in all.
            await slow.has_sent(before_bytes + _SLOW_BYTES // 2)
            small = [
                await scene.upload(wire, f"shutdown/{number}", os.urandom(1000))
                for number in range(_UPLOADS)
            ]
            await wire.outcome(small[_UPLOADS // 10].upload_id)
            first.process.send_signal(signal.SIGTERM)
            assert await first.ended() == 0
            all_ids = {big.upload_id, *(made.upload_id for made in small)}
            done = {line["upload_id"] for line in served_uploads(first)}
            told_by_first = {event["upload_id"] for event in wire.events}
            assert big.upload_id in done
            assert told_by_first == done
            assert 0 < len(done) < len(all_ids)
            assert await wire.depth("keyturn.upload") == len(all_ids) - len(done)

            async with scene.worker("upload") as second:
                for made in (big, *small):
                    await wire.outcome(made.upload_id)
                assert await second.terminate() == 0
            rest = {line["upload_id"] for line in served_uploads(second)}
            assert rest == all_ids - done
            assert all(len(events_of(wire, upload_id)) == 1 for upload_id in all_ids)
            await check_queues_empty(wire)
    await asyncio.to_thread(_check_objects, scene)


def _check_objects(scene: Scene) -> None:
    for key in scene.plaintexts:
        scene.check_object(key)
    scene.check_nothing_left()
    scene.check_logs()


async def test_a_stopping_worker_holds_back_no_message(scene: Scene) -> None:
    """While it finishes a slow body after SIGTERM, another one serves all that waits."""
    async with proxy_before(scene.deployment.s3.endpoint_url) as slow:
        endpoint = {"S3_ENDPOINT_URL": slow.url}
        async with (
            scene.worker("upload", UPLOAD_CONCURRENCY="8", **endpoint) as first,
            open_wire(scene.deployment) as wire,
        ):
            slow.bytes_per_s = _SLOW_BYTES_PER_S / 20
            before_bytes = slow.sent_bytes
            big = await scene.upload(wire, "leaving/big", os.urandom(_SLOW_BYTES), staged=True)
            await slow.has_sent(before_bytes + 100_000)
            small = [
                await scene.upload(wire, f"leaving/{number}", os.urandom(1000))
                for number in range(_UPLOADS)
            ]
            await wire.outcome(small[_UPLOADS // 10].upload_id)
            first.process.send_signal(signal.SIGTERM)
            async with scene.worker("upload") as second:
                for made in small:
                    await wire.outcome(made.upload_id)
                assert events_of(wire, big.upload_id) == []
                assert first.process.returncode is None
                slow.bytes_per_s = None
                assert await first.ended() == 0
                assert await second.terminate() == 0
            assert len(events_of(wire, big.upload_id)) == 1
            # Nothing was given to the one that ended, and by it to the other.
            # But for the few that the broker had put down for it and never sent: those it
            # marks as redelivered.
            assert sum(line["again"] for line in served_uploads(second)) <= _PUT_DOWN
            await check_queues_empty(wire)
    await asyncio.to_thread(_check_objects, scene)


async def test_an_upload_that_exceeds_the_grace_period_is_requeued(scene: Scene) -> None:
    """A body too slow for the grace is cut short, stores nothing, and is served by the next."""
    async with proxy_before(scene.deployment.s3.endpoint_url) as slow:
        endpoint = {"S3_ENDPOINT_URL": slow.url}
        async with (
            scene.worker("upload", SHUTDOWN_GRACE_S="1", **endpoint) as first,
            open_wire(scene.deployment) as wire,
        ):
            slow.bytes_per_s = _SLOW_BYTES_PER_S / 20
            before_bytes = slow.sent_bytes
            made = await scene.upload(wire, "grace", os.urandom(_SLOW_BYTES), staged=True)
            await slow.has_sent(before_bytes + 100_000)
            assert await first.terminate() == 0
            assert scene.find_object("grace") is None
            assert events_of(wire, made.upload_id) == []
            assert await wire.depth("keyturn.upload") == 1
            async with scene.worker("upload") as second:
                await second.logged(made.upload_id)
                assert await second.terminate() == 0
            assert len(events_of(wire, made.upload_id)) == 1
            await check_queues_empty(wire)
    _check_objects(scene)
