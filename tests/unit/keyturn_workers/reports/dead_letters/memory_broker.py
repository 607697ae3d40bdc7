"""Dead letters, and queues in memory with channels on which they are browsed and published."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError

from keyturn_workers.reports.dead_letters.queue import Letters
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika import Message
    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue


_S3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
DEPLOYMENT = Deployment("amqp://localhost/", _S3, "bucket")
LONG_AGO = "2026-01-01T00:00:00.000000Z"


@dataclass
class Letter:
    """A message on a dead-letter queue, and whether it was acknowledged."""

    body: bytes
    headers: dict[str, Any]
    message_id: str | None = None
    acknowledged: bool = False
    content_type: str = "application/json"
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    timestamp: Any = None
    type: str | None = None
    app_id: str | None = None
    user_id: str | None = None
    expiration: float | None = None
    delivery_tag: int | None = None
    channel: Any = None

    @property
    def message(self) -> AbstractIncomingMessage:
        """The letter as aio-pika hands it out."""
        return cast("AbstractIncomingMessage", self)

    @property
    def processed(self) -> bool:
        """Whether it was acknowledged."""
        return self.acknowledged

    async def ack(self) -> None:
        if self.channel is None:
            self.acknowledged = True
        else:
            await self.channel.basic_ack(self.delivery_tag)


def letter(document: dict[str, Any], code: str = "request_expired", **headers: Any) -> Letter:
    """A request that publisher `api` signed, as a worker puts it on a dead-letter queue."""
    body = requests.encode(document)
    signed = requests.headers(body, DEPLOYMENT.publisher_key)
    worker = {"keyturn-code": code, "keyturn-detail": "too long ago"}
    request_id = next(
        document[name]
        for name in ("upload_id", "rotation_id", "sweep_id", "request_id")
        if name in document
    )
    return Letter(body, {**signed, **worker, "own": "kept", **headers}, request_id)


def upload(**changes: Any) -> dict[str, Any]:
    """An upload of the example project that has expired."""
    made = requests.upload(DEPLOYMENT, "acme", "k", b"hello")
    return made.document | {"requested_at": LONG_AGO} | changes


@dataclass
class MemoryBroker:
    """Holds letters by queue.

    Attributes:
        queues: The letters that no consumer has, oldest first.
        sent: Copies that were published, with their queues.
        refuses: Message ids that are returned to their publisher.
        on_publish: Called before a copy is accepted.
        on_ack: Called before an acknowledgment.
        delays: Whether a confirmation takes a moment.
        most_in_flight: How many copies with one id were in flight at once.
    """

    queues: dict[str, deque[Letter]] = field(default_factory=dict)
    sent: list[tuple[str, Message]] = field(default_factory=list)
    refuses: set[str | None] = field(default_factory=set)
    on_publish: Callable[[], None] = lambda: None
    on_ack: Callable[[], None] = lambda: None
    delays: bool = False
    in_flight: Counter[str | None] = field(default_factory=Counter)
    most_in_flight: dict[str | None, int] = field(default_factory=dict)

    def fill(self, queue: str, *letters: Letter) -> None:
        """Put letters into a queue, which is declared by it."""
        self.queues.setdefault(queue, deque()).extend(letters)

    def channel(self) -> AbstractChannel:
        """A new channel."""
        return cast("AbstractChannel", MemoryChannel(self))

    def letters(self) -> Letters:
        """The letters, read over a new channel."""
        return Letters("amqp://broker", self.channel())


@dataclass
class MemoryChannel:
    """A channel; also its own exchange and its own underlay."""

    broker: MemoryBroker
    prefetch: int = 0
    is_closed: bool = False
    unacknowledged: dict[int, tuple[str, Letter]] = field(default_factory=dict)
    close_callbacks: set[Any] = field(default_factory=set)
    tags: int = 0
    consumers: dict[str, str] = field(default_factory=lambda: defaultdict(str))

    @property
    def default_exchange(self) -> MemoryChannel:
        return self

    async def get_underlay_channel(self) -> MemoryChannel:
        return self

    async def set_qos(self, count: int) -> None:
        self.prefetch = count

    async def declare_queue(self, name: str, *, passive: bool) -> AbstractQueue:
        assert passive
        if name not in self.broker.queues:
            raise ChannelNotFoundEntity(name)
        return cast("AbstractQueue", MemoryQueue(self, name))

    async def publish(self, message: Message, routing_key: str, **options: Any) -> None:
        assert options["mandatory"]
        name = message.message_id
        self.broker.in_flight[name] += 1
        most = self.broker.most_in_flight
        most[name] = max(most.get(name, 0), self.broker.in_flight[name])
        if self.broker.delays:
            await asyncio.sleep(0)
        self.broker.in_flight[name] -= 1
        self.broker.on_publish()
        if message.message_id in self.broker.refuses:
            raise DeliveryError(None, None)  # type: ignore[arg-type]
        self.broker.sent.append((routing_key, message))

    async def basic_nack(self, tag: int, *, multiple: bool, requeue: bool) -> None:
        assert (tag, multiple, requeue) == (0, True, True)
        for name, letter in self.unacknowledged.values():
            self.broker.queues[name].append(letter)
        self.unacknowledged.clear()

    async def basic_ack(self, tag: int) -> None:
        self.broker.on_ack()
        _, letter = self.unacknowledged.pop(tag)
        letter.acknowledged = True

    async def close(self) -> None:
        self.is_closed = True
        for name, letter in reversed(self.unacknowledged.values()):
            self.broker.queues[name].appendleft(letter)
        self.unacknowledged.clear()


@dataclass
class MemoryQueue:
    """A queue as a channel sees it."""

    channel: MemoryChannel
    name: str

    @property
    def declaration_result(self) -> Any:
        return SimpleNamespace(message_count=len(self.channel.broker.queues[self.name]))

    async def consume(
        self, callback: Callable[[Any], Awaitable[None]], *, consumer_tag: str
    ) -> str:
        letters = self.channel.broker.queues[self.name]
        for _ in range(min(self.channel.prefetch, len(letters))):
            letter = letters.popleft()
            self.channel.tags += 1
            self.channel.unacknowledged[self.channel.tags] = (self.name, letter)
            letter.delivery_tag = self.channel.tags
            letter.channel = self.channel
            await callback(letter)
        return consumer_tag

    async def cancel(self, consumer_tag: str) -> None:
        assert consumer_tag
