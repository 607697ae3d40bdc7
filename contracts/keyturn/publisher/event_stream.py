"""Reading a stream of events, from any moment on, across lost connections (SPEC 6.2, 6.7, 6.8).

`follow` gives every message with its offset and comes back at the next offset after a
loss; `Verifier` believes only what one of the deployment's event keys has signed.
It must never declare a stream, and never hand out an event whose signature it has
not checked.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from keyturn.crypto import SealError, VerifyKey
from keyturn.errors import EventsUnavailableError, MalformedRequestError
from keyturn.messages import Event, parse_event
from keyturn.publisher.connection import (
    BrokerConnection,
    close_quietly,
    normalize_connection_errors,
)
from keyturn.topology import EVENT_KEY_HEADER, EVENTS_STREAM, SIGNATURE_HEADER

_log = logging.getLogger(__name__)

PREFETCH: Final = 256
_ACK_EVERY: Final = PREFETCH // 4  # one frame for many; the rest keeps the stream flowing
_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_KNOWN_AGAIN_S: Final = 5.0
_LOST: Final = None
_SIGNED_BY: Final = (SIGNATURE_HEADER, EVENT_KEY_HEADER)
_NOT_READABLE: Final = (ChannelNotFoundEntity, ChannelAccessRefused)
_START: Final = "; start one"

Start = datetime | int | Literal["first"]
"""Where to begin: at a moment, to the second and perhaps a little earlier, at an offset, or
with the oldest event that the stream still holds."""


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One message of the stream, not yet believed."""

    offset: int
    body: bytes
    signature: str
    key_id: str = ""  # of the key that signed it, says a header that nobody signed


class Verifier:
    """Turns messages into events, and counts those that nobody should believe.

    Args:
        deployment: The installation that events must be signed for.
        keys: The deployment's public event keys: the one in use, and any that were in use
            or will be (SPEC 6.10).
    """

    def __init__(self, deployment: str, keys: Sequence[VerifyKey]) -> None:
        self._deployment = deployment
        self._keys = tuple((key.id, key) for key in keys)
        self.refused = 0

    def event(self, told: StreamRecord) -> Event | None:
        """The event, or None where its signature fails or this version does not know it."""
        if not self._is_signed(told):
            self.refused += 1
            _log.warning("ignored an event that is not signed, at offset %d", told.offset)
            return None
        try:
            return parse_event(told.body)
        except MalformedRequestError:
            _log.debug("skipped an event that this version does not know, at %d", told.offset)
            return None

    def _is_signed(self, told: StreamRecord) -> bool:
        named_first = sorted(self._keys, key=lambda item: item[0] != told.key_id)
        return any(self._has_signed(key, told) for _, key in named_first)

    def _has_signed(self, key: VerifyKey, told: StreamRecord) -> bool:
        try:
            key.verify_event(self._deployment, told.body, told.signature)
        except SealError:
            return False
        return True


async def follow(
    link: BrokerConnection, start: Start, *streams: str
) -> AsyncGenerator[StreamRecord, None]:
    """Every message of one stream from `start` on, for ever, each one once.

    Args:
        link: The broker.
        start: Where to begin.
        streams: The stream to read, then what serves where it does not exist (workers
            before 0.5 declare no stream for a publisher) or may not be read.

    Raises:
        EventsUnavailableError: none of them can be read at the first try. Later losses are
            waited out.
    """
    last: StreamRecord | None = None
    first, attempt, place = True, 0, start
    stream, *others = streams
    refusals: list[str] = []
    while True:
        try:
            if isinstance(place, datetime):
                async with _consumer(link, stream, place, prefetch=1) as messages:
                    first = False
                    place = await _first_offset(link, stream, place, messages)
                continue
            async with _consumer(link, stream, place if last is None else last.offset) as messages:
                first = False
                async with aclosing(_after(last, _drain(messages))) as told_after:
                    async for told in told_after:
                        last, attempt = told, 0
                        yield told
        except _InterruptedError:
            pass
        except _OtherStreamError:
            _log.warning("the stream of events was made anew; reading it from the start")
            last, place = None, start
            continue
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            if first:
                refusals.append(_unreadable(stream, exc))
                if not others or not isinstance(exc, _NOT_READABLE):
                    raise EventsUnavailableError("; ".join(refusals)) from exc
                stream = others.pop(0)
                _log.info("%s; reading %s in its place", refusals[-1], stream)
                continue
            _log.debug("reading events failed (%s)", type(exc).__name__)
        pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        attempt += 1
        _log.info("reading events was interrupted; again in %g s", pause_s)
        await asyncio.sleep(pause_s)


class _InterruptedError(Exception):
    """The consumer was lost before it brought anything."""


async def _first_offset(
    link: BrokerConnection, stream: str, since: datetime, messages: "_Messages"
) -> int:
    """The offset of the first event since then, waited for.

    A consumer that asks for a moment after the last event is put behind it, and misses for
    good an event that is written while it attaches (seen with RabbitMQ 4.0). So a second
    one attaches after `messages` has: either it finds what the first one missed, or there
    was nothing to miss. Once anything is told, asking for the moment finds a place that
    stands; but not where our clock runs ahead of the broker's, so that what was told
    counts too.

    Raises:
        _InterruptedError: a consumer was lost.
    """
    async with _consumer(link, stream, since, prefetch=1) as later:
        told = await _first_of(messages, later)
    async with _consumer(link, stream, since, prefetch=1) as again:
        try:
            async with asyncio.timeout(_KNOWN_AGAIN_S):
                return min(told, await _first_of(again))
        except TimeoutError:
            return told


async def _first_of(*consumers: "_Messages") -> int:
    """The offset of the first message of any of them."""
    waits = [asyncio.ensure_future(messages.get()) for messages in consumers]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        message = done.pop().result()
    finally:
        for wait in waits:
            wait.cancel()
    if message is _LOST or not isinstance(offset := message.headers.get("x-stream-offset"), int):
        raise _InterruptedError
    return offset


class _OtherStreamError(Exception):
    """A stream of that name stands, but not the one that was read before."""


async def _after(
    last: StreamRecord | None, messages: AsyncGenerator[StreamRecord, None]
) -> AsyncGenerator[StreamRecord, None]:
    """The messages after `last`, which the reader asks for once more to know the stream by.

    A stream that was deleted and declared again counts from 0: without this, its events
    would be taken for old ones and passed over in silence. Its tail is never removed for
    age or size, so the same stream has at once something to say from `last` on.

    Raises:
        _OtherStreamError: `last` does not stand where it stood.
    """
    async with aclosing(messages):
        if last is not None:
            try:
                async with asyncio.timeout(_KNOWN_AGAIN_S):
                    again = await anext(messages, None)
            except TimeoutError as exc:
                raise _OtherStreamError from exc
            if again is None:
                return
            if again.offset > last.offset:  # `last` itself was removed for its age
                yield again
            elif again != last:
                raise _OtherStreamError
        async for told in messages:
            yield told


_Messages = asyncio.Queue[AbstractIncomingMessage | None]


@asynccontextmanager
async def _consumer(
    link: BrokerConnection, stream: str, start: Start, *, prefetch: int = PREFETCH
) -> AsyncIterator[_Messages]:
    """A consumer's queue of messages; `_LOST` comes in it when no more will."""
    messages: _Messages = asyncio.Queue()  # holds no more than the prefetch
    channel = await link.channel(prefetch)
    try:
        channel.close_callbacks.add(lambda *_: messages.put_nowait(_LOST))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: messages.put_nowait(_LOST))
        with normalize_connection_errors():
            queue = await channel.get_queue(stream, ensure=True)
            await queue.consume(messages.put, arguments={"x-stream-offset": start})
        yield messages
    finally:
        await asyncio.shield(close_quietly(channel.close()))


async def _drain(messages: _Messages) -> AsyncGenerator[StreamRecord, None]:
    unacknowledged = 0
    while (message := await messages.get()) is not _LOST:
        unacknowledged += 1
        if unacknowledged >= _ACK_EVERY:
            with normalize_connection_errors():
                await message.ack(multiple=True)
            unacknowledged = 0
        offset = message.headers.get("x-stream-offset")
        if isinstance(offset, int):
            signature, key_id = (_text(message, name) for name in _SIGNED_BY)
            yield StreamRecord(offset, message.body, signature, key_id)


def _text(message: AbstractIncomingMessage, header: str) -> str:
    value = message.headers.get(header)
    return value if isinstance(value, str) else ""


def _unreadable(stream: str, cause: BaseException) -> str:
    match cause:
        case ChannelNotFoundEntity():
            return f"no worker has declared {stream}" + _START * (stream == EVENTS_STREAM)
        case ChannelAccessRefused():
            pattern = "^" + stream.replace(".", r"\.") + "$"
            return f"the broker's user may not read {stream}: it needs read permission {pattern}"
        case _:
            return f"the broker cannot be reached ({type(cause).__name__})"
