"""The queues: at least once, out of order, and again if a worker was lost."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import ChannelInvalidStateError

from keyturn.errors import StorageUnavailableError
from keyturn.messages import Event, encode
from keyturn.topology import DELIVERY_LIMIT, STATUS_REPORTED, WORKER_HEADERS
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.failures import Retry, RetryNotes, longest_delay_s
from tests.protocol.waiters import EVENT_KEY, signed
from tests.protocol.wire import CURRENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn.errors import CodedError
    from tests.protocol.channels import Channel
    from tests.protocol.process import Process


class QueuedMessage:
    """A message in a queue; `copies` of it wait for the next attempt."""

    def __init__(
        self,
        queue: str,
        body: bytes,
        headers: dict[str, Any] | None = None,
        *,
        routing_key: str = "",
        ready_at: float = 0.0,
    ) -> None:
        self.queue = queue
        self.body = body
        self.headers = headers or {}
        self.routing_key = routing_key
        self.ready_at = ready_at
        self.redelivered = False
        # How often it came back to its queue. A copy begins anew.
        self.returns = 0
        self.acknowledged = False
        self.copies: list[QueuedMessage] = []

    @property
    def settled(self) -> bool:
        """Whether it is acknowledged, and no copy of it is still to be served."""
        return self.acknowledged and all(copy.settled for copy in self.copies)

    def copy(self, ready_at: float, more: dict[str, Any]) -> QueuedMessage:
        """As it comes back from a retry queue: under its queue's own name."""
        kept = {k: v for k, v in self.headers.items() if k not in WORKER_HEADERS}
        headers = {**kept, **more}
        return QueuedMessage(
            self.queue, self.body, headers, routing_key=self.queue, ready_at=ready_at
        )

    def __repr__(self) -> str:
        return f"<{self.queue} {self.body[:120]!r}>"


class Delivery:
    """One delivery of a message to a process, as aio-pika would show it."""

    def __init__(self, queued: QueuedMessage, process: Process, channel: Channel[Delivery]) -> None:
        self.queued = queued
        self.process = process
        self.began_s = process.world.clock.seconds
        self.body = queued.body
        self.headers = dict(queued.headers)
        if queued.redelivered:
            self.headers["x-delivery-count"] = queued.returns
        self.redelivered = queued.redelivered
        self.routing_key = queued.routing_key
        self.message_id = ""
        self.lost = False
        self.task: asyncio.Task[None] | None = None
        # Of each project, the first state of its keyring that may be used for this message.
        world = process.world
        self.known = world.oracle.marks.known(process, world.clock.seconds)
        self._channel = channel
        self.delivery_tag = channel.deliver(self)

    @property
    def channel(self) -> Channel[Delivery]:
        """As aio-pika's: not one that is known to be closed."""
        if self._channel.is_closed:
            raise ChannelInvalidStateError
        return self._channel

    @property
    def is_served(self) -> bool:
        """Whether its handler has ended."""
        return self.task is not None and self.task.done()

    @property
    def is_unacked(self) -> bool:
        """Whether the broker waits for its acknowledgment."""
        return self.delivery_tag in self._channel.unacked

    def acknowledged(self) -> None:
        """The broker forgets the message."""
        self.queued.acknowledged = True
        self.process.world.acknowledged(self)

    def returned(self) -> None:
        """The broker puts the message back into its queue, or makes it a dead letter."""
        self.lost = True
        if not self.queued.acknowledged:
            self.queued.redelivered = True
            self.queued.returns += 1
            if self.queued.returns > DELIVERY_LIMIT:
                self.queued.acknowledged = True  # no worker sees it, and no event says so
            else:
                self.process.world.queue.append(self.queued)


class WorkerPublisher:
    """What a worker publishes, in memory: `amqp.WorkerPublisher` and `sweep.Sender`.

    Events go through the workers' own `EventBatches`.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._notes = RetryNotes("test", [EVENT_KEY])
        options = self._world.options
        self.batches = self._world.parts.batches(self._publish_events, hold_s=options.hold_s)
        # Of each body that is not sent yet: its events, and the deliveries that they are of.
        self._made: dict[bytes, deque[tuple[Event, Delivery | None]]] = defaultdict(deque)

    async def _publish(self, op: str, effect: Callable[[], None]) -> None:
        if self._process.wire.dead:
            raise asyncio.CancelledError

        async def confirmed() -> None:
            if self._world.clock.seconds < self._world.nothing_confirmed_until:
                raise StorageUnavailableError("the broker is at its alarm")
            effect()

        ask: Callable[..., Awaitable[Any]] = self._world.network.ask
        try:
            await ask(self._process, op, "", confirmed)
        except StorageUnavailableError as exc:
            raise NotConfirmedError("ConnectionError") from exc

    async def publish_event(self, event: Event) -> None:
        body = encode(event)
        self._made[body].append((event, CURRENT.get()))
        if event.publisher is None or event.type == STATUS_REPORTED:
            await self._publish_events(event.type, event.publisher or "", (body,))
        else:
            await self.batches.publish(event.type, event.publisher, body)

    async def _publish_events(
        self, event_type: str, publisher: str, bodies: tuple[bytes, ...]
    ) -> None:
        del publisher
        made = [self._made[body].popleft() for body in bodies if self._made[body]]
        record = signed(event_type, bodies)
        effect = lambda: self._world.events_published(made, record)  # noqa: E731
        await self._publish(f"publish {event_type}", effect)

    async def publish_record(self, audit_id: str, body: bytes) -> None:
        del audit_id
        await self._publish("publish audit.recorded", lambda: self._world.recorded(body))

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        queued = QueuedMessage(queue, body, routing_key=queue)
        await self._publish(f"send {queue}", lambda: self._put(queued, delay_s))

    def retry_of(self, message: Delivery, queue: str, publisher: str = "") -> Retry | None:
        return self._notes.read(queue, publisher, message.body, message.headers)

    async def schedule_retry(
        self,
        message: Delivery,
        queue: str,
        error: CodedError,
        attempt: int,
        delay_s: int,
        *,
        publisher: str = "",
    ) -> None:
        if error.detail.startswith("internal failure"):
            self._world.oracle.violated(error.detail)
        self._world.retries[error.code] += 1
        project = str(json.loads(message.body)["project"])
        self._world.oracle.marks.put_off(error, project)
        self._world.oracle.erasures.put_off(error, project, self._world.clock.seconds)
        await self._retry(message, queue, publisher, error.code, attempt + 1, delay_s)

    async def defer(
        self, message: Delivery, queue: str, wait_s: float, *, publisher: str = ""
    ) -> None:
        await self._retry(message, queue, publisher, "waiting", 1, longest_delay_s(wait_s) or 1)

    async def put_back(
        self, message: Delivery, queue: str, retry: Retry, *, publisher: str = ""
    ) -> None:
        delay_s = longest_delay_s(retry.early_s(self._process.keyrings.clock.now())) or 1
        headers = self._notes.headers(queue, publisher, message.body, retry)
        await self._publish("put back", lambda: self._copy(message, delay_s, headers))

    async def _retry(
        self,
        message: Delivery,
        queue: str,
        publisher: str,
        code: str,
        attempt: int,
        delay_s: int,
    ) -> None:
        retry = Retry(
            code, attempt, self._process.keyrings.clock.now() + timedelta(seconds=delay_s)
        )
        headers = self._notes.headers(queue, publisher, message.body, retry)
        await self._publish("put off", lambda: self._copy(message, delay_s, headers))

    async def dead_letter(self, message: Delivery, queue: str, error: CodedError) -> None:
        del queue
        queued = message.queued
        await self._publish("dead letter", lambda: self._world.dead.append((queued, error)))

    def _copy(self, message: Delivery, delay_s: int, headers: dict[str, Any]) -> None:
        copy = message.queued.copy(0, headers)
        message.queued.copies.append(copy)
        self._put(copy, delay_s)

    def _put(self, queued: QueuedMessage, delay_s: int) -> None:
        queued.ready_at = self._world.clock.seconds + delay_s
        self._world.put(queued)
