"""The event key is replaced while workers, publishers and a rotation run (SPEC 6.3, 6.10).

The order is that of docs/howto/rotate-event-key.md: readers get the new public key, then one
worker after the other gets the new seed, then a sweep of all projects signs the marks of keyrings
anew, then the workers lose the old seed, then the readers the old public key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn.crypto import SigningKey, VerifyKey, new_api_key, to_base64
from keyturn.errors import EvidenceError, RetiredEventKeyError
from keyturn.evidence import in_chain_order, verify_chain
from keyturn.identifiers import evidence_prefix, format_time
from keyturn.messages import (
    ProjectEnrolled,
    RequestOrigin,
    RotationAccepted,
    RotationCompleted,
    SweepCompleted,
    UploadRejected,
    UploadStored,
    encode,
    with_origin,
)
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn.topology import (
    EVENT_KEY_HEADER,
    PUBLISHER_HEADER,
    SIGNATURE_HEADER,
    UNKNOWN_PROJECT_DELAYS_S,
    UPLOAD_QUEUE,
    dead_letter_name,
    retry_name,
)
from tools.harness import stored_objects
from tools.harness.canaries import MARKER
from tools.harness.deployment import Deployment
from tools.harness.scene import Scene
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.messages import Event
    from tools.harness.process import WorkerProcess
    from tools.harness.wire import Wire
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_SETTINGS = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
_AT_ONCE = 4
_BODY_BYTES = 3000
_LAST_RETRY = retry_name(UPLOAD_QUEUE, UNKNOWN_PROJECT_DELAYS_S[-1])
_SERVED = ("refused", "retry scheduled")


@dataclass
class _Fleet:
    """Two workers of all roles, and two views of the broker: each believes one event key."""

    scene: Scene
    old: bytes
    new: bytes
    stack: AsyncExitStack
    signed_by_old: Wire = field(init=False)
    signed_by_new: Wire = field(init=False)
    workers: list[WorkerProcess] = field(default_factory=list)

    async def start(self) -> None:
        """Start both with the old event key, as before the change."""
        self.workers = [await self._started(self.old), await self._started(self.old)]
        deployment = self.scene.deployment
        views = [replace(deployment, event_seed=seed) for seed in (self.old, self.new)]
        self.signed_by_old, self.signed_by_new = [
            await self.stack.enter_async_context(open_wire(view)) for view in views
        ]

    async def restart(self, at: int, *seeds: bytes) -> None:
        """Stop one worker, and start it again with these event keys; the first signs."""
        assert await self.workers[at].terminate() == 0
        self.workers[at] = await self._started(*seeds)

    async def stop(self) -> None:
        for running in self.workers:
            assert await running.terminate() == 0

    async def _started(self, *seeds: bytes) -> WorkerProcess:
        keys = ",".join(map(to_base64, seeds))
        running = self.scene.worker(EVENT_KEY=keys, **_SETTINGS)
        worker = await self.stack.enter_async_context(running)
        started = json.loads(await worker.logged("worker started"))
        # How the operator sees which key a worker signs with.
        assert started["event_keys"] == [SigningKey.from_seed(seed).id for seed in seeds]
        return worker

    async def deliver(self, held: AbstractIncomingMessage) -> str:
        """Deliver a message that waited for a retry; what a worker then logs first of it."""
        lines = [len(running.lines) for running in self.workers]
        message = aio_pika.Message(
            held.body, headers=held.headers, content_type=held.content_type, delivery_mode=2
        )
        await self.signed_by_old.channel.default_exchange.publish(message, UPLOAD_QUEUE)
        upload_id = json.loads(held.body)["upload_id"]
        waits = [
            asyncio.create_task(_first_report(running, upload_id, after))
            for running, after in zip(self.workers, lines, strict=True)
        ]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        return done.pop().result()


async def _first_report(running: WorkerProcess, upload_id: str, after: int) -> str:
    """The event of the worker's first log line that says what became of a delivery."""
    while True:
        line = await running.logged(upload_id, after=after)
        after = running.lines.index(line, after) + 1
        if (event := json.loads(line)["event"]) in _SERVED:
            return str(event)


@dataclass
class _Uploads:
    """Uploads without a pause; each is believed before its sender sends the next one."""

    publisher: Publisher
    plaintexts: dict[str, bytes] = field(default_factory=dict, repr=False)
    _over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for sender in range(_AT_ONCE):
                group.create_task(self._send(sender))
            yield
            self._over = True

    async def _send(self, sender: int) -> None:
        number = 0
        while not self._over:
            key, plaintext = f"{sender}/{number}", MARKER + os.urandom(_BODY_BYTES)
            event = await _answered(self.publisher, "acme", key, plaintext)
            assert isinstance(event, UploadStored), event
            self.plaintexts[key] = plaintext
            number += 1


async def _answered(publisher: Publisher, project: str, key: str, body: bytes) -> Event:
    upload_id = await publisher.upload(project, key, body)
    return await publisher.wait(upload_id, timeout_s=60)


def _reader(deployment: Deployment, *seeds: bytes) -> PublisherSettings:
    """The settings of the publisher `api` that holds the public halves of these event keys."""
    keys = [VerifyKey.from_bytes(SigningKey.from_seed(seed).public_bytes) for seed in seeds]
    env = {
        name.removeprefix("KEYTURN_").lower(): value
        for name, value in deployment.publisher_env().items()
    }
    return PublisherSettings(**{**env, "event_public_key": keys})  # type: ignore[arg-type]


async def _next_stored(wire: Wire) -> None:
    """Wait for one more upload whose event is signed by this view's key."""
    known = {event.get("upload_id") for event in wire.events}
    await wire.event(lambda e: e["type"] == "upload.stored" and e["upload_id"] not in known)


async def _held_retry(publisher: Publisher, wire: Wire) -> AbstractIncomingMessage:
    """An upload to no project, taken where it waits for its last attempt."""
    await publisher.upload("nobody", "a", b"x")
    return await wire.take(_LAST_RETRY)


async def test_the_event_key_is_replaced_while_requests_are_served(
    ceph: S3Server, vhost_url: str, ceph_bucket: str
) -> None:
    """No event is disbelieved meanwhile; afterwards nothing that the old key signs counts."""
    old, new = os.urandom(32), os.urandom(32)
    deployment = Deployment(vhost_url, ceph, ceph_bucket, event_seed=old)
    scene, next_api_key = Scene(deployment, "acme"), new_api_key()
    async with AsyncExitStack() as stack:
        fleet = _Fleet(scene, old, new, stack)
        await fleet.start()
        # 1. Readers hold both public keys, before anything is signed by the new one.
        publisher = await stack.enter_async_context(Publisher.open(_reader(deployment, old, new)))
        request_id = await publisher.enroll("acme", api_key=deployment.api_key)
        assert isinstance(await publisher.wait(request_id), ProjectEnrolled)
        wire = fleet.signed_by_old
        held = await asyncio.gather(*(_held_retry(publisher, wire) for _ in range(2)))
        uploads = _Uploads(publisher)
        async with uploads.running():
            rotation_id = await publisher.rotate("acme", api_key=next_api_key)
            assert isinstance(await publisher.wait(rotation_id), RotationAccepted)
            await _replace_seeds(fleet, held[0], publisher)
            end = await publisher.wait_completed(rotation_id, timeout_s=60)
            # 3. The marks of all keyrings are signed anew, by the new seed.
            everything = await publisher.wait_completed(await publisher.sweep("*"), timeout_s=60)
            assert isinstance(everything, SweepCompleted)
            # 4. Workers hold the new seed alone.
            for at in range(2):
                await fleet.restart(at, new)
            await _next_stored(fleet.signed_by_new)
            # No key vouches for the old note any more: the message counts as a first delivery.
            assert await fleet.deliver(held[1]) == "retry scheduled"
            # Evidence follows evidence of the old key.
            sweep = await publisher.wait_completed(await publisher.sweep("acme"), timeout_s=60)
            assert isinstance(sweep, SweepCompleted)
            assert sweep.clean
        assert isinstance(end, RotationCompleted)
        assert end.clean
        assert publisher.unverified_events == 0
        await fleet.stop()
        _check_evidence(deployment, old, new)
        await _check_forged(fleet, publisher)
    # All of them were proven by the rotation, or stored after it; some are opened here.
    for key, plaintext in list(uploads.plaintexts.items())[:: len(uploads.plaintexts) // 20 + 1]:
        for by in ("user", "admin"):
            opened = stored_objects.decrypt(deployment, "acme", key, by, api_key=next_api_key)
            assert opened == plaintext
    scene.check_logs()


async def _replace_seeds(
    fleet: _Fleet, held: AbstractIncomingMessage, publisher: Publisher
) -> None:
    """2. Workers get the new seed beside the old one, one after the other."""
    assert not fleet.signed_by_new.events
    await fleet.restart(0, fleet.new, fleet.old)
    for wire in (fleet.signed_by_old, fleet.signed_by_new):
        await _next_stored(wire)  # mixed: either key signs
    await fleet.restart(1, fleet.new, fleet.old)
    # The note that the old key signed still counts: the last attempt was made, and it is final.
    assert await fleet.deliver(held) == "refused"
    event = await publisher.wait(json.loads(held.body)["upload_id"])
    assert isinstance(event, UploadRejected)
    assert event.code == "unknown_project"
    letter = await fleet.signed_by_new.take(dead_letter_name(UPLOAD_QUEUE))
    assert letter.body == held.body


def _check_evidence(deployment: Deployment, old: bytes, new: bytes) -> None:
    """One chain: an auditor who has both public keys, the current one first, can verify it."""
    keys = [SigningKey.from_seed(seed).verify_key() for seed in (new, old)]  # the current one first
    client, bucket = stored_objects.s3_client(deployment), deployment.bucket
    files = in_chain_order(
        client.get_object(Bucket=bucket, Key=s3_key)["Body"].read()
        for s3_key in stored_objects.list_keys(deployment, evidence_prefix("acme"))
    )
    chain = verify_chain(files, keys, deployment=deployment.name, project="acme")
    assert [each.proof.kind for each in chain] == ["rotation", "sweep", "sweep"]
    assert chain[-1].key_id == keys[0].id
    with pytest.raises(RetiredEventKeyError):  # as if the old key were the current one still
        verify_chain(files, keys[::-1], deployment=deployment.name, project="acme")
    with pytest.raises(EvidenceError):
        verify_chain(files, keys[1:], deployment=deployment.name, project="acme")


async def _check_forged(fleet: _Fleet, believer: Publisher) -> None:
    """5. Readers drop the old public key: what the old seed signs is refused from then on."""
    deployment, began, wire = fleet.scene.deployment, datetime.now(UTC), fleet.signed_by_new
    async with Publisher.open(_reader(deployment, fleet.new)) as publisher:
        upload_id = await publisher.upload("acme", "last", MARKER)
        message = await wire.take(UPLOAD_QUEUE)  # no worker runs
        forged = UploadStored(
            upload_id=upload_id, project="acme", key="last", size=999, generation=2,
            at=format_time(began),
        )  # fmt: skip
        await _publish_forged(wire, deployment, forged, message.body, fleet.old)
        # A reader that kept the old public key still believes it: that is why readers drop it.
        more: dict[str, object] = {"project": "acme", "request_type": "upload.requested"}
        believed = await believer.wait(upload_id, since=began, **more)  # type: ignore[arg-type]
        assert isinstance(believed, UploadStored)
        assert believed.size == forged.size
        await wire.publish("upload.requested", message.body, dict(message.headers))
        await fleet._started(fleet.new)
        event = await publisher.wait(upload_id)
        assert isinstance(event, UploadStored)
        assert event.size == len(MARKER)
        assert publisher.unverified_events == 1


async def _publish_forged(
    wire: Wire, deployment: Deployment, event: UploadStored, request: bytes, seed: bytes
) -> None:
    """Publish an event with all that a reader looks at, signed by this seed."""
    key, digest = SigningKey.from_seed(seed), hashlib.sha256(request).hexdigest()
    body = encode(with_origin(event, RequestOrigin("api", digest)))
    headers = {
        SIGNATURE_HEADER: key.sign_event(deployment.name, body),
        EVENT_KEY_HEADER: key.id,
        PUBLISHER_HEADER: "api",
    }
    await wire.publish(event.type, body, headers)
