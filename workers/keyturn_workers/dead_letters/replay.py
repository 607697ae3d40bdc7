"""Sending a dead letter back as it was sent (SPEC 12).

The broker confirms the copy before the letter is acknowledged. So a crash in between leaves
two of them (which is harmless, SPEC 5.3), never none.
"""

from typing import Final

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from keyturn.errors import MalformedRequestError
from keyturn.topology import BODY_DROPPED_HEADER, CODE_HEADER
from keyturn_workers.amqp.retry import copy_of

_CONFIRM_TIMEOUT_S: Final = 30


def check_body_kept(message: AbstractIncomingMessage) -> None:
    """Check that the letter still has its body.

    Raises:
        MalformedRequestError: the body was dropped (SPEC 6.9).
    """
    if BODY_DROPPED_HEADER in message.headers:
        code = message.headers.get(CODE_HEADER)
        name = code if isinstance(code, str) else None
        raise MalformedRequestError(f"cannot be replayed: with {name} the body is not kept")


def original(message: AbstractIncomingMessage) -> Message:
    """A copy of the letter without the headers that workers and the broker added."""
    return copy_of(message, {})


async def send_back(
    channel: AbstractChannel, message: AbstractIncomingMessage, copy: Message, queue: str
) -> None:
    """Publish a copy to its work queue, wait for the confirmation, acknowledge the letter."""
    await channel.default_exchange.publish(copy, queue, mandatory=True, timeout=_CONFIRM_TIMEOUT_S)
    await message.ack()
