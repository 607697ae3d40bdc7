"""Counts stored objects, events and dead letters after a drain (SPEC 6.2, 7).

It uses boto3, a plain AMQP connection and the specified formats, without the workers' code. Call
it after the workers ended: queue depths do not include unacknowledged messages.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import aio_pika

from keyturn import topology
from keyturn.crypto import SealError, SignatureError, VerifyKey
from tools.bench.processes import BenchError
from tools.bench.uploads import PROJECT
from tools.harness import stored_objects
from tools.harness.wire import Wire

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

    from tools.harness.deployment import Deployment
    from tools.load.uploads import Uploads

_STREAM_S = 120
_PREFETCH = 1000


@dataclass(frozen=True)
class Outcome:
    """Counts over all uploads of a run.

    `stored` counts objects in the bucket, `reported` uploads with at least one signed event,
    `reported_again` further events of an upload, `other_events` events other than
    `upload.stored`, and `opened` objects that both keys decrypted to the uploaded bytes.
    """

    uploads: int
    stored: int
    reported: int
    reported_again: int
    other_events: int
    waiting: int
    dead: int
    opened: int

    def check(self) -> None:
        """Check that every upload is stored and reported, and no message is left or dead.

        Raises:
            BenchError: one is not.
        """
        done = (self.stored, self.reported, self.other_events, self.waiting, self.dead)
        if done != (self.uploads, self.uploads, 0, 0, 0):
            raise BenchError(f"not every upload was completed: {asdict(self)}")


async def read_outcome(deployment: Deployment, uploads: Uploads, *, sample: int) -> Outcome:
    """Count everything, and open `sample` evenly spread objects with both keys.

    Raises:
        BenchError: an object does not open to the uploaded bytes, or the stream cannot be read.
    """
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        waiting, dead = await _depths(Wire(await connection.channel(), []))
        events = await _events(connection, deployment)
    numbers = range(0, uploads.count, max(1, uploads.count // sample))
    await asyncio.to_thread(_check_objects, deployment, uploads, numbers)
    stored = await asyncio.to_thread(
        stored_objects.list_keys, deployment, f"{PROJECT}/{uploads.prefix}"
    )
    counts, other = count_events(events, uploads)
    return Outcome(
        uploads=uploads.count,
        stored=len(stored),
        reported=len(counts),
        reported_again=counts.total() - len(counts),
        other_events=other,
        waiting=waiting,
        dead=dead,
        opened=len(numbers),
    )


async def _depths(wire: Wire) -> tuple[int, int]:
    """Upload messages that are queued or await a retry, and upload dead letters."""
    work = topology.UPLOAD_QUEUE
    names = [work, *(topology.retry_name(work, delay_s) for delay_s in topology.ALL_DELAYS_S)]
    waiting = sum([await wire.depth(name) for name in names])
    return waiting, await wire.depth(topology.dead_letter_name(work))


def count_events(events: list[dict[str, Any]], uploads: Uploads) -> tuple[Counter[str], int]:
    """The number of `upload.stored` events per upload, and of other events, of this run."""
    keys = {uploads.upload_id(number): uploads.key(number) for number in range(uploads.count)}
    counts: Counter[str] = Counter()
    other = 0
    for event in events:
        upload_id = event.get("upload_id")
        if upload_id not in keys:
            continue
        if event["type"] == "upload.stored" and event["key"] == keys[upload_id]:
            counts[upload_id] += 1
        else:
            other += 1
    return counts, other


async def _events(connection: AbstractConnection, deployment: Deployment) -> list[dict[str, Any]]:
    """Every signed event in the stream, up to a marker that is published first."""
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)
    mark, seen = str(uuid.uuid4()).encode(), list[dict[str, Any]]()
    over = asyncio.Event()
    channel = await connection.channel()
    # Confirmed, so that every earlier event precedes it.
    persistent = aio_pika.DeliveryMode.PERSISTENT
    await channel.default_exchange.publish(
        aio_pika.Message(mark, delivery_mode=persistent), topology.EVENTS_STREAM
    )

    async def take(message: AbstractIncomingMessage) -> None:
        await message.ack()
        if message.body == mark:
            over.set()
            return
        signature = str(message.headers.get("keyturn-signature"))
        try:
            verify.verify_event(deployment.name, message.body, signature)
        except SignatureError:
            return  # unsigned, such as the marker of an earlier count
        seen.append(json.loads(message.body))

    await channel.set_qos(prefetch_count=_PREFETCH)
    stream = await channel.get_queue(topology.EVENTS_STREAM, ensure=False)
    await stream.consume(take, arguments={"x-stream-offset": "first"})
    try:
        async with asyncio.timeout(_STREAM_S):
            await over.wait()
    except TimeoutError as exc:
        raise BenchError(f"the event stream was not read within {_STREAM_S} s") from exc
    await channel.close()
    return seen


def _check_objects(deployment: Deployment, uploads: Uploads, numbers: range) -> None:
    for number in numbers:
        key = uploads.key(number)
        for by in ("user", "admin"):
            try:
                plaintext = stored_objects.decrypt(deployment, PROJECT, key, by)
            except SealError as exc:
                raise BenchError(f"{key} does not open with its {by} key") from exc
            if plaintext != uploads.body(number):
                raise BenchError(f"{key} opens to bytes other than the uploaded ones")
        shown = stored_objects.read_object(deployment, PROJECT, key)
        if shown.metadata["enc-upload"] != uploads.upload_id(number):
            raise BenchError(f"{key} belongs to another upload")
