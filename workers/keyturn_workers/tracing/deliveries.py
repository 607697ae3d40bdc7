"""One trace for each delivery of a message (SPEC 6.2, 6.11).

Its root is a span of kind CONSUMER without a parent. The trace context in the message's header is
unsigned, so it becomes a link.
"""

import re
from collections.abc import Awaitable, Mapping
from typing import Final

from aio_pika.abc import AbstractIncomingMessage
from opentelemetry.trace import SpanKind

from keyturn.topology import EXCHANGE, REQUESTS, TRACEPARENT_HEADER
from keyturn.trace_context import TraceContext
from keyturn.tracing import link_to
from keyturn_workers.amqp.consumer import Handle
from keyturn_workers.tracing.sampling import RootSampling
from keyturn_workers.tracing.scope import Scope, Value, recorded

# An unsigned message may have any id; that of a request is a UUID.
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OTHER: Final = "other"


class TracedHandle:
    """Hands each delivery on to its handler, in a trace of its own if that is sampled.

    Args:
        queue: The queue's name.
        handle: Handles the deliveries.
        sampling: Begins the traces.
        server: Where the broker is, as attributes.
    """

    def __init__(
        self, queue: str, handle: Handle, sampling: RootSampling, server: Mapping[str, Value]
    ) -> None:
        self._queue = queue
        self._handle = handle
        self._sampling = sampling
        self._destinations = {
            queue: queue,  # by the default exchange: retries, replays, a sweep's own messages
            **{key: f"{EXCHANGE}:{key}:{queue}" for key in REQUESTS},
        }
        self._other = f"{EXCHANGE}:{_OTHER}:{queue}"
        self._attributes: dict[str, Value] = {
            **server,
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
        }

    def __call__(self, message: AbstractIncomingMessage) -> Awaitable[None]:
        """Handle one delivery."""
        # Not `async`: an extra coroutine would slow down each delivery that is not recorded.
        trace_id = self._sampling.choose()
        return self._handle(message) if trace_id is None else self._recorded(message, trace_id)

    async def _recorded(self, message: AbstractIncomingMessage, trace_id: int) -> None:
        destination = self._destinations.get(message.routing_key or "", self._other)
        root = self._sampling.begin(trace_id, f"process {destination}", SpanKind.CONSUMER)
        with recorded(self._sampling.tracer, root) as scope:
            self._describe(scope, message, destination)
            await self._handle(message)

    def _describe(self, scope: Scope, message: AbstractIncomingMessage, destination: str) -> None:
        root = scope.root
        if (sender := TraceContext.parse(message.headers.get(TRACEPARENT_HEADER))) is not None:
            link = link_to(sender)
            root.add_link(link.context, link.attributes)
        known = destination != self._other
        root.set_attributes(
            {
                **self._attributes,
                "messaging.destination.name": destination,
                "messaging.rabbitmq.destination.routing_key": (
                    (message.routing_key or "") if known else _OTHER
                ),
                "messaging.message.body.size": len(message.body),
                "keyturn.redelivered": bool(message.redelivered),
                # Until the consumer says otherwise.
                "keyturn.outcome": "returned",
            }
        )
        if message.delivery_tag is not None:
            root.set_attribute("messaging.rabbitmq.message.delivery_tag", message.delivery_tag)
        if message.message_id is not None and _UUID.fullmatch(message.message_id):
            root.set_attribute("messaging.message.id", message.message_id)
