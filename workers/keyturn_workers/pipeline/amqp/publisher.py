"""Everything that a worker publishes: events, reports, retries, dead letters (SPEC 6.2, 6.7, 16).

Persistent, confirmed and mandatory: when a method returns, the broker has the message on disk.
Only reports are not mandatory, and have a channel of their own: they record no outcome, and a
broker that refuses or returns them must not keep an event from its stream.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import aiormq
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractRobustChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.exceptions import ChannelInvalidStateError
from faststream.exceptions import IncorrectState
from faststream.rabbit import RabbitBroker
from pamqp import commands

from keyturn.crypto.signatures import SigningKey
from keyturn.errors import BadSignatureError, CodedError
from keyturn.messages.codec import encode, encode_batch
from keyturn.messages.events import Event
from keyturn.messages.worker_reports import WorkerReported, encode_worker_report
from keyturn.publisher.connection import OnePublishPerId, normalize_connection_errors
from keyturn.topology import (
    ALL_DELAYS_S,
    EVENT_KEY_HEADER,
    EXCHANGE,
    PUBLISHER_HEADER,
    SIGNATURE_HEADER,
    STATUS_REPORTED,
    UNSIGNED_DEAD_QUEUE,
    WORKER_REPORTED,
    dead_letter_name,
    retry_name,
)
from keyturn_workers.pipeline.amqp.event_batches import EventBatches, NotConfirmedError
from keyturn_workers.pipeline.amqp.failures import Retry, RetryNotes, longest_delay_s
from keyturn_workers.process.message_copies import copy_of, dead_letter_of
from keyturn_workers.process.metrics import WAITING
from keyturn_workers.process.wall_clock import utc_now

_TIMEOUT_S: Final = 30
_REPORTS: Final = (STATUS_REPORTED, WORKER_REPORTED)


class OpenChannel:
    """The current aiormq channel of an aio-pika channel that reopens after a lost connection.

    `channel` is the channel that was opened last; None before the first.
    """

    def __init__(self) -> None:
        self.channel: aiormq.Channel | None = None

    async def follow(self, robust: AbstractChannel) -> None:
        """Note the channel below this one, now and each time that it reopens."""
        if not isinstance(robust, AbstractRobustChannel):
            raise TypeError("a channel that is not opened again after a lost connection")
        robust.reopen_callbacks.add(self._note)
        await self._note(robust)

    async def _note(self, robust: AbstractChannel | None) -> None:
        opened = None if robust is None else await robust.get_underlay_channel()
        self.channel = opened if isinstance(opened, aiormq.Channel) else None


class ConfirmedPublisher:
    """Publishes to one exchange, many messages at once, on a channel of its own.

    `Exchange.publish` of aio-pika holds its channel's lock until the socket has taken a message, so
    that messages are sent one after the other. aiormq's `basic_publish` with `wait=False` releases
    the lock as soon as a message is in its write queue, and also returns on the broker's
    confirmation.

    If `is_mandatory`, a message that no queue takes is an error.
    """

    def __init__(
        self, broker: RabbitBroker, exchange: str, *, timeout_s: float, is_mandatory: bool = True
    ) -> None:
        self._broker = broker
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._is_mandatory = is_mandatory
        self._opening = asyncio.Lock()
        self._opened = OpenChannel()
        self._is_open = False

    async def publish(
        self, routing_key: str, body: bytes, properties: commands.Basic.Properties
    ) -> None:
        """Publish; returns once the broker confirmed the message.

        `properties` gets a new message id.

        Raises:
            DeliveryError, PublishError: the broker refused the message, or no queue takes a
                mandatory one.
            ChannelInvalidStateError, AMQPConnectionError: the connection is lost.
            TimeoutError: the broker did not confirm in time.
        """
        if not self._is_open:
            await self._open()
        channel = self._opened.channel
        if channel is None or channel.is_closed:
            # aio-pika reopens it; waiting for that would delay the redelivery.
            raise ChannelInvalidStateError("the channel of events is closed")
        await channel.basic_publish(
            body,
            exchange=self._exchange,
            routing_key=routing_key,
            properties=properties,
            mandatory=self._is_mandatory,
            timeout=self._timeout_s,
            wait=False,
        )

    async def _open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            connection = await self._broker.connect()
            await self._opened.follow(await connection.channel(on_return_raises=True))
            self._is_open = True


class WorkerPublisher:
    """Publishes on a worker's behalf.

    Every method raises `NotConfirmedError` if the broker did not confirm. Then the caller must not
    acknowledge the delivery.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._broker = broker
        self._deployment = deployment
        self._event_key = event_keys[0]
        self._event_key_id = self._event_key.id
        self._notes = RetryNotes(deployment, event_keys)
        self._now = now
        self._events = ConfirmedPublisher(broker, EXCHANGE, timeout_s=_TIMEOUT_S)
        self._reports = ConfirmedPublisher(
            broker, EXCHANGE, timeout_s=_TIMEOUT_S, is_mandatory=False
        )
        self._batches = EventBatches(self._publish_events)
        self._one_per_id = OnePublishPerId()

    async def publish_event(self, event: Event, *, traceparent: str = "") -> None:
        """Publish a signed event, alone or with others of its type and publisher.

        A header makes the broker route it into its publisher's stream. Readers trust only the
        signed body (SPEC 6.8). `traceparent` links it to a trace (SPEC 6.11).
        """
        body = encode(event, traceparent=traceparent)
        if event.publisher is None or event.type == STATUS_REPORTED:
            await self._publish_events(event.type, event.publisher, (body,))
        else:
            await self._batches.publish(event.type, event.publisher, body)

    async def _publish_events(
        self, event_type: str, publisher: str | None, bodies: Sequence[bytes]
    ) -> None:
        if len(bodies) == 1:
            body = bodies[0]
            signature = self._event_key.sign_event(self._deployment, body)
        else:
            body = encode_batch(event_type, bodies)
            signature = self._event_key.sign_events(self._deployment, body)
        more = {} if publisher is None else {PUBLISHER_HEADER: publisher}
        await self._publish(event_type, body, signature, more)

    async def publish_worker_report(self, report: WorkerReported) -> None:
        """Publish a worker's report about itself, signed like an event (SPEC 16.2)."""
        body = encode_worker_report(report)
        signature = self._event_key.sign_event(self._deployment, body)
        await self._publish(report.type, body, signature, {})

    async def _publish(
        self, routing_key: str, body: bytes, signature: str, more: dict[str, str]
    ) -> None:
        headers: dict[str, Any] = {
            SIGNATURE_HEADER: signature,
            EVENT_KEY_HEADER: self._event_key_id,
            **more,
        }
        properties = commands.Basic.Properties(
            content_type="application/json",
            headers=headers,
            delivery_mode=DeliveryMode.PERSISTENT,
        )
        publisher = self._reports if routing_key in _REPORTS else self._events
        with confirmed():
            await publisher.publish(routing_key, body, properties)

    def retry_of(
        self, message: AbstractIncomingMessage, queue: str, publisher: str = ""
    ) -> Retry | None:
        """The note of the retry that a worker of this deployment scheduled, if any."""
        return self._notes.read(queue, publisher, message.body, message.headers)

    async def schedule_retry(
        self,
        message: AbstractIncomingMessage,
        queue: str,
        error: CodedError,
        attempt: int,
        delay_s: int,
        *,
        publisher: str = "",
    ) -> None:
        """Redeliver the message after `delay_s` seconds, as one more attempt.

        `attempt` is how often the message met the error before. `publisher` signed it, and is empty
        for the workers' own messages.
        """
        retry = Retry(error.code, attempt + 1, self._time_in(delay_s))
        await self._retry(message, queue, publisher, retry, delay_s)

    async def defer(
        self, message: AbstractIncomingMessage, queue: str, wait_s: float, *, publisher: str = ""
    ) -> None:
        """Redeliver the message after about `wait_s` seconds without counting an attempt."""
        delay_s = longest_delay_s(wait_s) or min(ALL_DELAYS_S)
        await self._retry(
            message, queue, publisher, Retry(WAITING, 1, self._time_in(delay_s)), delay_s
        )

    async def put_back(
        self, message: AbstractIncomingMessage, queue: str, retry: Retry, *, publisher: str = ""
    ) -> None:
        """Let a message that came too early keep waiting, with the same note."""
        delay_s = longest_delay_s(retry.early_s(self._now())) or min(ALL_DELAYS_S)
        await self._retry(message, queue, publisher, retry, delay_s)

    async def _retry(
        self,
        message: AbstractIncomingMessage,
        queue: str,
        publisher: str,
        retry: Retry,
        delay_s: int,
    ) -> None:
        headers = self._notes.headers(queue, publisher, message.body, retry)
        await self._to_queue(copy_of(message, headers), retry_name(queue, delay_s))

    def _time_in(self, delay_s: int) -> datetime:
        return self._now() + timedelta(seconds=delay_s)

    async def dead_letter(
        self, message: AbstractIncomingMessage, queue: str, error: CodedError
    ) -> None:
        """Copy the message to the dead letters, with the code and the time in headers.

        Unsigned messages have a separate queue: a flood of them displaces nothing signed.
        """
        letter = dead_letter_of(message, error, self._now())
        await self._to_queue(letter, self.dead_queue(queue, error))

    @staticmethod
    def dead_queue(queue: str, error: CodedError) -> str:
        """The dead-letter queue for a message that met this error."""
        unsigned = isinstance(error, BadSignatureError)
        return UNSIGNED_DEAD_QUEUE if unsigned else dead_letter_name(queue)

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        """Publish one of the workers' own messages to a queue, now or after `delay_s` seconds.

        `delay_s` is 0 or one of `keyturn.topology.ALL_DELAYS_S`.
        """
        message = Message(
            body,
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
        )
        await self._to_queue(message, retry_name(queue, delay_s) if delay_s else queue)

    async def _to_queue(self, message: Message, queue: str) -> None:
        with confirmed():
            async with self._one_per_id.turn(message.message_id, _TIMEOUT_S):
                await self._broker.publish(message, queue, timeout=_TIMEOUT_S)


@contextmanager
def confirmed() -> Iterator[None]:
    """Turn the client library's many errors for a lost broker into `NotConfirmedError`."""
    try:
        with normalize_connection_errors():
            yield
    except (TimeoutError, IncorrectState, *CONNECTION_EXCEPTIONS) as exc:
        raise NotConfirmedError(type(exc).__name__) from exc
