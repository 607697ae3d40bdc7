"""A test's connection to the broker: publishes raw bytes, follows events, inspects queues.

It does not use the product's client, so it shows what any other client would see.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aio_pika
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from keyturn.crypto import SignatureError, VerifyKey
from keyturn.topology import REQUEST_ID_FIELDS
from tools.harness import requests
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

    from tools.harness.deployment import Deployment

Events = list[dict[str, Any]]
_STREAM_PREFETCH = 100
_STREAM_PAUSE_S = 0.2


@dataclass
class Wire:
    """One connection, with every verified event since it was opened."""

    channel: AbstractChannel
    events: Events
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def publish(
        self, routing_key: str, body: bytes, headers: dict[str, Any], **properties: Any
    ) -> None:
        """Publish to the exchange; raises unless the message is confirmed and routed."""
        exchange = await self.channel.get_exchange("keyturn", ensure=False)
        message = aio_pika.Message(
            body,
            headers=headers,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            **properties,
        )
        await exchange.publish(message, routing_key, timeout=30)

    async def event(
        self, matches: Callable[[dict[str, Any]], bool], *, timeout_s: float = 60
    ) -> dict[str, Any]:
        """The first event that matches; waits for it."""
        known = 0
        async with asyncio.timeout(timeout_s), self._arrived:
            while True:
                for event in self.events[known:]:
                    if matches(event):
                        return event
                known = len(self.events)
                await self._arrived.wait()

    async def more(self, known: int) -> None:
        """Wait for more than `known` events."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.events) > known)

    async def outcome(self, request_id: str, *, timeout_s: float = 60) -> dict[str, Any]:
        """The first event of a request that is no progress: that may come before the answer."""

        def is_answer(event: dict[str, Any]) -> bool:
            return request_id in event.values() and event["type"] != "sweep.progressed"

        return await self.event(is_answer, timeout_s=timeout_s)

    async def take(self, queue: str, *, timeout_s: float = 60) -> AbstractIncomingMessage:
        """Take one message from a queue; waits for it."""
        source = await self.channel.get_queue(queue, ensure=False)
        async with asyncio.timeout(timeout_s):
            while True:
                message = await source.get(fail=False)
                if message is not None:
                    await message.ack()
                    return message
                await asyncio.sleep(0.05)

    async def consumed(self, queue: str, by: int, *, timeout_s: float = 60) -> None:
        """Wait until the queue has this many consumers: a worker logs its start earlier."""
        async with asyncio.timeout(timeout_s):
            while True:
                declared = await self.channel.declare_queue(queue, passive=True)
                if declared.declaration_result.consumer_count == by:
                    return
                await asyncio.sleep(0.05)

    async def depth(self, queue: str) -> int:
        """The number of ready messages in a queue."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def _follow(self, message: AbstractIncomingMessage, verify: VerifyKey, name: str) -> None:
        signature = str(message.headers.get("keyturn-signature"))
        try:
            events = verified_events(verify, name, message.body, signature)
        except SignatureError:
            return
        async with self._arrived:
            self.events += events
            self._arrived.notify_all()


@dataclass(frozen=True)
class SignedPublisher:
    """Publishes requests as the publisher `api`, and waits for what answers them."""

    deployment: Deployment
    wire: Wire

    async def publish(self, document: dict[str, Any]) -> str:
        """Sign and publish a request; returns its id."""
        body = requests.encode(document)
        signed = requests.headers(body, self.deployment.publisher_key)
        await self.wire.publish(document["type"], body, signed)
        return str(document[REQUEST_ID_FIELDS[document["type"]]])

    async def publish_and_wait(self, document: dict[str, Any]) -> dict[str, Any]:
        """Publish a request, and return the event that answers it."""
        return await self.wire.outcome(await self.publish(document))

    async def enroll(self, *projects: str) -> None:
        """Enroll projects with the deployment's API key.

        Raises:
            ServerError: one was refused.
        """
        made = [requests.enroll(self.deployment, project) for project in projects]
        for event in await asyncio.gather(*map(self.publish_and_wait, made)):
            if event["type"] != "project.enrolled":
                raise ServerError(f"not enrolled: {event}")

    async def upload(self, project: str, object_keys: list[str]) -> None:
        """Store small objects."""
        made = [requests.upload(self.deployment, project, key, b"x" * 100) for key in object_keys]
        await asyncio.gather(*(self.publish_and_wait(each.document) for each in made))


@asynccontextmanager
async def open_wire(deployment: Deployment) -> AsyncIterator[Wire]:
    """Connect and follow all verified events from now on; the topology must exist."""
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        wire = Wire(channel, [])
        follower = await connection.channel()
        await follower.set_qos(prefetch_count=500)
        queue = await follower.declare_queue(exclusive=True)
        for routing_key in (
            "project.*",
            "enroll.rejected",
            "upload.stored",
            "upload.rejected",
            "rotation.*",
            "sweep.*",
            "delete.rejected",
            "object.*",
        ):
            await queue.bind("keyturn", routing_key)
        verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)

        async def follow(message: AbstractIncomingMessage) -> None:
            await wire._follow(message, verify, deployment.name)

        await queue.consume(follow, no_ack=True)
        yield wire


async def consume_stream(
    connection: AbstractConnection,
    name: str,
    take: Callable[[AbstractIncomingMessage], Awaitable[None]],
) -> None:
    """Consume a stream from its beginning, once it is available.

    A restarted broker accepts connections before that.
    """
    while True:
        # One channel each: the broker closes the channel on an error.
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_STREAM_PREFETCH)
        try:
            stream = await channel.declare_queue(name, passive=True)
            await stream.consume(take, arguments={"x-stream-offset": "first"})
        except (ChannelNotFoundEntity, ChannelPreconditionFailed):
            # The stream's leader is down, or no replica runs yet.
            await asyncio.sleep(_STREAM_PAUSE_S)
        else:
            return


def documents_in(body: bytes) -> list[dict[str, Any]]:
    """The events that an unverified message claims to hold; none if it is no JSON object."""
    document: Any = None
    with suppress(ValueError):
        document = json.loads(body)
    if not isinstance(document, dict):
        return []
    if document.keys() == {"type", "events"}:
        return list(document["events"])
    return [document]


def verified_events(
    verify: VerifyKey, deployment: str, body: bytes, signature: str
) -> list[dict[str, Any]]:
    """The events of a message.

    Raises:
        SignatureError: the deployment did not sign it in its form.
    """
    events = documents_in(body)
    if events and json.loads(body) != events[0]:
        verify.verify_events(deployment, body, signature)
    else:
        verify.verify_event(deployment, body, signature)
    return events
