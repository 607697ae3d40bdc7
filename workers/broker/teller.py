"""Everything a worker publishes: events, messages put off, dead letters (SPEC 6.2, 6.7).

Persistent, confirmed and mandatory: when a method returns, the broker has it on disk.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from faststream.exceptions import IncorrectState
from faststream.rabbit import RabbitBroker
from pamqp import commands

from contracts.errors import KeyturnError
from contracts.messages import Event, encode, request_id
from contracts.publisher.link import named_losses
from contracts.sealing import SigningKey
from contracts.topology import (
    ALL_DELAYS_S,
    ATTEMPT_HEADER,
    CODE_HEADER,
    DETAIL_HEADER,
    EXCHANGE,
    SIGNATURE_HEADER,
    dead_letter_name,
    retry_name,
)
from workers.broker.announcer import Announcer
from workers.broker.delivery import copy_of, delay_up_to
from workers.broker.direct import Delivered, whole

_TIMEOUT_S: Final = 30
_DETAIL_MAX_CHARACTERS: Final = 500


class NotConfirmedError(Exception):
    """The broker did not confirm: nobody can say whether it has the message."""


class Teller:
    """Publishes on a worker's behalf.

    Every method raises `NotConfirmedError` where the broker did not confirm; the caller must
    then not acknowledge.
    """

    def __init__(self, broker: RabbitBroker, deployment: str, event_key: SigningKey) -> None:
        self._broker = broker
        self._deployment = deployment
        self._event_key = event_key
        self._announcer = Announcer(broker, EXCHANGE, timeout_s=_TIMEOUT_S)

    async def tell(self, event: Event) -> None:
        """Publish a signed event."""
        body = encode(event)
        signature = self._event_key.sign_event(self._deployment, body)
        properties = commands.Basic.Properties(
            content_type="application/json",
            headers={SIGNATURE_HEADER: signature},
            delivery_mode=DeliveryMode.PERSISTENT,
            correlation_id=request_id(event),
        )
        with _confirmed():
            await self._announcer.publish(event.type, body, properties)

    async def put_off(
        self,
        message: Delivered,
        queue: str,
        error: KeyturnError,
        attempt: int,
        delay_s: int,
    ) -> None:
        """Let the message come back to its queue after `delay_s` seconds."""
        header = {ATTEMPT_HEADER: f"{error.code}:{attempt + 1}"}
        await self._to_queue(copy_of(whole(message), header), retry_name(queue, delay_s))

    async def put_off_quietly(self, message: Delivered, queue: str, wait_s: float) -> None:
        """Let the message come back after about so many seconds, by no fault of anybody's."""
        header = {ATTEMPT_HEADER: "waiting:1"}
        delay_s = delay_up_to(wait_s) or min(ALL_DELAYS_S)
        await self._to_queue(copy_of(whole(message), header), retry_name(queue, delay_s))

    async def dead_letter(self, message: Delivered, queue: str, error: KeyturnError) -> None:
        """Put the message into its queue's dead letters, with the code in a header."""
        headers = {CODE_HEADER: error.code, DETAIL_HEADER: error.detail[:_DETAIL_MAX_CHARACTERS]}
        await self._to_queue(copy_of(whole(message), headers), dead_letter_name(queue))

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        """Put a message of the workers' own into a queue, now or after so many seconds.

        `delay_s` is 0 or one of `contracts.topology.ALL_DELAYS_S`.
        """
        message = Message(
            body, content_type="application/json", delivery_mode=DeliveryMode.PERSISTENT
        )
        await self._to_queue(message, retry_name(queue, delay_s) if delay_s else queue)

    async def _to_queue(self, message: Message, queue: str) -> None:
        with _confirmed():
            await self._broker.publish(message, queue, timeout=_TIMEOUT_S)


@contextmanager
def _confirmed() -> Iterator[None]:
    """One error for the many that the client library has for a lost broker."""
    try:
        with named_losses():
            yield
    except (TimeoutError, IncorrectState, *CONNECTION_EXCEPTIONS) as exc:
        raise NotConfirmedError(type(exc).__name__) from exc
    except asyncio.CancelledError as exc:
        # aiormq gives up its futures by one where a heartbeat fails; nobody cancelled this task.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NotConfirmedError("the connection was given up") from exc
