"""Reading a stream of events from any moment on, across lost connections (SPEC 6.2, 6.7, 6.8).

`follow` yields every message with its offset and resumes at the next offset after a loss;
`Verifier` accepts only messages signed by one of the deployment's event keys.

Anyone with write access to the exchange can put a message on the stream whose properties the client
library cannot decode (a timestamp beyond the year 9999, a string that is not UTF-8). Its decoder
raises while it reads the connection, and the connection is lost. Which of the messages in flight
caused it is unknown, and another reader of the connection may have received it. So after such a
loss the next message is read by itself: on a separate connection, attached at its offset, with
nothing else in flight. If its delivery breaks two such connections in a row, it is skipped. Do not
publish on the connection that reads events: such a loss would leave publishes without an outcome.

It must never declare a stream, never yield an event whose signature it has not checked, and never
skip a decodable message: an error while it connects, attaches, acknowledges or closes says nothing
about any message.
"""

import asyncio
import errno
import itertools
import logging
import math
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

from keyturn.crypto.signatures import EventVerifier, VerifyKey
from keyturn.errors import EventsUnavailableError, MalformedRequestError
from keyturn.messages.codec import TracedEvent, parse_batch, parse_traced_event
from keyturn.messages.events import Event
from keyturn.messages.worker_reports import WorkerReported, parse_worker_report
from keyturn.publisher.connection import (
    BrokerConnection,
    close_quietly,
    describe_broker_failure,
    normalize_connection_errors,
)
from keyturn.tasks import cancel_all
from keyturn.topology import (
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EVENTS_STREAM,
    MARKS_STREAM,
    SIGNATURE_HEADER,
    UNSIGNED_DEAD_QUEUE,
    WORKERS_STREAM,
)

_log = logging.getLogger(__name__)

PREFETCH: Final = 64  # a record may be a batch of 256 KiB
_ACKNOWLEDGE_EVERY: Final = 16
_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
# After each skipped message, until one is readable: a flood of them must not make every reader
# reconnect as fast as it can.
_SKIP_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0)
_LOSSES_OF_PROOF: Final = 2
_KNOWN_AGAIN_S: Final = 5.0
_NEWEST_S: Final = 1.0
_OFFSET_HEADER: Final = "x-stream-offset"
_NO_OFFSET: Final = -1
_HEADERS: Final = (SIGNATURE_HEADER, EVENT_KEY_HEADER)
_BATCH_HINT: Final = b'"events":['
_BATCH_HINT_WITHIN: Final = 64
_START_A_WORKER: Final = "; start one"
_UNKNOWN_PUBLISHER: Final = (
    ": none has started yet, or the workers do not know this publisher. In that case its requests "
    f"are in {UNSIGNED_DEAD_QUEUE}: see `keyturn dead list`"
)
_OF_WORKERS: Final = (EVENTS_STREAM, AUDIT_STREAM, WORKERS_STREAM, MARKS_STREAM)
# How long before a moment to begin, if the messages after it cannot be decoded. The first attempt
# is on the shared connection, which another reader may have broken.
_EARLIER: Final = (
    timedelta(),
    timedelta(),
    timedelta(minutes=1),
    timedelta(hours=1),
    timedelta(days=1),
)

Start = datetime | int | Literal["first"]
"""The start of reading: a moment (to the second, perhaps a little earlier), an offset, or the
oldest event in the stream."""


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One message of a stream, not yet verified.

    Attributes:
        offset: Its position in the stream.
        body: The event's bytes as signed.
        signature: The header `keyturn-signature`, base64; empty if missing.
        key_id: The header `keyturn-event-key`: the key that signed it. Not signed itself.
        skipped: The number of undecodable messages skipped directly before it.
    """

    offset: int
    body: bytes
    signature: str
    key_id: str = ""
    skipped: int = field(default=0, compare=False)


_Message = TypeVar("_Message")
_ParseEvents = Callable[[bytes], tuple[TracedEvent, ...]]


def _parse_one(body: bytes) -> tuple[TracedEvent, ...]:
    return (parse_traced_event(body),)


class Verifier:
    """Turns records into messages of the deployment, and counts unsigned ones.

    Each method accepts one kind of message only: a genuine message of another kind that an attacker
    put on the stream is ignored.

    Args:
        deployment: The installation that events must be signed for.
        keys: The deployment's public event keys: the current one, and any earlier or later ones
            (SPEC 6.10).

    Attributes:
        deployment: As given.
        refused: The number of records ignored because no key verified them.
    """

    def __init__(self, deployment: str, keys: Sequence[VerifyKey]) -> None:
        self.deployment = deployment
        self._signatures = EventVerifier(deployment, keys)
        self.refused = 0

    def events(self, record: StreamRecord) -> tuple[Event, ...]:
        """Return its events: none if its signature fails or this version does not know its type.

        From a batch, it returns those that this version can read.
        """
        return tuple(one.event for one in self.traced_events(record))

    def traced_events(self, record: StreamRecord) -> tuple[TracedEvent, ...]:
        """Return the same as `events`, each with its `traceparent`."""
        is_signed, is_batch_signed = self._signatures.is_signed, self._signatures.is_batch_signed
        forms: list[tuple[Callable[[bytes, str, str], bool], _ParseEvents]]
        forms = [(is_signed, _parse_one), (is_batch_signed, parse_batch)]
        if _BATCH_HINT in record.body[:_BATCH_HINT_WITHIN]:
            forms.reverse()  # the bytes show which is likely; the signature proves it
        for verifies, parse in forms:
            if verifies(record.body, record.signature, record.key_id):
                return self._readable(record, parse) or ()
        self._refuse(record)
        return ()

    def worker_report(self, record: StreamRecord) -> WorkerReported | None:
        """Return a worker's report about itself (SPEC 16.2), or None if it is not such a report."""
        if not self._signatures.is_signed(record.body, record.signature, record.key_id):
            self._refuse(record)
            return None
        return self._readable(record, parse_worker_report)

    def _refuse(self, record: StreamRecord) -> None:
        self.refused += 1
        _log.warning("ignored a message that is not signed, at offset %d", record.offset)

    def _readable(
        self, record: StreamRecord, parse: Callable[[bytes], _Message]
    ) -> _Message | None:
        try:
            return parse(record.body)
        except MalformedRequestError:
            _log.debug("skipped a message that this version does not know, at %d", record.offset)
            return None


class _InterruptedError(Exception):
    """The consumer was lost."""


class _UndecodableError(Exception):
    """The connection was lost because the client library cannot decode a frame."""


class _HandshakeError(Exception):
    """The client library cannot decode the broker's frames before any delivery."""


class _OtherStreamError(Exception):
    """A stream of that name exists, but it is not the one read before."""


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
    """Yield every message of one stream from `start` on, forever, each one once.

    Args:
        connection: The broker; not the connection that publishes (see the module).
        start: The start of reading.
        stream: The stream to read.
        note_problem: Called with the reason whenever a later attempt to read fails, and with None
            whenever one succeeds.

    Raises:
        EventsUnavailableError: it cannot be read at the first attempt. Later losses are waited out.
    """
    reader = _Reader(connection, stream, start, note_problem)
    attempt = 0
    while True:
        try:
            async with aclosing(reader.read()) as records:
                async for record in records:
                    attempt = 0
                    yield record
            continue
        except _InterruptedError:
            pass
        except _OtherStreamError:
            _log.warning("the stream of events was declared again; reading it from its start")
            reader.start_again()
            continue
        except _HandshakeError as exc:
            if not reader.has_attached:
                raise EventsUnavailableError("the broker's frames cannot be decoded") from exc
            _log.debug("reading events failed before a consumer was attached")
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            if not reader.has_attached:
                raise EventsUnavailableError(_unreadable(stream, exc)) from exc
            _log.debug("reading events failed (%s)", type(exc).__name__)
            note_problem(_unreadable(stream, exc))
        pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        attempt += 1
        _log.info("reading events was interrupted; retrying in %g s", pause_s)
        await asyncio.sleep(pause_s)


class _Reader:
    """Reads one stream, and keeps its position.

    Attributes:
        has_attached: Whether a consumer ever attached.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        stream: str,
        start: Start,
        note_problem: Callable[[str | None], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._start = start
        self._note_problem = note_problem
        self.has_attached = False
        self.start_again()

    def start_again(self) -> None:
        """Forget the position."""
        # The next offset; None until the first message since a moment is known.
        self._next: int | None = None
        # The message before it, by which the stream is recognized; None if unknown.
        self._last: StreamRecord | None = None
        self._skipped = 0
        self._has_waited_for_last = False

    async def read(self) -> AsyncGenerator[StreamRecord, None]:
        """Yield the records from the next one on, until an undecodable message was passed.

        Raises:
            _InterruptedError: a consumer was lost.
            _OtherStreamError: the stream was deleted and declared again.
            _HandshakeError: no consumer could be attached.
        """
        if self._next is None:
            self._next = await self._first_offset()
        try:
            async with aclosing(self._read_many(self._next)) as records:
                async for record in records:
                    yield self._advance(record)
        except _UndecodableError:
            _log.info("reading one message by itself from offset %d on", self._next)
            yield self._advance(await self._read_one(self._next))

    def _advance(self, record: StreamRecord) -> StreamRecord:
        skipped = self._skipped
        self._next, self._last = record.offset + 1, record
        self._skipped, self._has_waited_for_last = 0, False
        return replace(record, skipped=skipped) if skipped else record

    @asynccontextmanager
    async def _attach(
        self, start: Start, *, prefetch: int = 1, isolated: bool = False
    ) -> "AsyncIterator[_Messages]":
        is_attached = False
        try:
            async with _consumer(
                self._connection, self._stream, start, prefetch=prefetch, isolated=isolated
            ) as messages:
                is_attached = self.has_attached = True
                self._note_problem(None)
                yield messages
        except _UndecodableError as exc:
            if isolated and not is_attached:  # so no message of the stream caused it
                raise _HandshakeError from exc
            raise

    async def _read_many(self, offset: int) -> AsyncGenerator[StreamRecord, None]:
        """Yield the records from `offset` on that one consumer delivers."""
        last = self._last
        start = offset if last is None else last.offset
        async with (
            self._attach(start, prefetch=PREFETCH) as messages,
            aclosing(_drain(messages, start)) as records,
        ):
            if last is not None and (first := await self._recognize(last, records)) is not None:
                yield first
            async for record in records:
                yield record

    async def _recognize(
        self, last: StreamRecord, records: AsyncGenerator[StreamRecord, None]
    ) -> StreamRecord | None:
        """Receive the last record once more; if it is removed, return the record that came instead.

        A stream that was deleted and declared again counts from 0: without this check, its events
        would be taken for old ones and silently ignored. A stream never drops its tail for age or
        size, so the same stream delivers a record from `last` on at once. A slow broker may not, so
        only a second consumer that waits in vain proves that the stream is another one.

        Raises:
            _OtherStreamError: `last` is not at its offset.
        """
        try:
            async with asyncio.timeout(_KNOWN_AGAIN_S):
                again = await anext(records)
        except TimeoutError as exc:
            _log.info("offset %d was not delivered again", last.offset)
            if self._has_waited_for_last:
                raise _OtherStreamError from exc
            self._has_waited_for_last = True
            raise _InterruptedError from exc
        self._has_waited_for_last = False
        _log.debug("offset %d is delivered first, after %d", again.offset, last.offset)
        if again.offset > last.offset:  # `last` itself was removed for its age
            return again
        if again != last:
            raise _OtherStreamError
        return None

    async def _read_one(self, offset: int) -> StreamRecord:
        """Return the first decodable record from `offset` on, skipping undecodable ones."""
        while True:
            for _ in range(_LOSSES_OF_PROOF):
                async with self._attach(offset, isolated=True) as messages:
                    with suppress(_UndecodableError):
                        return (await _received(messages)).at(offset)
                _log.info("the message at offset %d broke a connection", offset)
            offset += 1
            self._skipped += 1
            self._next, self._last = offset, None
            _log.warning("skipped a message that cannot be decoded, before offset %d", offset)
            await asyncio.sleep(_SKIP_PAUSES_S[min(self._skipped, len(_SKIP_PAUSES_S)) - 1])

    async def _first_offset(self) -> int:
        """Return the first offset to read; for a moment, wait for the first event since then.

        If that event cannot be decoded, its offset is unknown: reading begins earlier.
        """
        if not isinstance(self._start, datetime):
            return 0 if self._start == "first" else self._start
        for number, earlier in enumerate(_EARLIER):
            with suppress(_UndecodableError):
                return await self._offset_since(self._start - earlier, isolated=number > 0)
            _log.info("a message broke a connection before the first event was known")
        return 0

    async def _offset_since(self, since: datetime, *, isolated: bool) -> int:
        """Wait for the first event since then, and return its offset.

        A consumer that asks for a moment after the last event is placed behind it, and permanently
        misses an event that is written while it attaches (seen with RabbitMQ 4.0). So a second
        consumer attaches after the first one has: either it gets the missed event, or there was
        none. Once there is an event, asking for the moment again finds a stable position; but not
        if our clock runs ahead of the broker's, so the event counts, too.
        """
        async with (
            self._attach(since, isolated=isolated) as earlier,
            self._attach(since, isolated=isolated) as later,
        ):
            offset = await _first_of(earlier, later)
        async with self._attach(since, isolated=isolated) as again:
            try:
                async with asyncio.timeout(_KNOWN_AGAIN_S):
                    return min(offset, await _first_of(again))
            except TimeoutError:
                return offset


async def _first_of(*consumers: "_Messages") -> int:
    """Return the offset of the first message of any of these consumers; errors as `_received`."""
    waits = [asyncio.ensure_future(_received(messages)) for messages in consumers]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        offset = min(wait.result().record.offset for wait in done)
    finally:
        await cancel_all(waits)
    if offset == _NO_OFFSET:
        raise _UndecodableError
    return offset


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A record, and a way to acknowledge it and all before it."""

    record: StreamRecord
    ack: Callable[[], Awaitable[object]]

    def at(self, offset: int) -> StreamRecord:
        """Return the record, at this offset if it has none of its own.

        A stream is delivered without gaps, so that is its position. Reading such messages by
        themselves, like a message that breaks a connection, would let a few hundred of them stop
        every reader.
        """
        record = self.record
        return StreamRecord(offset, record.body, "") if record.offset == _NO_OFFSET else record


async def last_offset(
    connection: BrokerConnection,
    stream: str,
    *,
    silence_s: float = _KNOWN_AGAIN_S,
    newest_s: float = _NEWEST_S,
) -> int | None:
    """Return the offset of the newest message of a stream.

    The broker counts the messages of a stream late (seen with RabbitMQ 4.0), so the newest ones are
    read, until they end. It delivers every message confirmed before.

    Args:
        connection: The broker.
        stream: The stream's name.
        silence_s: A stream that delivers nothing for this long is empty.
        newest_s: The newest messages end where none follows for this long, or after a second.

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
                    latest_s = math.inf
                    while isinstance(message := await messages.get(), _Delivery):
                        now_s = asyncio.get_running_loop().time()
                        latest_s = min(latest_s, now_s + _NEWEST_S)
                        waiting.reschedule(min(latest_s, now_s + newest_s))
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


_Loss = _InterruptedError | _UndecodableError
_Messages = asyncio.Queue[_Delivery | _Loss]


@asynccontextmanager
async def _consumer(
    connection: BrokerConnection,
    stream: str,
    start: Start | Literal["last"],
    *,
    prefetch: int,
    isolated: bool,
) -> AsyncIterator[_Messages]:
    """Yield the messages of a new consumer, ended by the reason of its loss.

    Args:
        connection: The broker.
        stream: The stream's name.
        start: The start of reading.
        prefetch: The maximum of unacknowledged messages that the broker sends.
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
        # Below aio-pika, which fails on odd delivery modes and expirations and drops those messages
        # without acknowledging them.
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(
            lambda _: messages.put_nowait(_InterruptedError())
        )
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
        return _InterruptedError()
    if not isinstance(offset, int):
        # The broker sets it, too: a decoder that reads undecodable headers as empty, as in a
        # worker, a gateway or a command, has lost it.
        offset = _NO_OFFSET
    signature, key_id = (_text(headers, name) for name in _HEADERS)
    record = StreamRecord(offset, message.body, signature, key_id)
    return _Delivery(record, partial(message.channel.basic_ack, tag, multiple=True))


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


async def _received(messages: _Messages) -> _Delivery:
    """Return the next message.

    Raises:
        _InterruptedError: the consumer was lost.
        _UndecodableError: it was lost to a message that cannot be decoded.
    """
    message = await messages.get()
    if isinstance(message, _Delivery):
        return message
    raise message


async def _drain(messages: _Messages, offset: int) -> AsyncGenerator[StreamRecord, None]:
    """Yield the records from `offset` on until the consumer is lost; errors as `_received`.

    A record is acknowledged only after it was yielded: whatever the acknowledgment causes, the
    record has been read. One acknowledgment covers many messages: the others keep the stream
    flowing.
    """
    for number in itertools.count(1):
        delivery = await _received(messages)
        record = delivery.at(offset)
        yield record
        offset = record.offset + 1
        if number % _ACKNOWLEDGE_EVERY == 0:
            with normalize_connection_errors(), _undecodable_errors():
                await delivery.ack()


def _loss(exc: BaseException | None) -> _Loss:
    loss = _UndecodableError() if _is_undecodable(exc) else _InterruptedError()
    _log.debug("a consumer was lost: %s (%s)", type(loss).__name__, type(exc).__name__)
    return loss


def _is_undecodable(exc: BaseException | None) -> bool:
    """Return whether this is an error of the client library's decoder."""
    if isinstance(exc, OSError):  # from a timestamp; all others are the network's
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
