"""A publisher's keys, a small worker's side to look at what arrives, and a broken network."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import aio_pika
from yarl import URL

from keyturn import topology
from keyturn.crypto import (
    IntakeKey,
    SigningKey,
    VerifyKey,
    from_base64,
    kek_info,
    open_sealed,
    transport_context,
    upload_info,
)
from keyturn.identifiers import format_time
from keyturn.messages import (
    EnrollRequested,
    Event,
    RequestOrigin,
    UploadRequested,
    UploadStored,
    encode,
    parse_request,
    request_id,
    with_origin,
)
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn_workers.pipeline.upload.sessions import OpenedSessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

    from keyturn.publisher import Publisher

INTAKE = IntakeKey.from_seed(bytes(32))
PUBLISHER = SigningKey.from_seed(b"p" * 32)
EVENTS = SigningKey.from_seed(b"e" * 32)
NAME = "billing"
OWN_STREAM = topology.publisher_stream(NAME)


def settings_for(amqp_url: str) -> PublisherSettings:
    """What the publisher `billing` of the deployment `test` would read."""
    return PublisherSettings(
        deployment="test",
        amqp_url=amqp_url,
        publisher_name=NAME,
        publisher_key=PUBLISHER,
        intake_public_key=NamedIntakeKey("main", INTAKE.public_key),
        event_public_key=VerifyKey.from_bytes(EVENTS.public_bytes),
        pepper="pepper",
    )


_Answer = TypeVar("_Answer", bound=Any)


def answer(publisher: Publisher, event: _Answer) -> _Answer:
    """The event as the answer to the newest try of its request that was sent there."""
    matcher = publisher._waiter._sent[request_id(event)].newest.matcher
    assert matcher.digest is not None
    return with_origin(event, RequestOrigin(NAME, matcher.digest))


def answer_message(message: AbstractIncomingMessage, event: _Answer) -> _Answer:
    """The event as the answer to the request in this message."""
    return with_origin(event, RequestOrigin.of(NAME, message.body))


def answer_elsewhere(event: _Answer, *, publisher: str = NAME) -> _Answer:
    """The event as the answer to a request that another process sent."""
    return with_origin(event, RequestOrigin(publisher, "0" * 64))


class WorkerSide:
    """Declares the topology, receives requests and publishes events as a worker would."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.exchange: AbstractExchange

    async def declare(self) -> None:
        """Exchange, queues and bindings, in the order that SPEC 6.2 requires."""
        kind = aio_pika.ExchangeType.TOPIC
        self.exchange = await self._channel.declare_exchange(topology.EXCHANGE, kind, durable=True)
        await self.declare_publisher_stream(NAME)
        for queue in topology.queues():
            declared = await self._channel.declare_queue(
                queue.name, durable=True, arguments=dict(queue.arguments)
            )
            for key in queue.bindings:
                await declared.bind(self.exchange, key)

    async def declare_publisher_stream(self, publisher: str) -> None:
        """A publisher's own stream, fed by the broker (SPEC 6.8)."""
        kind = aio_pika.ExchangeType.HEADERS
        by_publisher = await self._channel.declare_exchange(
            topology.PUBLISHER_EVENTS_EXCHANGE, kind, durable=True, internal=True
        )
        for event in topology.PUBLISHER_EVENTS:
            await by_publisher.bind(self.exchange, event)
        stream: Any = {"x-queue-type": "stream"}
        declared = await self._channel.declare_queue(
            topology.publisher_stream(publisher), durable=True, arguments=stream
        )
        match: Any = {"x-match": "all", topology.PUBLISHER_HEADER: publisher}
        await declared.bind(by_publisher, arguments=match)

    async def take(self, queue: str = topology.UPLOAD_QUEUE) -> AbstractIncomingMessage:
        """The next message of a queue; publishers have confirmed it, so it is there."""
        found = await (await self._channel.get_queue(queue)).get(no_ack=False)
        await found.ack()
        return found

    async def next(self, queue: str) -> AbstractIncomingMessage:
        """The next message of a queue, waited for."""
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        handle = await self._channel.get_queue(queue)
        tag = await handle.consume(arrived.put)
        message = await asyncio.wait_for(arrived.get(), timeout=60)
        await message.ack()
        await handle.cancel(tag)
        while not arrived.empty():  # what came along stays on the queue
            await arrived.get_nowait().nack(requeue=True)
        return message

    async def count(self, queue: str = topology.UPLOAD_QUEUE) -> int:
        """How many messages are left in a queue, by taking them all."""
        handle, count = await self._channel.get_queue(queue), 0
        while await handle.get(no_ack=True, fail=False) is not None:
            count += 1
        return count

    async def delete(self, queue: str) -> None:
        """Delete a queue, as if no worker had declared it."""
        await self._channel.queue_delete(queue)

    async def full_queue(self, name: str, binding: str) -> None:
        """A queue that refuses whatever is published to it."""
        arguments: Any = {"x-max-length": 0, "x-overflow": "reject-publish"}
        queue = await self._channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(self.exchange, binding)

    async def publish(
        self, event: Event, *, key: SigningKey = EVENTS, deployment: str = "test"
    ) -> None:
        """Publish an event, signed with this key for this deployment."""
        body = encode(event)
        await self.publish_raw(
            event.type, body, key.sign_event(deployment, body), event.publisher, key.id
        )

    async def publish_raw(
        self,
        routing_key: str,
        body: bytes,
        signature: str | None,
        publisher: str | None = NAME,
        key_id: str | None = None,
    ) -> None:
        """Publish any bytes as an event."""
        named = {
            topology.SIGNATURE_HEADER: signature,
            topology.PUBLISHER_HEADER: publisher,
            topology.EVENT_KEY_HEADER: key_id,
        }
        headers: Any = {name: value for name, value in named.items() if value}
        message = aio_pika.Message(body, headers=headers)
        await self.exchange.publish(message, routing_key)


@asynccontextmanager
async def worker_side(url: str, *, declare: bool = True) -> AsyncIterator[WorkerSide]:
    """A worker's side on a separate connection."""
    async with await aio_pika.connect(url) as connection:
        worker = WorkerSide(await connection.channel())
        if declare:
            await worker.declare()
        yield worker


def stored(upload_id: str, *, key: str = "a", size: int = 1) -> UploadStored:
    """The event of an upload that went well."""
    now = format_time(datetime.now(UTC))
    return UploadStored(
        upload_id=upload_id, project="acme", key=key, size=size, generation=1, at=now
    )


def verified(message: AbstractIncomingMessage) -> Any:
    """The request in a message, after the checks of SPEC 6.3."""
    assert message.content_type == "application/json"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert set(message.headers) == {topology.PUBLISHER_HEADER, topology.SIGNATURE_HEADER}
    publisher = str(message.headers[topology.PUBLISHER_HEADER])
    signature = str(message.headers[topology.SIGNATURE_HEADER])
    assert publisher == NAME
    key = VerifyKey.from_bytes(PUBLISHER.public_bytes)
    key.verify_request("test", publisher, message.body, signature)
    request = parse_request(message.body)
    assert message.routing_key == request.type
    return request


def transport_key(request: UploadRequested) -> bytes:
    """The transport key, opened as a worker would."""
    assert request.sealed_key is not None
    assert request.sealed_key.intake_key == "main"
    info = upload_info(request.upload_id, request.project, request.key)
    return OpenedSessions("test", {"main": INTAKE}).open_key(request.sealed_key, info, NAME)


def opened_body(request: UploadRequested, sealed: bytes) -> bytes:
    """The plaintext of an upload's body, inline or staged."""
    return open_sealed(transport_key(request), transport_context(request.upload_id), sealed)


def opened_kek(request: EnrollRequested, purpose: Any, ciphertext: str) -> bytes:
    """A KEK in an enrollment, opened as a worker would."""
    info = kek_info(purpose, request.request_id, request.project)
    return INTAKE.open(from_base64(ciphertext), info)


class Network:
    """A relay between publisher and broker that can go silent and be cut."""

    def __init__(self, url: str) -> None:
        self._broker = URL(url)
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self.waiting = asyncio.Event()
        """Set when the broker has said something that a silent network holds back."""

    async def start(self) -> str:
        """Listen; return the address that leads through here."""
        self._server = await asyncio.start_server(self._relay_both, "127.0.0.1", 0)
        return str(self._broker.with_port(self._server.sockets[0].getsockname()[1]))

    async def close(self) -> None:
        """End it."""
        self._server.close()
        self.cut()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def silence(self) -> None:
        """From now on nothing that the broker says comes through."""
        self.waiting.clear()
        self._passing.clear()

    def cut(self) -> None:
        """Break every connection; new ones work, unless the network is silent."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def restore(self) -> None:
        """Let everything through again."""
        self._passing.set()

    async def _relay_both(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        assert self._broker.host is not None
        out_reader, out_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        self._writers |= {writer, out_writer}
        await asyncio.gather(
            self._relay(reader, out_writer, back=False), self._relay(out_reader, writer, back=True)
        )

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if back and not self._passing.is_set():
                    self.waiting.set()
                    await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
