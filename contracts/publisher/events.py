"""Reading the stream of events, from any moment on, across lost connections (SPEC 6.2, 6.7).

`follow` gives every message with its offset and comes back at the next offset after a
loss; `Verifier` believes only what the deployment's event key has signed.
It must never declare the stream, and never hand out an event whose signature it has
not checked.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from contracts.errors import MalformedRequestError
from contracts.messages import Event, parse_event
from contracts.publisher.errors import EventsUnavailableError
from contracts.publisher.link import Link
from contracts.sealing import SealError, VerifyKey
from contracts.topology import EVENTS_STREAM, SIGNATURE_HEADER

_log = logging.getLogger(__name__)

PREFETCH: Final = 256
_ACK_EVERY: Final = PREFETCH // 4  # one frame for many; the rest keeps the stream flowing
_PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_LOST: Final = None

Start = datetime | int | Literal["first"]
"""Where to begin: at a moment, to the second and perhaps a little earlier, at an offset, or
with the oldest event that the stream still holds."""


@dataclass(frozen=True, slots=True)
class Told:
    """One message of the stream, not yet believed."""

    offset: int
    body: bytes
    signature: str


class Verifier:
    """Turns messages into events, and counts those that nobody should believe.

    Args:
        deployment: The installation that events must be signed for.
        key: The deployment's public event key.
    """

    def __init__(self, deployment: str, key: VerifyKey) -> None:
        self._deployment = deployment
        self._key = key
        self.refused = 0

    def event(self, told: Told) -> Event | None:
        """The event, or None where its signature fails or this version does not know it."""
        try:
            self._key.verify_event(self._deployment, told.body, told.signature)
        except SealError:
            self.refused += 1
            _log.warning("ignored an event that is not signed, at offset %d", told.offset)
            return None
        try:
            return parse_event(told.body)
        except MalformedRequestError:
            _log.debug("skipped an event that this version does not know, at %d", told.offset)
            return None


async def follow(link: Link, start: Start) -> AsyncGenerator[Told, None]:
    """Every message of the stream from `start` on, for ever, each one once.

    Raises:
        EventsUnavailableError: the stream cannot be read at the first try. Later losses are
            waited out.
    """
    position = start
    first, attempt = True, 0
    while True:
        try:
            async with _consumer(link, position) as messages:
                first, attempt = False, 0
                async with aclosing(_drain(messages)) as drained:
                    async for told in drained:
                        if not isinstance(position, int) or told.offset >= position:
                            position = told.offset + 1
                            yield told
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
            if first:
                raise _unavailable(exc) from exc
            _log.debug("reading events failed (%s)", type(exc).__name__)
        pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
        attempt += 1
        _log.info("reading events was interrupted; again in %g s", pause_s)
        await asyncio.sleep(pause_s)


_Messages = asyncio.Queue[AbstractIncomingMessage | None]


@asynccontextmanager
async def _consumer(link: Link, start: Start) -> AsyncIterator[_Messages]:
    """A consumer's queue of messages; `_LOST` comes in it when no more will."""
    messages: _Messages = asyncio.Queue()  # holds no more than the prefetch
    channel = await link.channel(PREFETCH)
    try:
        channel.close_callbacks.add(lambda *_: messages.put_nowait(_LOST))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: messages.put_nowait(_LOST))
        queue = await channel.get_queue(EVENTS_STREAM, ensure=True)
        await queue.consume(messages.put, arguments={"x-stream-offset": start})
        yield messages
    finally:
        await asyncio.shield(_close(channel))


async def _drain(messages: _Messages) -> AsyncGenerator[Told, None]:
    unacknowledged = 0
    while (message := await messages.get()) is not _LOST:
        unacknowledged += 1
        if unacknowledged >= _ACK_EVERY:
            await message.ack(multiple=True)
            unacknowledged = 0
        offset = message.headers.get("x-stream-offset")
        signature = message.headers.get(SIGNATURE_HEADER)
        if isinstance(offset, int):
            yield Told(offset, message.body, signature if isinstance(signature, str) else "")


async def _close(channel: AbstractChannel) -> None:
    with suppress(TimeoutError, *CONNECTION_EXCEPTIONS):
        async with asyncio.timeout(5):
            await channel.close()


def _unavailable(cause: BaseException) -> EventsUnavailableError:
    match cause:
        case ChannelNotFoundEntity():
            why = f"no worker has declared {EVENTS_STREAM}; start one"
        case ChannelAccessRefused():
            why = f"the broker's user may not read {EVENTS_STREAM}"
        case _:
            why = f"the broker cannot be reached ({type(cause).__name__})"
    return EventsUnavailableError(why)
