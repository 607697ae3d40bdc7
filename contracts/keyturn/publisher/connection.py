"""The broker: its address and TLS, confirmed publishing, channels for consumers (SPEC 6.1, 6.2).

A lost connection or channel is opened again at its next use. Every message is persistent and
`mandatory`, and its publish waits for the broker's confirmation; nothing is published twice.

A broker at its memory or disk alarm stops reading from a connection that publishes, and notifies
it. Until the alarm ends, nothing else is sent on it.

It must never declare anything: a queue that no worker consumes would swallow requests. It changes
nothing outside itself: no patch, no filter or level on another library's logger.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Final, Self, TypeAlias, TypeGuard

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelNotFoundEntity,
    ConnectionClosed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused, ProtocolSyntaxError

from keyturn.errors import (
    BrokerTlsError,
    BrokerUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn.settings import BrokerTlsSettings, DeploymentSettings
from keyturn.tasks import cancel_all
from keyturn.tls import (
    BROKER,
    describe_connection_failure,
    describe_tls_failure,
    renewing_context,
)
from keyturn.topology import EXCHANGE

_log = logging.getLogger(__name__)
_RECONNECT_PAUSES_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
_CLOSE_TIMEOUT_S: Final = 5.0
# The interval of checks for an alarm, while a publish waits.
_ALARM_POLL_S: Final = 0.1
_START_A_WORKER: Final = "; start one, then publish again"
AT_ALARM: Final = "its memory or disk alarm is on"
# RabbitMQ's reply codes for a refused vhost: not allowed, and internal error.
_NOT_ALLOWED: Final = (530, 541)
_CLOSE: Final = "<Connection.Close "


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's URL, and the context of TLS connections to it.

    Attributes:
        url: Contains a password, and is never logged or raised.
        tls: None if the URL begins with `amqp://`.
    """

    url: str = field(repr=False)
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: DeploymentSettings) -> Self:
        """Return the address in the settings. Reads the files of certificates.

        Later connections read them again if they have changed.

        Raises:
            SettingsError: names the setting whose file cannot be used.
        """
        return cls.parse(settings.amqp_url.get_secret_value(), settings)

    @classmethod
    def parse(cls, url: str, tls: BrokerTlsSettings) -> Self:
        """Return the address from a URL and the files of certificates; errors as `of`."""
        if not url.startswith(BROKER.tls_scheme):
            return cls(url)
        files = (tls.amqp_ca_file, tls.amqp_cert_file, tls.amqp_key_file)
        return cls(url, renewing_context(BROKER, *files))


Broker: TypeAlias = BrokerAddress | str
"""A broker's address; as text, a URL whose TLS, if any, the system's authorities verify."""


async def connect_to_broker(broker: Broker) -> AbstractConnection:
    """Open a connection.

    Raises:
        BrokerTlsError: TLS failed.
        OSError, AMQPError, RuntimeError: the broker is unavailable, refuses, or hangs up.
    """
    address = BrokerAddress(broker) if isinstance(broker, str) else broker
    try:
        return await aio_pika.connect(address.url, ssl_context=address.tls)
    except UnicodeError as exc:
        raise ConnectionError("the broker's host name cannot be resolved") from exc
    except CONNECTION_EXCEPTIONS as exc:
        if (problem := describe_tls_failure(exc, BROKER)) is not None:
            raise BrokerTlsError(f"the broker cannot be reached ({problem})") from exc
        if _is_vhost_refused(exc):
            # Otherwise stream readers would take the unexpected frame for an undecodable message.
            raise ConnectionError("the broker refused the vhost") from exc
        raise


def describe_broker_failure(error: BaseException) -> str:
    """Return why the broker cannot be used, as a clause about "it"."""
    if (problem := describe_broker_problem(error)) is not None:
        return problem
    match error:
        case ChannelAccessRefused():
            return f"it refuses access: check the permissions of the user in {BROKER.url}"
        case ChannelNotFoundEntity():
            return "a queue, stream or exchange does not exist: start a worker, which declares them"
        case ProtocolSyntaxError():
            return f"its response is not valid AMQP: check {BROKER.url}"
    return describe_connection_failure(error, BROKER) or "it closed the connection or a channel"


def describe_broker_problem(error: BaseException) -> str | None:
    """Return an operator's problem, as a clause about "it"; None if the broker may just be down."""
    return describe_tls_failure(error, BROKER) or _describe_refusal(error)


def _describe_refusal(error: BaseException) -> str | None:
    """Return the refusal, and the setting to check; None if the broker refused nothing.

    The broker's own text is not repeated, because it names the user and the vhost.
    """
    if isinstance(error, ProbableAuthenticationError):
        return f"it refuses the user name or password in {BROKER.url}"
    if isinstance(error, AuthenticationError):
        return "it does not accept password logins"
    if _is_vhost_refused(error) or _is_vhost_refused(error.__cause__):
        return (
            f"it refuses the vhost in {BROKER.url}: check its name, the user's permissions there, "
            "and its connection limits"
        )
    return None


def _is_vhost_refused(error: BaseException | None) -> bool:
    """Return whether the broker closed the connection instead of opening the vhost.

    The client library reports that as an unexpected frame; only the error's text names the frame.
    """
    if isinstance(error, ConnectionClosed):
        return bool(error.args) and error.args[0] in _NOT_ALLOWED
    return isinstance(error, InvalidFrameError) and _CLOSE in str(error)


class OnePublishPerId:
    """Serializes the publishes of one message id, and no others.

    The client library matches a returned message by its id: of two with one id in flight, each
    could get the other's outcome. A message that is on no queue would count as confirmed.
    """

    def __init__(self) -> None:
        self._in_flight: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def turn(
        self, message_id: str | None, timeout_s: float | None = None
    ) -> AsyncIterator[None]:
        """Publish a message of this id in the block. Without an id, the library makes one.

        Raises:
            TimeoutError: the previous publish took too long.
        """
        if not message_id:
            yield
            return
        if message_id in self._in_flight:
            async with asyncio.timeout(timeout_s):
                while (previous := self._in_flight.get(message_id)) is not None:
                    await previous.wait()
        done = self._in_flight[message_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            done.set()


class BrokerConnection:
    """A connection that is reopened after a loss. Safe for concurrent use.

    Args:
        broker: The broker's address; it contains a password and is never logged or raised.
        publish_timeout_s: Seconds for one publish, connecting and confirmation included.
        alarm_timeout_s: Seconds of these that a publish waits while the broker is at its memory or
            disk alarm; all by default.
    """

    def __init__(
        self, broker: Broker, *, publish_timeout_s: float, alarm_timeout_s: float | None = None
    ) -> None:
        self._broker = broker
        self._timeout_s = publish_timeout_s
        self._alarm_timeout_s = publish_timeout_s if alarm_timeout_s is None else alarm_timeout_s
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._one_per_id = OnePublishPerId()
        self._publishes: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._sends = 0  # begun so far
        self._has_logged_alarm = False
        self._closed = False

    def separate(self) -> Self:
        """Return another connection to the same broker, not yet connected. Its owner closes it."""
        return type(self)(
            self._broker,
            publish_timeout_s=self._timeout_s,
            alarm_timeout_s=self._alarm_timeout_s,
        )

    async def connect(self) -> None:
        """Connect now, so that a wrong address fails here and not at the first use.

        Raises:
            BrokerTlsError: TLS with the broker failed.
            BrokerUnavailableError: the broker refuses, or does not respond in time.
        """
        try:
            with normalize_connection_errors():
                async with asyncio.timeout(self._timeout_s):
                    await self._connect_once()
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            raise _unavailable(exc) from exc

    async def close(self) -> None:
        """Abandon publishes under way, and close the connection."""
        self._closed = True
        await cancel_all(self._publishes)
        if self._connection is not None:
            await close_quietly(self._connection.close())
        await cancel_all((*self._closing, *self._sending))

    async def publish(self, routing_key: str, message: Message) -> None:
        """Publish to the exchange and wait for the broker's confirmation.

        Messages of one id are published one after the other. Cancelling the caller ends only its
        wait: the message may still arrive.

        Args:
            routing_key: The type of the request.
            message: As `persistent_json` makes it.

        Raises:
            NotDeliveredError: the message is on no queue.
            OutcomeUnknownError: it was sent, but not confirmed.
        """
        task = asyncio.create_task(self._publish_in_turn(routing_key, message))
        self._publishes.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task})
        if task.cancelled():
            raise OutcomeUnknownError("the connection was closed before the broker confirmed")
        task.result()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._publishes.discard(task)
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: its caller may be gone

    async def _publish_in_turn(self, routing_key: str, message: Message) -> None:
        async with self._one_per_id.turn(message.message_id):
            await self._publish(routing_key, message)

    async def channel(self, prefetch: int) -> AbstractChannel:
        """Return a new channel for a consumer, which closes it.

        Args:
            prefetch: The maximum of unacknowledged messages that the broker sends.

        Raises:
            OSError, AMQPError, RuntimeError: the connection failed.
        """
        with normalize_connection_errors():
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connect_once()
                channel = connection.channel(publisher_confirms=False)
                await channel.initialize()
                await channel.set_qos(prefetch_count=prefetch)
                return channel

    async def _publish(self, routing_key: str, message: Message) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        await self._wait_for_alarm_to_end(deadline)
        channel = await self._publishing_channel(deadline)
        # Not canceled at the deadline: the client library would forget the message's id, and
        # log the whole message should the broker return it late.
        sending = asyncio.create_task(_send(channel, routing_key, message))
        was_alone = not self._sending
        self._sends = number = self._sends + 1
        self._sending.add(sending)
        sending.add_done_callback(self._ended)
        if (overdue := await self._wait_for_confirmation(sending, deadline)) is not None:
            self._retire(channel)
            raise overdue
        try:
            sending.result()
        except (ChannelAccessRefused, ChannelNotFoundEntity) as exc:
            if not was_alone or self._sends > number:
                # The broker closes the channel for one publish, and the client library raises that
                # refusal for every other one on it: this one may be on its queue.
                raise OutcomeUnknownError(
                    "the broker refused this publish, or another one at the same time"
                ) from exc
            raise _publish_error(exc, routing_key) from exc
        except CONNECTION_EXCEPTIONS as exc:
            raise _publish_error(exc, routing_key) from exc

    async def _wait_for_alarm_to_end(self, deadline: float) -> None:
        """Wait while the broker accepts nothing.

        Raises:
            BrokerUnavailableError: the alarm lasts too long.
        """
        loop = asyncio.get_running_loop()
        limit = min(deadline, loop.time() + self._alarm_timeout_s)
        while await self._is_at_alarm():
            if loop.time() >= limit:
                raise BrokerUnavailableError(f"the broker accepts no messages: {AT_ALARM}")
            await asyncio.sleep(_ALARM_POLL_S)

    async def _wait_for_confirmation(
        self, sending: asyncio.Task[None], deadline: float
    ) -> OutcomeUnknownError | None:
        """Wait for a publish to end; return an error if it takes too long."""
        loop = asyncio.get_running_loop()
        error = OutcomeUnknownError(f"the broker did not confirm within {self._timeout_s:g} s")
        while not sending.done() and loop.time() < deadline:
            await asyncio.wait({sending}, timeout=min(_ALARM_POLL_S, deadline - loop.time()))
            if not sending.done() and await self._is_at_alarm():
                error = OutcomeUnknownError(f"the broker does not confirm messages now: {AT_ALARM}")
                deadline = min(deadline, loop.time() + self._alarm_timeout_s)
        return None if sending.done() else error

    async def _is_at_alarm(self) -> bool:
        """Return whether the broker is at an alarm; log each alarm once."""
        if self._connection is None or not await is_at_alarm(self._connection):
            self._has_logged_alarm = False
            return False
        if not self._has_logged_alarm:
            _log.warning("the broker accepts no messages: %s", AT_ALARM)
        self._has_logged_alarm = True
        return True

    def _retire(self, channel: AbstractChannel) -> None:
        # An overdue confirmation may still arrive: later publishes get a new channel, so that
        # it is never mistaken for another message's.
        if self._channel is channel:
            self._channel = None
        task = asyncio.create_task(_close_whenever(channel))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _publishing_channel(self, deadline: float) -> AbstractChannel:
        """Return the channel of all publishes, opened again after a loss.

        Publishes that wait for it get it in their order of arrival.
        """
        if _is_open(self._channel):
            return self._channel
        problem: BaseException = TimeoutError()
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                for pause_s in chain(_RECONNECT_PAUSES_S, repeat(_RECONNECT_PAUSES_S[-1])):
                    if _is_open(self._channel):
                        return self._channel
                    try:
                        with normalize_connection_errors():
                            self._channel = await self._open_channel()
                    except ChannelNotFoundEntity as exc:
                        raise _publish_error(exc, "") from exc
                    except CONNECTION_EXCEPTIONS as exc:
                        problem = exc
                        await asyncio.sleep(pause_s)
        except TimeoutError:
            pass
        raise _unavailable(problem) from problem

    async def _open_channel(self) -> AbstractChannel:
        connection = await self._connect_once()
        channel = connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.initialize()
        # Checked before any publish: publishing to a missing exchange closes the channel, and every
        # publish on it would lose its outcome.
        await channel.get_exchange(EXCHANGE, ensure=True)
        return channel

    async def _connect_once(self) -> AbstractConnection:
        if self._closed:
            raise RuntimeError("the publisher is closed")
        async with self._connecting:
            connection = self._connection
            if connection is not None and connection.connected.is_set():
                return connection
            if connection is not None:
                _log.info("reconnecting to the broker")
                self._connection = None
                await close_quietly(connection.close())
            self._connection = await connect_to_broker(self._broker)
            return self._connection


async def is_at_alarm(connection: AbstractConnection) -> bool:
    """Return whether the broker has blocked the connection because of an alarm.

    A broker blocks only connections that have published.
    """
    if connection.transport is None or not connection.connected.is_set():
        return False  # a lost connection is replaced
    try:
        # It returns at once unless the connection is blocked.
        async with asyncio.timeout(0):
            await connection.transport.ready()
    except TimeoutError:
        return True
    return False


async def _send(channel: AbstractChannel, routing_key: str, message: Message) -> None:
    with normalize_connection_errors():
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        await exchange.publish(message, routing_key, mandatory=True)


async def _close_whenever(channel: AbstractChannel) -> None:
    """Close it as soon as the broker responds, or the connection is lost; this ends its publishes.

    Neither is canceled earlier: if the broker then returned a message, the client library would no
    longer know its id, and would log it with its body.
    """
    with suppress(TimeoutError, *CONNECTION_EXCEPTIONS), normalize_connection_errors():
        await channel.close()


@contextmanager
def normalize_connection_errors() -> Iterator[None]:
    """Turn losses that the client library raises as other exceptions into `ConnectionError`.

    These are a bare `Exception`, `StopAsyncIteration` if the broker hangs up during the handshake
    (which would silently end an `async for` around it), and a `CancelledError` if a heartbeat
    fails, although nothing canceled the task.

    Raises:
        ConnectionError: in place of one of these. Every other exception passes unchanged.
    """
    try:
        yield
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from exc
    except Exception as exc:
        if type(exc) is Exception or isinstance(exc, StopAsyncIteration):
            raise ConnectionError("the connection was lost") from exc
        raise


def persistent_json(body: bytes, request_id: str, headers: Mapping[str, str]) -> Message:
    """Return a message as SPEC 6.3 requires it.

    Args:
        body: The request as signed.
        request_id: Becomes the message's id.
        headers: The publisher's name and the signature.
    """
    return Message(
        body,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=request_id,
        headers=dict(headers),
    )


def _publish_error(exc: BaseException, routing_key: str) -> PublisherError:
    """Return the error for the caller of a failed publish: not delivered, or unknown."""
    match exc:
        case PublishError():  # the broker returned it: no queue is bound
            return NotDeliveredError(
                f"no worker has declared a queue for {routing_key}{_START_A_WORKER}"
            )
        case ChannelNotFoundEntity():
            return NotDeliveredError(
                f"no worker has declared the exchange {EXCHANGE}{_START_A_WORKER}"
            )
        case ChannelAccessRefused():
            return NotDeliveredError(f"the broker's user may not write to {EXCHANGE}")
        case DeliveryError():
            return OutcomeUnknownError("the broker could not promise to keep the message")
        case _:
            return OutcomeUnknownError("the connection was lost before the broker confirmed")


async def close_quietly(closing: Awaitable[object]) -> None:
    """Close a resource that may be gone already; wait at most 5 seconds for it."""
    with suppress(TimeoutError, *CONNECTION_EXCEPTIONS), normalize_connection_errors():
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await closing


def _unavailable(cause: BaseException) -> BrokerUnavailableError:
    if isinstance(cause, BrokerTlsError):
        return BrokerTlsError(str(cause))
    return BrokerUnavailableError(
        f"the broker cannot be reached ({describe_broker_failure(cause)})"
    )


def _is_open(channel: AbstractChannel | None) -> TypeGuard[AbstractChannel]:
    return channel is not None and not channel.is_closed
