"""Keeps queues consumed, each on a connection of its own (SPEC 6.2).

RabbitMQ cannot convert every AMQP 1.0 message for a 0-9-1 client. A channel that tries to deliver
such a *poison message* crashes, and its connection with it, before any code of ours runs. The
message returns to its queue until it has used up its deliveries.

With these rules, a poison message delays only its own queue, for seconds, and does not use up the
deliveries of other messages:

- No two queues share a connection, and nothing is published on any of these.
- A lost connection is replaced at once: aio-pika's own reconnection has one pause for all cases.
- Each loss counts as a delivery of every message that this process held, and the broker delivers
  these first. So if a connection is lost soon after it began, the next one gets one message at a
  time, until as many as were held are handled, or the queue is empty.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from faststream.rabbit import RabbitBroker

from keyturn.publisher.connection import close_quietly
from keyturn_workers.pipeline.amqp.consumer import QueueConsumer
from keyturn_workers.pipeline.amqp.routes import Route
from keyturn_workers.process.background import END_TIMEOUT_S, raise_if_canceled

if TYPE_CHECKING:
    from aio_pika import RobustConnection

CONNECT_TIMEOUT_S: Final = 15
"""For one attempt to connect, TLS included."""
_LOST_PAUSE_S: Final = 0.02
_FAILED_PAUSE_S: Final = 1.0
# A connection that lasted longer was not lost to a poison message, which is delivered at once.
_SOON_S: Final = 10.0
# Within this time, a queue that is not empty delivers.
_IDLE_S: Final = 0.5
# Time for aio-pika to report the loss of a connection on which a request failed.
_REPORT_S: Final = 0.1

_log = structlog.get_logger()


class NewBroker(Protocol):
    """Makes a broker that is not connected; `on_close` is called when its connection ends."""

    def __call__(self, *, on_close: list[Callable[..., None]]) -> RabbitBroker:
        """Make a broker."""
        ...


async def close_connection(connecting: "asyncio.Task[RobustConnection]") -> None:
    """Close the connection of a task that connects.

    aio-pika treats a cancellation during an attempt to connect as a failed attempt, and goes on,
    unless the connection is being closed (`RobustConnection`). So an attempt has some time to end
    by itself. Remnants of a longer one, or of a connection that was lost at once, end with the
    process (`run_to_end`).
    """
    await asyncio.wait({connecting}, timeout=END_TIMEOUT_S)
    if not connecting.done():
        connecting.cancel()
    elif not connecting.cancelled() and connecting.exception() is None:
        await close_quietly(connecting.result().close())


class ConsumerSupervisor:
    """Keeps one queue consumed, by one `QueueConsumer` after another.

    `new_broker` makes the broker of each connection.
    """

    def __init__(self, new_broker: NewBroker, route: Route) -> None:
        self._new_broker = new_broker
        self._route = route
        self._consumer: QueueConsumer | None = None
        self._attached_s = inf
        self._is_ending = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Consume from now on, until `close`.

        Raises:
            Exception: the error that kept the first connection from consuming.
        """
        started = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(started), name=f"consume {self._route.queue}")
        await started

    def is_active(self) -> bool:
        """See `QueueConsumer.is_active`."""
        return self._consumer is not None and self._consumer.is_active()

    async def cancel(self) -> None:
        """See `QueueConsumer.cancel`; no further connection is opened."""
        self._is_ending = True
        if self._consumer is not None:
            await self._consumer.cancel()

    async def wait_idle(self) -> None:
        """See `QueueConsumer.wait_idle`."""
        if self._consumer is not None:
            await self._consumer.wait_idle()

    async def flush(self) -> None:
        """See `QueueConsumer.flush`."""
        if self._consumer is not None:
            await self._consumer.flush()

    async def close(self) -> None:
        """Close the connection: messages that this process still holds go back to their queue."""
        self._is_ending = True
        if self._task is not None:
            if not self._task.cancelling():  # a second time would cancel the closing itself
                self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, started: "asyncio.Future[None]") -> None:
        one_at_a_time = False
        while not self._is_ending:
            try:
                lasted_s = await self._serve(started, one_at_a_time=one_at_a_time)
            except Exception as exc:  # noqa: BLE001  # the client library has many errors
                if not started.done():
                    started.set_exception(exc)
                    return
                _log.debug("not consuming", queue=self._route.queue, problem=type(exc).__name__)
                pause_s = _FAILED_PAUSE_S
            else:
                pause_s = _LOST_PAUSE_S
                was_narrow = self._consumer is not None and self._consumer.is_narrow
                one_at_a_time = was_narrow or lasted_s < _SOON_S
                if one_at_a_time and not was_narrow:
                    _log.warning("connection lost; one delivery at a time", queue=self._route.queue)
            raise_if_canceled()
            await asyncio.sleep(pause_s)

    async def _serve(self, started: "asyncio.Future[None]", *, one_at_a_time: bool) -> float:
        """Consume on one connection until it is lost; return for how many seconds.

        Raises:
            Exception: the error that prevented consuming; the connection was not lost.
        """
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[float] = loop.create_future()

        def note_loss(*_: object) -> None:
            if not lost.done():
                lost.set_result(loop.time())

        broker = self._new_broker(on_close=[note_loss])
        consumer = QueueConsumer(broker, self._route, one_at_a_time=one_at_a_time)
        self._attached_s = inf
        connecting = asyncio.create_task(broker.connect())
        try:
            await asyncio.shield(connecting)
            if self._is_ending:
                return inf
            consuming = asyncio.create_task(self._consume(broker, consumer, started))
            ends: set[asyncio.Future[Any]] = {consuming, lost}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if consuming.done():
                    await asyncio.wait({lost}, timeout=_REPORT_S)
                if not lost.done():
                    await consuming
                return await lost - self._attached_s
            finally:
                consuming.cancel()
                await asyncio.gather(consuming, return_exceptions=True)
        finally:
            await close_connection(connecting)

    async def _consume(
        self, broker: RabbitBroker, consumer: QueueConsumer, started: "asyncio.Future[None]"
    ) -> None:
        self._consumer = consumer
        await broker.start()
        await consumer.attach()
        self._attached_s = asyncio.get_running_loop().time()
        if not started.done():
            started.set_result(None)
        if consumer.is_narrow:
            handled = -1
            while (
                not self._is_ending
                and consumer.handled < self._route.prefetch
                and (consumer.in_flight or consumer.handled != handled)
            ):
                handled = consumer.handled
                await asyncio.sleep(_IDLE_S)
            if not self._is_ending:
                await consumer.widen()
        if self._is_ending:
            await consumer.cancel()  # `cancel` was called before this consumer began
        await asyncio.Event().wait()
