"""What a worker publishes, as spans of kind PRODUCER (SPEC 6.2, 6.7, 6.11).

Events and a sweep's own messages carry the context of the span that sent them. A copy in a retry
or dead-letter queue keeps the header as it was sent.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

from aio_pika.abc import AbstractIncomingMessage
from faststream.rabbit import RabbitBroker
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from keyturn.crypto import SigningKey
from keyturn.errors import CodedError
from keyturn.messages import Event, request_id
from keyturn.topology import EXCHANGE, TRACEPARENT_HEADER, retry_name
from keyturn.tracing import traceparent_of
from keyturn_workers.amqp.failures import Retry, utc_now
from keyturn_workers.amqp.publisher import WorkerPublisher
from keyturn_workers.tracing.scope import Value, current_scope


class TracedWorkerPublisher(WorkerPublisher):
    """Publishes on a worker's behalf; in a recorded trace, each message is a span.

    Args:
        broker, deployment, event_keys, now: As of `WorkerPublisher`.
        server: Where the broker is, as attributes.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime] = utc_now,
        *,
        server: Mapping[str, Value],
    ) -> None:
        super().__init__(broker, deployment, event_keys, now)
        self._server = server

    def publish_event(self, event: Event) -> Coroutine[Any, Any, None]:
        """See `WorkerPublisher.publish_event`."""
        # Not `async`: an extra coroutine would slow down each event that is not recorded.
        publishing = super().publish_event(event)
        return publishing if current_scope() is None else self._recorded(event, publishing)

    async def _recorded(self, event: Event, publishing: Coroutine[Any, Any, None]) -> None:
        with self._sending(f"{EXCHANGE}:{event.type}", event.type, request_id(event)):
            await publishing

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        """See `WorkerPublisher.send`."""
        target = retry_name(queue, delay_s) if delay_s else queue
        with self._sending(target, target):
            await super().send(body, queue, delay_s)

    async def dead_letter(
        self, message: AbstractIncomingMessage, queue: str, error: CodedError
    ) -> None:
        """See `WorkerPublisher.dead_letter`."""
        target = self.dead_queue(queue, error)
        with self._sending(target, target):
            await super().dead_letter(message, queue, error)

    async def _retry(
        self,
        message: AbstractIncomingMessage,
        queue: str,
        publisher: str,
        retry: Retry,
        delay_s: int,
    ) -> None:
        target = retry_name(queue, delay_s)
        with self._sending(target, target):
            await super()._retry(message, queue, publisher, retry, delay_s)

    def _trace_headers(self) -> dict[str, Any]:
        scope = current_scope()
        if scope is None:
            return {}
        span = trace.get_current_span(scope.context())
        return {TRACEPARENT_HEADER: traceparent_of(span)} if span.is_recording() else {}

    def _sending(
        self, destination: str, routing_key: str, conversation_id: str | None = None
    ) -> AbstractContextManager[object]:
        scope = current_scope()
        if scope is None:
            return nullcontext()
        attributes: dict[str, Value] = {
            **self._server,
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": routing_key,
        }
        if conversation_id is not None:
            attributes["messaging.message.conversation_id"] = conversation_id
        return scope.span(f"send {destination}", SpanKind.PRODUCER, attributes)
