"""Publish events of about the same time together (SPEC 6.7).

A confirmed publish costs about as much as everything else that AMQP does for a message. So while
one is in flight, further events of its type and publisher gather, and the next publish takes them
all. Nothing waits for a batch to fill: with no publish in flight, an event goes alone, at once.
A slow publish does not hold up others.

An event must never be reported as published before the broker confirmed its batch, and the failure
of one batch must not fail another.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Final

import structlog

from keyturn.messages.codec import EVENT_BATCH_MAX, EVENT_BATCH_MAX_BYTES, encode_batch

_HOLD_S: Final = 0.005

_log = structlog.get_logger()

Send = Callable[[str, str, tuple[bytes, ...]], Awaitable[None]]
"""Publishes events of a type and a publisher as one message; returns once confirmed."""


class NotConfirmedError(Exception):
    """The broker did not confirm a message: it may or may not have it."""


class EventBatches:
    """Gathers the events of each type and publisher.

    Args:
        send: Publishes a batch, in a task of its own: the channel that brought a message cancels
            the task of its handler, but the batch has events of other messages too.
        hold_s: How long a publish in flight may hold back others.
    """

    def __init__(self, send: Send, *, hold_s: float = _HOLD_S) -> None:
        self._send = send
        self._hold_s = hold_s
        self._lanes: dict[tuple[str, str], _Lane] = {}

    async def publish(self, event_type: str, publisher: str, body: bytes) -> None:
        """Publish an event, alone or in a batch; returns once it is confirmed.

        If the caller is canceled, its event is published all the same.

        Raises:
            NotConfirmedError: the broker did not confirm the batch.
        """
        key = (event_type, publisher)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(
                lambda bodies: self._send(event_type, publisher, bodies),
                lambda: self._lanes.pop(key, None),
                envelope_bytes=len(encode_batch(event_type, ())),
                hold_s=self._hold_s,
            )
        failure = await lane.add(body)
        if failure is not None:
            raise NotConfirmedError(failure)


class _Batch:
    """Events that are published as one. Each one's caller may be canceled without the rest."""

    __slots__ = ("began_s", "bodies", "callers", "size")

    def __init__(self, envelope_bytes: int) -> None:
        self.bodies: list[bytes] = []
        self.callers: list[asyncio.Future[str | None]] = []
        self.size = envelope_bytes
        self.began_s = 0.0

    @property
    def is_full(self) -> bool:
        return len(self.bodies) == EVENT_BATCH_MAX

    def has_room(self, body: bytes) -> bool:
        return self.size + len(body) + 1 <= EVENT_BATCH_MAX_BYTES

    def add(self, body: bytes) -> "asyncio.Future[str | None]":
        self.size += len(body) + 1  # with a comma
        self.bodies.append(body)
        caller = asyncio.get_running_loop().create_future()
        self.callers.append(caller)
        return caller

    def end(self, failure: str | None) -> None:
        """Give the callers the name of the failure, or None."""
        for caller in self.callers:
            if not caller.done():
                caller.set_result(failure)


class _Lane:
    """The events of one type and publisher, from the first until nothing is in flight.

    `_flying` is the last batch that began, until it ends; earlier ones may still be in flight.
    """

    def __init__(
        self,
        send: Callable[[tuple[bytes, ...]], Awaitable[None]],
        on_idle: Callable[[], object],
        *,
        envelope_bytes: int,
        hold_s: float,
    ) -> None:
        self._send = send
        self._on_idle = on_idle
        self._envelope_bytes = envelope_bytes
        self._hold_s = hold_s
        self._flying: _Batch | None = None
        self._gathered: _Batch | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The event loop keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[str | None]] = set()

    def add(self, body: bytes) -> "asyncio.Future[str | None]":
        """Add an event; the future yields the name of its batch's failure, or None."""
        if self._gathered is not None and not self._gathered.has_room(body):
            self._begin_gathered()
        batch = self._gathered or self._gather()
        outcome = batch.add(body)
        if batch.is_full or self._flying is None or self._timer is None:
            self._begin_gathered()
        return outcome

    def _gather(self) -> _Batch:
        batch = self._gathered = _Batch(self._envelope_bytes)
        if self._flying is not None:
            loop, at = asyncio.get_running_loop(), self._flying.began_s + self._hold_s
            if loop.time() < at:
                # Without this caller's context: its trace is not that of the other events.
                self._timer = loop.call_at(at, self._begin_gathered, context=Context())
        return batch

    def _begin_gathered(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._gathered = self._gathered, None
        if batch is None:
            return
        loop = asyncio.get_running_loop()
        batch.began_s = loop.time()
        self._flying = batch
        task = loop.create_task(self._publish(batch), context=Context())
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, batch))

    async def _publish(self, batch: _Batch) -> str | None:
        try:
            await self._send(tuple(batch.bodies))
        except NotConfirmedError as exc:
            return str(exc)
        except Exception as exc:  # noqa: BLE001  # each caller raises its name
            # Log it here: the callers get only its name.
            _log.exception("events not published", events=len(batch.bodies))
            return type(exc).__name__
        return None

    def _ended(self, batch: _Batch, task: "asyncio.Task[str | None]") -> None:
        self._tasks.discard(task)
        batch.end("canceled" if task.cancelled() else task.result())
        if self._flying is batch:
            self._flying = None
            self._begin_gathered()
        if not self._tasks:
            self._on_idle()
