"""Reading a stream of events from any moment on, across lost connections (SPEC 6.2, 6.7, 6.8).

`follow` yields every message with its offset and resumes at the next offset after a loss;
`Verifier` accepts only what one of the deployment's event keys has signed.

Anyone with write access to the exchange can put a message on the stream whose properties the client
library cannot decode (a timestamp beyond the year 9999, a string that is not UTF-8). Its decoder
raises while it reads the connection, and the connection is lost. Keyturn's workers write no such
message, so `follow` reads up to it, one message at a time and on a separate connection, and resumes
after it once its delivery has broken two connections in a row. Where reading begins at such a
message, its offset is unknown, so reading begins earlier: by a minute, an hour, a day, then with
all that the stream holds. Do not publish on the connection that events are read from: such a loss
would leave publishes without an outcome.

It must never declare a stream, never yield an event whose signature it has not checked, and
never skip a message that can be decoded: an error while it connects, attaches, acknowledges or
closes says nothing about any message.
"""

import asyncio
import enum
import errno
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar

from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, InvalidFrameError

from keyturn.crypto import EventVerifier, VerifyKey
from keyturn.errors import EventsUnavailableError, MalformedRequestError
from keyturn.messages import (
    AuditRecorded,
    Event,
    WorkerReported,
    parse_audit,
    parse_event,
    parse_worker_report,
)
from keyturn.publisher.broker_address import describe_broker_failure
from keyturn.publisher.connection import (
    BrokerConnection,
    close_quietly,
    normalize_connection_errors,
)
from keyturn.topology import (
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EVENTS_STREAM,
    MARKS_STREAM,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    UNSIGNED_DEAD_QUEUE,
    WORKERS_STREAM,
)

_log = logging.getLogger(__name__)

PREFETCH: Final = 256
_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
# After each skipped message, until one can be read: a flood of them must not make every reader
# reconnect as fast as it can.
_SKIP_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0)
_LOSSES_OF_PROOF: Final = 2
_KNOWN_AGAIN_S: Final = 5.0
_NEWEST_S: Final = 1.0
_OFFSET_HEADER: Final = "x-stream-offset"
_NO_OFFSET: Final = -1
_HEADERS: Final = (SIGNATURE_HEADER, EVENT_KEY_HEADER, TRACEPARENT_HEADER)
_START_A_WORKER: Final = "; start one"
_UNKNOWN_PUBLISHER: Final = (
    ": none has started yet, or the workers do not know this publisher. In that case its requests "
    f"are in {UNSIGNED_DEAD_QUEUE}: see `keyturn dead list`"
)
_OF_WORKERS: Final = (EVENTS_STREAM, AUDIT_STREAM, WORKERS_STREAM, MARKS_STREAM)
_EARLIER: Final = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))

Start = datetime | int | Literal["first"]
"""Where to begin: at a moment (to the second, perhaps a little earlier), at an offset, or at
the oldest event that the stream still holds."""


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One message of a stream, not yet verified.

    Attributes:
        offset: Its place in the stream.
        body: The event's bytes as signed.
        signature: The header `keyturn-signature`, base64; empty where it is missing.
        key_id: The header `keyturn-event-key`: which key signed it. Not signed itself.
        traceparent: The header of that name (SPEC 6.11). Not signed either.
        skipped: How many messages directly before it were skipped, since they cannot be decoded.
    """

    offset: int
    body: bytes
    signature: str
    key_id: str = ""
    traceparent: str = ""
    skipped: int = field(default=0, compare=False)


_Message = TypeVar("_Message")


class Verifier:
    """Turns records into messages of the deployment, and counts those that are not signed.

    Each method takes one kind of message only: a genuine message of another kind that an attacker
    put on the stream is passed over.

    Args:
        deployment: The installation that events must be signed for.
        keys: The deployment's public event keys: the current one, and any earlier or later
            ones (SPEC 6.10).

    Attributes:
        deployment: As given.
        refused: How many records were ignored because no key verified them.
    """

    def __init__(self, deployment: str, keys: Sequence[VerifyKey]) -> None:
        self.deployment = deployment
        self._signatures = EventVerifier(deployment, keys)
        self.refused = 0

    def event(self, record: StreamRecord) -> Event | None:
        """The event, or None if its signature fails or this version does not know its type."""
        return self._parsed(record, parse_event)

    def worker_report(self, record: StreamRecord) -> WorkerReported | None:
        """What a worker reports about itself (SPEC 16.2), or None as for an event."""
        return self._parsed(record, parse_worker_report)

    def audit_record(self, record: StreamRecord) -> AuditRecorded | None:
        """A record of the audit trail, or None as for an event.

        It says nothing about records that are missing: `keyturn.audit` checks the chains.
        """
        return self._parsed(record, parse_audit)

    def _parsed(self, record: StreamRecord, parse: Callable[[bytes], _Message]) -> _Message | None:
        if not self._signatures.is_signed(record.body, record.signature, record.key_id):
            self.refused += 1
            _log.warning("ignored a message that is not signed, at offset %d", record.offset)
            return None
        try:
            return parse(record.body)
        except MalformedRequestError:
            _log.debug("skipped a message that this version does not know, at %d", record.offset)
            return None


class _InterruptedError(Exception):
    """The consumer was lost before it delivered anything."""


class _UndecodableError(Exception):
    """The connection was lost because the client library cannot decode what it received."""


class _UndecodableMessageError(_UndecodableError):
    """It was lost through an attached consumer, by what was delivered to it.

    Attributes:
        offset: The message that was being delivered; None if that is unknown.
    """

    def __init__(self, offset: int | None) -> None:
        super().__init__()
        self.offset = offset


class _OtherStreamError(Exception):
    """A stream of that name exists, but it is not the one that was read before."""


@dataclass(slots=True)
class _Position:
    """How far a reader has come.

    Attributes:
        place: Where to begin, as long as nothing was read.
        last: The last record that was read.
        skipped: How many messages after that one are passed over.
        suspect: The message to attach at because its delivery perhaps broke a connection.
        losses: How many connections in a row its delivery has broken.
        is_attached: Whether a consumer ever attached.
        is_careful: Whether to read one message at a time, on a separate connection: otherwise
            it is uncertain which message cannot be decoded.
        is_silent: Whether the last consumer waited in vain for `last`.
        retreats: How often the beginning was moved to an earlier moment.
        note_problem: As of `follow`.
    """

    place: Start
    note_problem: Callable[[str | None], None]
    last: StreamRecord | None = None
    skipped: int = 0
    suspect: int | None = None
    losses: int = 0
    is_attached: bool = False
    is_careful: bool = False
    is_silent: bool = False
    retreats: int = 0

    @property
    def start(self) -> Start:
        """Where to attach: at `last` itself, to recognize the stream by it, or after it."""
        if self.suspect is not None:
            return self.suspect
        if self.last is not None:
            return self.last.offset + (1 + self.skipped if self.skipped else 0)
        return self.place + self.skipped if isinstance(self.place, int) else self.place

    @property
    def expected(self) -> StreamRecord | None:
        """The record that the stream delivers first if it is the same stream as before."""
        return None if self.skipped or self.suspect is not None else self.last

    @property
    def first(self) -> int | None:
        """The offset of what is delivered first, if it is known."""
        start = self.start
        return start if isinstance(start, int) and self.expected is None else None

    def attached(self) -> None:
        """Note that a consumer has attached."""
        self.is_attached = True
        self.note_problem(None)

    def advance(self, record: StreamRecord) -> None:
        """Note what was read; after one record, careful reading ends."""
        self.last, self.skipped = record, 0
        self.is_careful = self.is_silent = False
        self.forget_suspect()

    def forget_suspect(self) -> None:
        """Begin again with what shows that a message cannot be decoded."""
        self.suspect, self.losses = None, 0

    def pass_undecodable(self, cause: _UndecodableError) -> float | None:
        """Approach the message that cannot be decoded; go past it once it is known.

        It is known when its delivery broke two connections in a row that nobody else used.

        Returns:
            After how many seconds to attach again; None if no message was the cause.

        Raises:
            EventsUnavailableError: what cannot be decoded is the broker's handshake.
        """
        if not self.is_careful:
            self.is_careful = True
            _log.info("reading one message at a time from %s on", self.start)
        elif not isinstance(cause, _UndecodableMessageError):
            if not self.is_attached:
                raise EventsUnavailableError("the broker's frames cannot be decoded") from cause
            return None
        elif cause.offset is not None:
            return self._suspect(cause.offset)
        elif self.last is not None:  # which was decoded once
            self.suspect, self.losses = self.last.offset + 1, 0
            _log.info("the last event broke a connection; attaching after it")
        else:
            self._retreat()
            _log.info("a message before the first event broke a connection; reading begins earlier")
        return 0.0

    def _suspect(self, offset: int) -> float:
        if offset != self.suspect:
            self.suspect, self.losses = offset, 0
        self.losses += 1
        if self.losses < _LOSSES_OF_PROOF:
            _log.info("the message at offset %d broke a connection; reading it again", offset)
            return 0.0
        self.skipped += 1
        self.forget_suspect()
        _log.warning("skipped a message that cannot be decoded, before offset %s", self.start)
        return _SKIP_PAUSES_S[min(self.skipped, len(_SKIP_PAUSES_S)) - 1]

    def _retreat(self) -> None:
        if isinstance(self.place, datetime) and self.retreats < len(_EARLIER):
            self.place -= _EARLIER[self.retreats]
            self.retreats += 1
        else:
            self.place = 0


def ignore_problem(problem: str | None) -> None:
    """Do nothing: for readers that only wait until the stream can be read again."""
    del problem


async def follow(
    connection: BrokerConnection,
    start: Start,
    stream: str,
    *,
    note_problem: Callable[[str | None], None] = ignore_problem,
) -> AsyncGenerator[StreamRecord, None]:
    """Every message of one stream from `start` on, for ever, each one once.

    Args:
        connection: The broker; not the connection that publishes (see the module).
        start: Where to begin.
        stream: The stream to read.
        note_problem: Called with the reason whenever a later attempt to read fails, and with None
            whenever one succeeds.

    Raises:
        EventsUnavailableError: it cannot be read at the first attempt. Later losses are waited
            out.
    """
    attempt, position = 0, _Position(start, note_problem)
    while True:
        was_careful = position.is_careful
        attach = partial(_consumer, connection, stream, isolated=was_careful)
        try:
            async with aclosing(_read(attach, position)) as records:
                async for record in records:
                    attempt = 0
                    yield record
            if was_careful and not position.is_careful:
                continue
        except _InterruptedError:
            pass
        except _OtherStreamError:
            _log.warning("the stream of events was declared anew; reading it from its start")
            position = _Position(start, note_problem, is_attached=True)
            continue
        except _UndecodableError as exc:
            if (wait_s := position.pass_undecodable(exc)) is not None:
                await asyncio.sleep(wait_s)
                continue
            _log.debug("reading events failed before a consumer was attached")
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            if not position.is_attached:
                raise EventsUnavailableError(_unreadable(stream, exc)) from exc
            _log.debug("reading events failed (%s)", type(exc).__name__)
            note_problem(_unreadable(stream, exc))
        position.forget_suspect()
        pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        attempt += 1
        _log.info("reading events was interrupted; retrying in %g s", pause_s)
        await asyncio.sleep(pause_s)


async def _read(attach: "_Attach", position: _Position) -> AsyncGenerator[StreamRecord, None]:
    """The records that one consumer delivers; of a careful one, the first that is new."""
    if position.last is None and isinstance(position.place, datetime):
        async with attach(position.place, prefetch=1) as messages:
            position.attached()
            position.place = await _first_offset(attach, position.place, messages)
            _log.debug("the first event has offset %d", position.place)
    is_careful = position.is_careful
    prefetch = 1 if is_careful else PREFETCH
    async with attach(position.start, prefetch=prefetch) as messages:
        position.attached()
        # One acknowledgment for many messages; the others keep the stream flowing.
        drained = _drain(messages, position.first, ack_every=max(1, prefetch // 4))
        async with aclosing(_after(position, drained)) as records:
            async for record in records:
                skipped = position.skipped
                position.advance(record)
                yield replace(record, skipped=skipped) if skipped else record
                if is_careful:
                    _log.debug("read offset %d by itself", record.offset)
                    return


async def _first_offset(attach: "_Attach", since: datetime, messages: "_Messages") -> int:
    """The offset of the first event since then, waited for.

    A consumer that asks for a moment after the last event is placed behind it, and misses for
    good an event that is written while it attaches (seen with RabbitMQ 4.0). So a second
    consumer attaches after `messages` has: either it gets what the first one missed, or there
    was nothing to miss. Once there is an event, asking for the moment again finds a stable
    place; but not if our clock runs ahead of the broker's, so the event counts too.

    Raises:
        _InterruptedError: a consumer was lost.
        _UndecodableMessageError: a consumer was lost to a message that cannot be decoded.
    """
    async with attach(since, prefetch=1) as later:
        offset = await _first_of(messages, later)
    async with attach(since, prefetch=1) as again:
        try:
            async with asyncio.timeout(_KNOWN_AGAIN_S):
                return min(offset, await _first_of(again))
        except TimeoutError:
            return offset


async def _first_of(*consumers: "_Messages") -> int:
    """The offset of the first message of any of these consumers."""
    waits = [asyncio.ensure_future(messages.get()) for messages in consumers]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        message = done.pop().result()
    finally:
        for wait in waits:
            wait.cancel()
    match message:
        case _Loss.UNDECODABLE:
            raise _UndecodableMessageError(None)
        case _Loss.CONNECTION:
            raise _InterruptedError
    return message.record.offset


async def _after(
    position: _Position, records: AsyncGenerator[StreamRecord, None]
) -> AsyncGenerator[StreamRecord, None]:
    """The records after the last one, which the reader requests again to recognize the stream by.

    A stream that was deleted and declared again counts from 0: without this check, its events
    would be taken for old ones and silently passed over. A stream never drops its tail for age
    or size, so the same stream delivers something from `last` on at once. A slow broker may not,
    so that only the second consumer that waits in vain says that the stream is another one.

    Raises:
        _OtherStreamError: `last` is not where it was.
    """
    last = position.expected
    async with aclosing(records):
        if last is not None:
            try:
                async with asyncio.timeout(_KNOWN_AGAIN_S):
                    again = await anext(records, None)
            except TimeoutError as exc:
                _log.info("offset %d was not delivered again", last.offset)
                if position.is_silent:
                    raise _OtherStreamError from exc
                position.is_silent = True
                return
            if again is None:
                return
            position.is_silent = False
            _log.debug("offset %d is delivered first, after %d", again.offset, last.offset)
            if again.offset > last.offset:  # `last` itself was removed for its age
                yield again
            elif again != last:
                raise _OtherStreamError
        async for record in records:
            yield record


class _Loss(enum.Enum):
    """Why a consumer delivers nothing more."""

    CONNECTION = enum.auto()
    UNDECODABLE = enum.auto()


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A record, and how to acknowledge it and all before it."""

    record: StreamRecord
    ack: Callable[[], Awaitable[object]]


async def last_offset(
    connection: BrokerConnection,
    stream: str,
    *,
    silence_s: float = _KNOWN_AGAIN_S,
    newest_s: float = _NEWEST_S,
) -> int | None:
    """The offset of the newest message of a stream.

    The broker counts the messages of a stream late (seen with RabbitMQ 4.0), so the newest ones
    are read, for a second. It delivers what it has confirmed before.

    Args:
        connection: The broker.
        stream: The stream's name.
        silence_s: A stream that delivers nothing for this long holds nothing.
        newest_s: How long to read the newest messages, after the first of them.

    Returns:
        None if the stream holds no message, or none of the newest can be decoded.

    Raises:
        EventsUnavailableError: the stream cannot be read.
    """
    last: int | None = None
    try:
        async with _consumer(
            connection, stream, "last", prefetch=PREFETCH, isolated=False
        ) as messages:
            with suppress(TimeoutError):
                async with asyncio.timeout(silence_s) as waiting:
                    while isinstance(message := await messages.get(), _Delivery):
                        if last is None:
                            waiting.reschedule(asyncio.get_running_loop().time() + newest_s)
                        if message.record.offset != _NO_OFFSET:
                            last = message.record.offset
                        elif last is not None:
                            last += 1
                        await message.ack()
    except _UndecodableError:
        return last
    except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
        raise EventsUnavailableError(_unreadable(stream, exc)) from exc
    return last


_Messages = asyncio.Queue[_Delivery | _Loss]
_Attach = Callable[..., AbstractAsyncContextManager[_Messages]]


@asynccontextmanager
async def _consumer(
    connection: BrokerConnection,
    stream: str,
    start: Start | Literal["last"],
    *,
    prefetch: int,
    isolated: bool,
) -> AsyncIterator[_Messages]:
    """The messages of a new consumer, ended by a `_Loss`.

    Args:
        connection: The broker.
        stream: The stream's name.
        start: Where to begin.
        prefetch: How many unacknowledged messages the broker sends at most.
        isolated: Whether to use a separate connection, which no other consumer can break.
    """
    if isolated:
        own = connection.separate()
        try:
            async with _consumer(own, stream, start, prefetch=prefetch, isolated=False) as messages:
                yield messages
        finally:
            with suppress(_UndecodableError), _undecodable_errors():
                await asyncio.shield(own.close())
        return
    messages = asyncio.Queue()  # holds no more than the prefetch

    async def receive(message: DeliveredMessage) -> None:
        messages.put_nowait(_delivery(message))

    with _undecodable_errors():
        channel = await connection.channel(prefetch)
    try:
        channel.close_callbacks.add(lambda _, exc: messages.put_nowait(_loss(exc)))
        # Below aio-pika, which fails on odd delivery modes and expirations and drops those
        # messages without acknowledging them.
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: messages.put_nowait(_Loss.CONNECTION))
        arguments: Any = {_OFFSET_HEADER: start}
        with normalize_connection_errors(), _undecodable_errors():
            await channel.get_queue(stream, ensure=True)
            await underlay.basic_consume(stream, receive, arguments=arguments)
        _log.debug("reading %s from %s on, %d messages at a time", stream, start, prefetch)
        yield messages
    finally:
        with suppress(_UndecodableError), _undecodable_errors():
            await asyncio.shield(close_quietly(channel.close()))


def _delivery(message: DeliveredMessage) -> _Delivery | _Loss:
    headers = message.header.properties.headers or {}
    offset, tag = headers.get(_OFFSET_HEADER), message.delivery_tag
    if tag is None:  # the broker sets it on every delivery
        return _Loss.CONNECTION
    if not isinstance(offset, int):
        # The broker sets it too: a decoder that reads what it cannot decode as empty headers, as
        # that of a worker, a gateway or a command does, has lost it.
        offset = _NO_OFFSET
    signature, key_id, traceparent = (_text(headers, name) for name in _HEADERS)
    record = StreamRecord(offset, message.body, signature, key_id, traceparent)
    return _Delivery(record, partial(message.channel.basic_ack, tag, multiple=True))


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


async def _drain(
    messages: _Messages, first: int | None, *, ack_every: int
) -> AsyncGenerator[StreamRecord, None]:
    """The records until the consumer is lost.

    A record is acknowledged only after it was yielded: whatever the acknowledgment brings about,
    the record has been read.

    Args:
        messages: What the consumer delivers.
        first: The offset of the first record, if it is known.
        ack_every: How many records to acknowledge at once.

    Raises:
        _UndecodableMessageError: it was lost to a message that cannot be decoded.
    """
    unacknowledged = 0
    while isinstance(message := await messages.get(), _Delivery):
        record = message.record
        if record.offset == _NO_OFFSET:
            if first is None:
                raise _UndecodableMessageError(None)
            # A stream is delivered without gaps, so this is its place. Reading it by itself, as
            # what breaks a connection, would let a few hundred of them stop every reader.
            record = StreamRecord(first, record.body, "")
        yield record
        first = record.offset + 1
        unacknowledged += 1
        if unacknowledged >= ack_every:
            with normalize_connection_errors(), _undecodable_errors():
                await message.ack()
            unacknowledged = 0
    if message is _Loss.UNDECODABLE:
        raise _UndecodableMessageError(first)


def _loss(exc: BaseException | None) -> _Loss:
    loss = _Loss.UNDECODABLE if _is_undecodable(exc) else _Loss.CONNECTION
    _log.debug("a consumer was lost: %s (%s)", loss.name, type(exc).__name__)
    return loss


def _is_undecodable(exc: BaseException | None) -> bool:
    """Whether this is an error of the client library's decoder."""
    if isinstance(exc, OSError):  # of a timestamp; all other ones are the network's
        return exc.errno == errno.EOVERFLOW
    return isinstance(
        exc, InvalidFrameError | ValueError | OverflowError | RecursionError | LookupError
    )


@contextmanager
def _undecodable_errors() -> Iterator[None]:
    """Raise an error of the decoder, which every call on the connection gets, as what it is."""
    try:
        yield
    except Exception as exc:
        if _is_undecodable(exc):
            raise _UndecodableError from exc
        raise


def _unreadable(stream: str, cause: BaseException) -> str:
    match cause:
        case ChannelNotFoundEntity():
            problem = f"no worker has declared {stream}"
            return problem + (_START_A_WORKER if stream in _OF_WORKERS else _UNKNOWN_PUBLISHER)
        case ChannelAccessRefused():
            pattern = "^" + stream.replace(".", r"\.") + "$"
            return f"the broker's user may not read {stream}: it needs read permission {pattern}"
        case _:
            return f"the broker cannot be reached ({describe_broker_failure(cause)})"
