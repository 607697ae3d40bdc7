"""What stands, what was told and what is dead once a queue is drained (SPEC 6.2, 7).

Looked at from outside: boto3, a bare AMQP connection and the formats, none of the workers'
code. Call it once no worker runs: what one holds unacknowledged is in no queue's depth.
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

    `stand` are objects in the bucket, `told` uploads of which at least one signed event is in
    the stream, `told_again` events beyond the first of an upload, `other_events` events of
    theirs that are no `upload.stored`, `decrypt` objects that both keys opened to what was sent.
    """

    uploads: int
    stand: int
    told: int
    told_again: int
    other_events: int
    waiting: int
    dead: int
    opened: int

    def check(self) -> None:
        """See that every upload is done and told, and nothing is left or dead.

        Raises:
            BenchError: something is missing.
        """
        done = (self.stand, self.told, self.other_events, self.waiting, self.dead)
        if done != (self.uploads, self.uploads, 0, 0, 0):
            raise BenchError(f"not every upload was done: {asdict(self)}")


async def outcome(deployment: Deployment, uploads: Uploads, *, sample: int) -> Outcome:
    """Look at everything; `sample` objects, spread evenly, are opened by both keys.

    Raises:
        BenchError: an object does not open to what was sent, or the stream cannot be read.
    """
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        waiting, dead = await _depths(Wire(await connection.channel(), []))
        events = await _events(connection, deployment)
    numbers = range(0, uploads.count, max(1, uploads.count // sample))
    await asyncio.to_thread(_open, deployment, uploads, numbers)
    stand = await asyncio.to_thread(
        stored_objects.list_keys, deployment, f"{PROJECT}/{uploads.prefix}"
    )
    stored, other = _of(events, uploads)
    return Outcome(
        uploads=uploads.count,
        stand=len(stand),
        told=len(stored),
        told_again=stored.total() - len(stored),
        other_events=other,
        waiting=waiting,
        dead=dead,
        opened=len(numbers),
    )


async def _depths(wire: Wire) -> tuple[int, int]:
    """Messages of uploads that wait, now or to be tried again, and those that are dead."""
    work = topology.UPLOAD_QUEUE
    names = [work, *(topology.retry_name(work, delay_s) for delay_s in topology.ALL_DELAYS_S)]
    waiting = sum([await wire.depth(name) for name in names])
    return waiting, await wire.depth(topology.dead_letter_name(work))


def _of(events: list[dict[str, Any]], uploads: Uploads) -> tuple[Counter[str], int]:
    """How often each upload of the run was told as stored, and how many other events it has."""
    keys = {uploads.upload_id(number): uploads.key(number) for number in range(uploads.count)}
    stored: Counter[str] = Counter()
    other = 0
    for event in events:
        upload_id = event.get("upload_id")
        if upload_id not in keys:
            continue
        if event["type"] == "upload.stored" and event["key"] == keys[upload_id]:
            stored[upload_id] += 1
        else:
            other += 1
    return stored, other


async def _events(connection: AbstractConnection, deployment: Deployment) -> list[dict[str, Any]]:
    """Every signed event that the stream holds, read up to a mark that is published first."""
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)
    mark, seen = str(uuid.uuid4()).encode(), list[dict[str, Any]]()
    over = asyncio.Event()
    channel = await connection.channel()
    # Confirmed, so whatever was told stands before it.
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
            return  # nobody's word, as the mark of an earlier look
        seen.append(json.loads(message.body))

    await channel.set_qos(prefetch_count=_PREFETCH)
    stream = await channel.get_queue(topology.EVENTS_STREAM, ensure=False)
    await stream.consume(take, arguments={"x-stream-offset": "first"})
    try:
        async with asyncio.timeout(_STREAM_S):
            await over.wait()
    except TimeoutError as exc:
        raise BenchError(f"the stream of events was not read in {_STREAM_S} s") from exc
    await channel.close()
    return seen


def _open(deployment: Deployment, uploads: Uploads, numbers: range) -> None:
    for number in numbers:
        key = uploads.key(number)
        for by in ("user", "admin"):
            try:
                plaintext = stored_objects.decrypt(deployment, PROJECT, key, by)
            except SealError as exc:
                raise BenchError(f"{key} does not open by its {by} key") from exc
            if plaintext != uploads.body(number):
                raise BenchError(f"{key} opens to other bytes than those that were sent")
        shown = stored_objects.read_object(deployment, PROJECT, key)
        if shown.metadata["enc-upload"] != uploads.upload_id(number):
            raise BenchError(f"{key} is another upload's")
