"""A queue as FastStream sees it: its codec, its middlewares and its handler (SPEC 6.2).

A delivery passes through these parts, in this order:

1. `QueueConsumer`'s middleware acknowledges it if it ends without an error, or else gives it back.
2. The middlewares of the route: tracing, if it is on; `Settlement`; for requests, `ExpiryCheck`.
3. The codec, which is asked once for each attempt: it verifies the signature over the raw bytes
   before it parses anything, and returns a `Job`.
4. The handler, which takes the job, does what it requests, and returns the events.

FastStream publishes nothing itself. An event must be confirmed before its request is acknowledged,
and events of about the same time are confirmed together (`event_batches`).
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from faststream import AckPolicy, BaseMiddleware, ContextRepo
from faststream.message import StreamMessage, encode_message
from faststream.rabbit import Channel, QueueType, RabbitQueue, RabbitRouter

Serve = Callable[[Any], Awaitable[Any]]
"""A handler of jobs."""
CallNext = Callable[[StreamMessage[Any]], Awaitable[Any]]
"""The next middleware of a delivery, or its handler."""


class NewMiddleware(Protocol):
    """Makes the middleware of one delivery."""

    def __call__(self, message: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
        """Make a middleware."""
        ...


class Codec(ABC):
    """Reads the messages of a queue."""

    @abstractmethod
    async def decode(self, msg: StreamMessage[Any]) -> Any:
        """Return what the handler takes; never `msg`, which keeps this result: that is a cycle."""

    async def encode(self, msg: Any, serializer: Any = None) -> tuple[bytes, str | None]:
        """Encode as FastStream does; unused, as nothing is published by a route."""
        return encode_message(msg, serializer)


@dataclass(frozen=True, slots=True)
class Route:
    """One queue: how many of its messages are handled at once, and how."""

    queue: str
    prefetch: int
    codec: Codec
    serve: Serve
    middlewares: Sequence[NewMiddleware] = ()

    def within(self, middleware: NewMiddleware) -> "Route":
        """Return the route with one more middleware, around the others."""
        return replace(self, middlewares=(middleware, *self.middlewares))

    def router(self, *, one_at_a_time: bool = False) -> RabbitRouter:
        """Make a router for one connection, with the subscriber of the queue.

        The subscriber has a channel of its own, whose prefetch limits how many messages are
        handled at once. It does not declare the queue: `declarations` does, with all arguments.
        """
        router = RabbitRouter(middlewares=self.middlewares)
        subscriber = router.subscriber(
            self.declared,
            channel=Channel(prefetch_count=1 if one_at_a_time else self.prefetch),
            ack_policy=AckPolicy.MANUAL,
            codec=self.codec,
            no_reply=True,
        )
        subscriber(self.serve)
        return router

    @property
    def declared(self) -> RabbitQueue:
        """The queue, which exists."""
        return RabbitQueue(self.queue, queue_type=QueueType.QUORUM, durable=True, declare=False)
