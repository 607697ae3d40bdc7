"""One connection to the broker: confirmed publishing, and channels for readers (SPEC 6.1, 6.2).

A connection or a channel that is lost is opened again by whoever needs it next; nothing
is ever sent twice on its own. Every message is persistent, `mandatory`, and waited for
until the broker confirms it.
It must never declare anything: what workers have not declared is an error to tell, since
a queue that nobody serves would swallow requests.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeGuard

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelNotFoundEntity,
    DeliveryError,
    PublishError,
)
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from keyturn.errors import (
    BrokerUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn.topology import EXCHANGE

_log = logging.getLogger(__name__)
_RECONNECT_PAUSES_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
_CLOSE_TIMEOUT_S: Final = 5.0
_START: Final = "; start one, then publish again"


class _NoBodies(logging.Filter):
    """Keeps messages out of the client library's log: it prints a late return whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                "a message" if isinstance(arg, DeliveredMessage) else arg for arg in record.args
            )
        return True


_NO_BODIES: Final = _NoBodies()


class BrokerConnection:
    """A connection that comes back.

    Args:
        url: The broker's address; it holds a password and is never shown.
        publish_timeout_s: Seconds for one publish, connecting and confirmation included.
    """

    def __init__(self, url: str, *, publish_timeout_s: float) -> None:
        logging.getLogger("aiormq.channel").addFilter(_NO_BODIES)  # one filter, however often
        self._url = url
        self._timeout_s = publish_timeout_s
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def connect(self) -> None:
        """Connect now, so that a wrong address is told at the door and not with the first use.

        Raises:
            BrokerUnavailableError: the broker refuses, or does not answer in time.
        """
        try:
            with normalize_connection_errors():
                async with asyncio.timeout(self._timeout_s):
                    await self._connect_once()
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            raise _unavailable(exc) from exc

    async def close(self) -> None:
        """Give up what is under way, and close the connection."""
        self._closed = True
        tasks = [*self._in_flight.values(), *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            await close_quietly(self._connection.close())

    async def publish(self, request_id: str, routing_key: str, message: Message) -> None:
        """Publish to the exchange and wait for the broker's confirmation.

        A caller that is cancelled gives up its wait alone: the message may still arrive.

        Raises:
            NotDeliveredError: it stands on no queue.
            OutcomeUnknownError: it was sent and not confirmed.
        """
        # The client library matches a returned message by its id: two of one id on their
        # way at once could each get the other's answer, so the second waits.
        while (previous := self._in_flight.get(request_id)) is not None:
            await asyncio.wait({previous})
        task = asyncio.create_task(self._publish(routing_key, message))
        self._in_flight[request_id] = task
        task.add_done_callback(lambda done: self._settle(request_id, done))
        await asyncio.wait({task})
        if task.cancelled():
            raise OutcomeUnknownError("the connection was closed before the broker confirmed")
        task.result()

    def _settle(self, request_id: str, task: asyncio.Task[None]) -> None:
        del self._in_flight[request_id]
        if not task.cancelled():
            task.exception()  # its caller may be gone; nobody else need hear of it

    async def channel(self, prefetch: int) -> AbstractChannel:
        """A fresh channel for a consumer, which closes it.

        Raises:
            OSError, AMQPError, RuntimeError: the connection cannot be had, or was lost.
        """
        with normalize_connection_errors():
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connect_once()
                channel = connection.channel(publisher_confirms=False)
                await channel.initialize()
                await channel.set_qos(prefetch_count=prefetch)
                return channel

    async def _publish(self, routing_key: str, message: Message) -> None:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        channel = await self._publishing_channel(deadline)
        try:
            with normalize_connection_errors():
                async with asyncio.timeout_at(deadline):
                    exchange = await channel.get_exchange(EXCHANGE, ensure=False)
                    await exchange.publish(message, routing_key, mandatory=True)
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            if isinstance(exc, TimeoutError):
                self._retire(channel)
            raise _told(exc, routing_key, self._timeout_s) from exc

    def _retire(self, channel: AbstractChannel) -> None:
        # A confirmation that is overdue may still come: what follows gets a channel of its
        # own, so that a late answer is never taken for another message's.
        if self._channel is channel:
            self._channel = None
        task = asyncio.create_task(close_quietly(channel.close()))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _publishing_channel(self, deadline: float) -> AbstractChannel:
        """The channel of all publishes, opened again where it was lost."""
        attempt = 0
        while True:
            try:
                with normalize_connection_errors():
                    async with asyncio.timeout_at(deadline):
                        return await self._open_channel()
            except ChannelNotFoundEntity as exc:
                raise _told(exc, "", self._timeout_s) from exc
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
                pause_s = _RECONNECT_PAUSES_S[min(attempt, len(_RECONNECT_PAUSES_S) - 1)]
                attempt += 1
                if asyncio.get_running_loop().time() + pause_s >= deadline:
                    raise _unavailable(exc) from exc
                await asyncio.sleep(pause_s)

    async def _open_channel(self) -> AbstractChannel:
        if _is_open(self._channel):
            return self._channel
        async with self._opening:
            if _is_open(self._channel):
                return self._channel
            connection = await self._connect_once()
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.initialize()
            # Asked before anything is published: an exchange that is missing closes the
            # channel under all who publish on it, and none of them would know its outcome.
            await channel.get_exchange(EXCHANGE, ensure=True)
            self._channel = channel
            return channel

    async def _connect_once(self) -> AbstractConnection:
        if self._closed:
            raise RuntimeError("the publisher is closed")
        async with self._connecting:
            connection = self._connection
            if connection is not None and connection.connected.is_set():
                return connection
            if connection is not None:
                _log.info("connecting to the broker again")
                self._connection = None
                await close_quietly(connection.close())
            self._connection = await aio_pika.connect(self._url)
            return self._connection


@contextmanager
def normalize_connection_errors() -> Iterator[None]:
    """Name the losses that reach the client library's callers as no error of a connection.

    A bare `Exception`, and `StopAsyncIteration` where the broker hangs up in the handshake. The
    latter would end any `async for` around it in silence.

    Raises:
        ConnectionError: in place of such a one. Every other exception passes.
    """
    try:
        yield
    except Exception as exc:
        if type(exc) is Exception or isinstance(exc, StopAsyncIteration):
            raise ConnectionError("the connection was lost") from exc
        raise


def persistent_json(body: bytes, request_id: str, headers: Mapping[str, str]) -> Message:
    """A message as SPEC 6.3 asks for it."""
    return Message(
        body,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=request_id,
        headers=dict(headers),
    )


def _told(exc: BaseException, routing_key: str, timeout_s: float) -> PublisherError:
    """What a failed publish is to its caller: surely not delivered, or not known."""
    match exc:
        case PublishError():  # the broker gave it back: no queue is bound
            return NotDeliveredError(f"no worker has declared a queue for {routing_key}{_START}")
        case ChannelNotFoundEntity():
            return NotDeliveredError(f"no worker has declared the exchange {EXCHANGE}{_START}")
        case ChannelAccessRefused():
            return NotDeliveredError(f"the broker's user may not write to {EXCHANGE}")
        case DeliveryError():
            return OutcomeUnknownError("the broker could not promise to keep the message")
        case TimeoutError():
            return OutcomeUnknownError(f"the broker did not confirm within {timeout_s:g} s")
        case _:
            return OutcomeUnknownError("the connection was lost before the broker confirmed")


async def close_quietly(closing: Awaitable[object]) -> None:
    """Close what may be gone already; never wait for it long."""
    with suppress(TimeoutError, *CONNECTION_EXCEPTIONS), normalize_connection_errors():
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await closing


def _unavailable(cause: BaseException) -> BrokerUnavailableError:
    return BrokerUnavailableError(f"the broker cannot be reached ({type(cause).__name__})")


def _is_open(channel: AbstractChannel | None) -> TypeGuard[AbstractChannel]:
    return channel is not None and not channel.is_closed
