"""Dead letters are bounded in age and bytes, by one worker at a time (SPEC 6.9).

The bounds are settings, never arguments of the queues, which cannot change. The worker that
holds an exclusive queue does it; where it dies, the broker gives the place to another. Letters
are taken without acknowledgement, the surplus is acknowledged, and the rest goes back: what
stays is neither copied nor reordered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import structlog
from aio_pika import connect
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import has_control_characters, parse_time
from keyturn.messages import load_json
from keyturn.publisher.connection import normalize_connection_errors
from keyturn.topology import (
    CODE_HEADER,
    DEAD_AT_HEADER,
    DEAD_KEEPER_LOCK,
    DEAD_LOCK,
    PUBLISHER_HEADER,
    UNSIGNED_DEAD_QUEUE,
)
from keyturn_workers.amqp.locks import locked
from keyturn_workers.amqp.retry import utc_now
from keyturn_workers.worker.metrics import WorkerMetrics

# What the broker keeps of a letter beside its body: headers, and its own notes.
_OVERHEAD_BYTES: Final = 4096
# No consumer is given more at once (the prefetch is a number of 16 bits).
TAKEN_AT_MOST: Final = 65_535
_IDLE_S: Final = 5
# Measured anew once so much more is there: reading all letters for each new one would cost
# more than what they are bounded for.
_GROWTH: Final = 0.1
_GROWTH_AT_LEAST: Final = 20
# Down to this part of the bound, so that the next letter does not exceed it again.
_DOWN_TO: Final = 0.9
_MEASURED_FOR_S: Final = 900
_LOGGED_AT_MOST: Final = 100
_RETURNED_TIMEOUT_S: Final = 10
_ASK_AGAIN_S: Final = 0.02

Reason = Literal["age", "bytes"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How old the letters of a queue become, and how many bytes they take together."""

    max_age: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One letter as it was read: its size, and when it came there, where that can be said."""

    size_bytes: int
    dead_at: datetime | None


def surplus(
    letters: Sequence[Measured], bounds: Bounds, now: datetime, unread_bytes: int = 0
) -> dict[int, Reason]:
    """Which letters are to be dropped, by their places: the oldest first. Pure.

    `letters` are in the order of the queue; `unread_bytes` is what more recent ones take. Each
    goes by its own age alone: what an attacker puts there with a false time takes no other along.
    """
    dropped: dict[int, Reason] = {
        place: "age"
        for place, letter in enumerate(letters)
        if letter.dead_at is not None and now - letter.dead_at > bounds.max_age
    }
    left = unread_bytes + sum(
        letter.size_bytes for place, letter in enumerate(letters) if place not in dropped
    )
    if left <= bounds.max_bytes:
        return dropped
    for place, letter in enumerate(letters):
        if left <= bounds.max_bytes * _DOWN_TO:
            break
        if place not in dropped:
            dropped[place] = "bytes"
            left -= letter.size_bytes
    return dropped


def measured(message: AbstractIncomingMessage) -> Measured:
    """A letter's size with its headers, and its age by what is noted on it."""
    headers = sum(len(name) + len(str(value)) for name, value in message.headers.items())
    return Measured(len(message.body) + headers + _OVERHEAD_BYTES, _dead_at(message))


def _dead_at(message: AbstractIncomingMessage) -> datetime | None:
    noted = message.headers.get(DEAD_AT_HEADER)
    if isinstance(noted, str):
        return _instant(noted)
    deaths: Any = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        # The broker's own note, where it moved the message here.
        moved = deaths[0].get("time")
        return moved.replace(tzinfo=UTC) if isinstance(moved, datetime) else None
    try:
        # Of a worker of 0.4, which noted no time: it is no older than its request.
        return _instant(load_json(message.body).get("requested_at"))
    except MalformedRequestError:
        return None


def _instant(text: object) -> datetime | None:
    try:
        return parse_time(text) if isinstance(text, str) else None
    except ValueError:
        return None


async def taken(
    channel: AbstractChannel, queue: AbstractQueue, count: int
) -> AsyncIterator[AbstractIncomingMessage]:
    """Up to so many messages of a queue, the oldest first, unacknowledged.

    By one consumer, which is gone at the end. Each `basic.get` would count as a consumer of its
    own, and what several consumers give back comes in the order of their names: letters would
    change places.
    """
    count = min(count, TAKEN_AT_MOST)
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await channel.set_qos(count)
    tag = await queue.consume(arrived.put)
    try:
        for _ in range(count):
            try:
                async with asyncio.timeout(_IDLE_S):
                    message = await arrived.get()
            except TimeoutError:
                return  # others took some meanwhile
            yield message
    finally:
        await queue.cancel(tag)


async def ready(queue: AbstractQueue) -> int:
    """How many of a queue's messages are not taken."""
    asked = await queue.channel.declare_queue(queue.name, passive=True)
    return asked.declaration_result.message_count or 0


@dataclass(slots=True)
class _State:
    """What was known of a queue when all its letters were read last."""

    count: int
    at_s: float
    oldest: datetime | None


class DeadLetterKeeper:
    """Keeps the dead letters of a deployment within their bounds, while this worker is the one."""

    def __init__(
        self,
        amqp_url: str,
        bounds: Mapping[str, Bounds],
        metrics: WorkerMetrics,
        *,
        interval_s: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._amqp_url = amqp_url
        self._bounds = bounds
        self._metrics = metrics
        self._interval_s = interval_s
        self._now = now
        self._states: dict[str, _State] = {}

    async def keep(self) -> None:
        """Do it for ever, or wait until the worker that does is gone."""
        while True:
            try:
                with normalize_connection_errors():
                    await self._serve()
            except (AMQPException, OSError, TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
                _log.warning("dead letters not looked at", problem=type(exc).__name__)
            await asyncio.sleep(self._interval_s)

    async def _serve(self) -> None:
        async with (
            await connect(self._amqp_url) as connection,
            locked(connection, DEAD_KEEPER_LOCK) as is_mine,
        ):
            while is_mine:
                await self.look(connection)
                await asyncio.sleep(self._interval_s)

    async def look(self, connection: AbstractConnection) -> None:
        """Drop the surplus of each queue; nothing where an operator is at the letters."""
        async with locked(connection, DEAD_LOCK) as is_mine:
            if is_mine:
                for queue, bounds in self._bounds.items():
                    channel = await connection.channel()
                    async with channel:
                        await self._bound(channel, queue, bounds)

    async def _bound(self, channel: AbstractChannel, queue: str, bounds: Bounds) -> None:
        declared = await channel.declare_queue(queue, passive=True)
        count = await ready(declared)
        if not self._is_due(queue, count, bounds):
            return
        letters: list[Measured] = []
        tags: list[int] = []
        told: list[dict[str, object]] = []
        async for message in taken(channel, declared, count):
            # Not the message itself: together their bodies may be as large as the bound.
            letters.append(measured(message))
            tags.append(message.delivery_tag or 0)
            told.append(_described(message))
        # What was not read takes at least so much.
        unread_bytes = (count - len(letters)) * _OVERHEAD_BYTES
        dropped = surplus(letters, bounds, self._now(), unread_bytes)
        await self._settle(declared, tags, dropped)
        left = [letter for place, letter in enumerate(letters) if place not in dropped]
        oldest = min((e.dead_at for e in left if e.dead_at is not None), default=None)
        self._states[queue] = _State(count - len(dropped), time.monotonic(), oldest)
        self._report(queue, letters, dropped, told)

    def _is_due(self, queue: str, count: int, bounds: Bounds) -> bool:
        state = self._states.get(queue)
        if count == 0:
            self._states.pop(queue, None)
            return False
        if state is None:
            return True
        if state.oldest is not None and self._now() - state.oldest > bounds.max_age:
            return True
        grown = count - state.count
        if grown > max(_GROWTH_AT_LEAST, state.count * _GROWTH):
            return True
        return grown != 0 and time.monotonic() - state.at_s >= _MEASURED_FOR_S

    async def _settle(
        self, declared: AbstractQueue, tags: Sequence[int], dropped: Mapping[int, Reason]
    ) -> None:
        """Acknowledge what is dropped, let the rest go back, and wait until it has."""
        if not tags:
            return
        underlay = await declared.channel.get_underlay_channel()
        prefix = next((place for place in range(len(tags)) if place not in dropped), len(tags))
        if prefix:
            await underlay.basic_ack(tags[prefix - 1], multiple=True)
        for place in dropped:
            if place >= prefix:
                await underlay.basic_ack(tags[place])
        left = len(tags) - len(dropped)
        if left:
            # All that is left goes back at once, in its order.
            await underlay.basic_nack(tags[-1], multiple=True, requeue=True)
            await self._returned(declared, left)

    async def _returned(self, declared: AbstractQueue, count: int) -> None:
        # What a channel has not passed on to the queue when it is closed, the broker forgets:
        # letters that were dropped would be there again. An operator who looks next would find
        # too few.
        for _ in range(round(_RETURNED_TIMEOUT_S / _ASK_AGAIN_S)):
            if await ready(declared) >= count:
                return
            await asyncio.sleep(_ASK_AGAIN_S)

    def _report(
        self,
        queue: str,
        letters: Sequence[Measured],
        dropped: Mapping[int, Reason],
        told: Sequence[Mapping[str, object]],
    ) -> None:
        for place, reason in dropped.items():
            self._metrics.count_dropped_letter(queue, reason)
            if queue != UNSIGNED_DEAD_QUEUE and place < _LOGGED_AT_MOST:
                _log.warning("dead letter dropped", queue=queue, reason=reason, **told[place])
        if dropped:
            _log.warning(
                "dead letters dropped",
                queue=queue,
                letters=len(dropped),
                bytes=sum(letters[place].size_bytes for place in dropped),
                left=len(letters) - len(dropped),
            )


def _described(message: AbstractIncomingMessage) -> dict[str, object]:
    """What names a letter in a log: made up by whoever sent it, so cut short."""
    named = {
        "message_id": message.message_id,
        "code": message.headers.get(CODE_HEADER),
        "publisher": message.headers.get(PUBLISHER_HEADER),
    }
    return {
        name: value[:64]
        for name, value in named.items()
        if isinstance(value, str) and not has_control_characters(value)
    }
