"""Dead letters are bounded in age and bytes, by one worker at a time (SPEC 6.9).

The bounds are settings, never arguments of the queues, which cannot change. The worker that holds
an exclusive queue enforces them; if it dies, another one takes over. Letters are received without
acknowledgment, the surplus is acknowledged, and the rest goes back: what is kept is neither copied
nor reordered.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn.identifiers import has_control_characters, parse_time
from keyturn.publisher.connection import Broker, connect_to_broker, normalize_connection_errors
from keyturn.topology import (
    CODE_HEADER,
    DEAD_AT_HEADER,
    DEAD_KEEPER_LOCK,
    DEAD_LOCK,
    PUBLISHER_HEADER,
    UNSIGNED_DEAD_QUEUE,
)
from keyturn_workers.amqp.locks import broker_lock
from keyturn_workers.amqp.retry import utc_now
from keyturn_workers.dead_letters.queue import QueueBrowser, ready_count
from keyturn_workers.worker.metrics import WorkerMetrics

# What the broker stores of a letter besides its body: headers, and its own notes.
_OVERHEAD_BYTES: Final = 4096
# Measured again once a queue has grown by this part: reading all letters for each new one would
# cost more than the bound saves.
_GROWTH: Final = 0.1
_GROWTH_AT_LEAST: Final = 20
# Letters are dropped down to this part of the bound, so that the next one does not exceed it.
_DOWN_TO: Final = 0.9
_MEASURED_FOR_S: Final = 900
_LOGGED_AT_MOST: Final = 100

Reason = Literal["age", "bytes"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How old the letters of a queue may become, and how many bytes they may take together."""

    max_age: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class MeasuredLetter:
    """A letter's size, and when it became a dead letter, if that is known."""

    size_bytes: int
    dead_at: datetime | None


def select_surplus(
    letters: Sequence[MeasuredLetter], bounds: Bounds, now: datetime, unread_bytes: int = 0
) -> dict[int, Reason]:
    """The letters to drop, by their positions, and why: the oldest first. Pure.

    `letters` are in the order of the queue; `unread_bytes` is the size of more recent ones. Each is
    judged only by its own age: a letter with a false time drops no other.
    """
    dropped: dict[int, Reason] = {
        position: "age"
        for position, letter in enumerate(letters)
        if letter.dead_at is not None and now - letter.dead_at > bounds.max_age
    }
    left = unread_bytes + sum(
        letter.size_bytes for position, letter in enumerate(letters) if position not in dropped
    )
    if left <= bounds.max_bytes:
        return dropped
    for position, letter in enumerate(letters):
        if left <= bounds.max_bytes * _DOWN_TO:
            break
        if position not in dropped:
            dropped[position] = "bytes"
            left -= letter.size_bytes
    return dropped


def measure(message: AbstractIncomingMessage) -> MeasuredLetter:
    """A letter's size with its headers, and its time by its own notes."""
    headers = sum(len(name) + len(str(value)) for name, value in message.headers.items())
    return MeasuredLetter(len(message.body) + headers + _OVERHEAD_BYTES, dead_at(message))


def dead_at(message: AbstractIncomingMessage) -> datetime | None:
    """When a letter became one, by its own notes."""
    noted = message.headers.get(DEAD_AT_HEADER)
    if isinstance(noted, str):
        return _instant(noted)
    deaths: Any = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        # The broker's own header: it moved the message here itself.
        moved = deaths[0].get("time")
        return moved.replace(tzinfo=UTC) if isinstance(moved, datetime) else None
    return None


def _instant(text: str) -> datetime | None:
    try:
        return parse_time(text)
    except ValueError:
        return None


@dataclass(slots=True)
class _State:
    """What was known of a queue when all its letters were last read."""

    count: int
    at_s: float
    oldest: datetime | None


class DeadLetterKeeper:
    """Keeps the dead letters of a deployment within their bounds, if no other worker does."""

    def __init__(
        self,
        broker: Broker,
        bounds: Mapping[str, Bounds],
        metrics: WorkerMetrics,
        *,
        interval_s: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._broker = broker
        self._bounds = bounds
        self._metrics = metrics
        self._interval_s = interval_s
        self._now = now
        self._states: dict[str, _State] = {}

    async def run(self) -> None:
        """Enforce the bounds forever, or wait until the worker that does is gone."""
        while True:
            try:
                with normalize_connection_errors():
                    await self._serve()
            except (AMQPException, OSError, TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
                _log.warning("dead letters not checked", problem=type(exc).__name__)
            await self._pause()

    async def _serve(self) -> None:
        async with (
            await connect_to_broker(self._broker) as connection,
            broker_lock(connection, DEAD_KEEPER_LOCK) as is_mine,
        ):
            while is_mine:
                await self.enforce(connection)
                await self._pause()

    async def _pause(self) -> None:
        # Where a request is cancelled, aiormq may raise a lost connection instead, which what
        # closes a channel suppresses.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        await asyncio.sleep(self._interval_s)

    async def enforce(self, connection: AbstractConnection) -> None:
        """Drop the surplus of each queue; nothing while an operator works on the letters."""
        async with broker_lock(connection, DEAD_LOCK) as is_mine:
            if is_mine:
                for queue, bounds in self._bounds.items():
                    channel = await connection.channel()
                    async with channel:
                        await self._enforce_queue(channel, queue, bounds)

    async def _enforce_queue(self, channel: AbstractChannel, queue: str, bounds: Bounds) -> None:
        declared = await channel.declare_queue(queue, passive=True)
        count = await ready_count(declared)
        if not self._is_due(queue, count, bounds):
            return
        letters: list[MeasuredLetter] = []
        tags: list[int] = []
        log_fields: list[dict[str, object]] = []
        browser = QueueBrowser(channel, declared)
        # Not the messages themselves: all bodies together may be as large as the bound.
        async for batch in browser.batches(_noted):
            for letter, tag, fields in batch:
                letters.append(letter)
                tags.append(tag)
                log_fields.append(fields)
        # What was not read has at least this size.
        unread_bytes = (count - len(letters)) * _OVERHEAD_BYTES
        dropped = select_surplus(letters, bounds, self._now(), unread_bytes)
        await _drop(channel, tags, dropped)
        # An operator who reads next must not find too few.
        await browser.requeue(len(tags) - len(dropped))
        left = [letter for position, letter in enumerate(letters) if position not in dropped]
        oldest = min((e.dead_at for e in left if e.dead_at is not None), default=None)
        self._states[queue] = _State(count - len(dropped), time.monotonic(), oldest)
        self._report(queue, letters, dropped, log_fields)

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

    def _report(
        self,
        queue: str,
        letters: Sequence[MeasuredLetter],
        dropped: Mapping[int, Reason],
        log_fields: Sequence[Mapping[str, object]],
    ) -> None:
        for position, reason in dropped.items():
            self._metrics.count_dropped_letter(queue, reason)
            if queue != UNSIGNED_DEAD_QUEUE and position < _LOGGED_AT_MOST:
                fields = log_fields[position]
                _log.warning("dead letter dropped", queue=queue, reason=reason, **fields)
        if dropped:
            _log.warning(
                "dead letters dropped",
                queue=queue,
                letters=len(dropped),
                bytes=sum(letters[position].size_bytes for position in dropped),
                left=len(letters) - len(dropped),
            )


async def _drop(
    channel: AbstractChannel, tags: Sequence[int], dropped: Mapping[int, Reason]
) -> None:
    """Acknowledge what is dropped."""
    if not dropped:
        return
    underlay = await channel.get_underlay_channel()
    prefix = next((i for i in range(len(tags)) if i not in dropped), len(tags))
    if prefix:
        await underlay.basic_ack(tags[prefix - 1], multiple=True)
    for position in dropped:
        if position >= prefix:
            await underlay.basic_ack(tags[position])


def _noted(message: AbstractIncomingMessage) -> tuple[MeasuredLetter, int, dict[str, object]]:
    return measure(message), message.delivery_tag or 0, _log_fields(message)


def _log_fields(message: AbstractIncomingMessage) -> dict[str, object]:
    """What identifies a letter in a log: chosen by its sender, so cut short."""
    values = {
        "message_id": message.message_id,
        "code": message.headers.get(CODE_HEADER),
        "publisher": message.headers.get(PUBLISHER_HEADER),
    }
    return {
        name: value[:64]
        for name, value in values.items()
        if isinstance(value, str) and not has_control_characters(value)
    }
