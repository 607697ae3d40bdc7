"""Routes whose handler gets each message as it came, and deliveries without a broker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from faststream import ContextRepo
from faststream.message import StreamMessage

from keyturn_workers.pipeline.amqp.outcomes import ReturnedError
from keyturn_workers.pipeline.amqp.routes import Codec, Route

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

    from keyturn_workers.pipeline.amqp.routes import CallNext, Serve


class _Undecoded(Codec):
    async def decode(self, msg: StreamMessage[Any]) -> AbstractIncomingMessage:
        message: AbstractIncomingMessage = msg.raw_message
        return message


def undecoded(queue: str, prefetch: int, serve: Serve) -> Route:
    """Return a route to a handler of messages."""
    return Route(queue, prefetch, _Undecoded(), serve)


async def deliver(route: Route, message: Any) -> bool:
    """Handle a delivery as FastStream does; False if it goes back to its queue."""
    msg: StreamMessage[Any] = StreamMessage(message, b"")
    msg.set_decoder(route.codec.decode)

    async def serve(msg: StreamMessage[Any]) -> Any:
        return await route.serve(await msg.decode())

    call: CallNext = serve
    for new_middleware in reversed(route.middlewares):
        middleware = new_middleware(message, context=ContextRepo())
        call = partial(middleware.consume_scope, call)
    try:
        await call(msg)
    except ReturnedError:
        return False
    return True
