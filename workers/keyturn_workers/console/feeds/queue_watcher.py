"""Depth and consumers of the queues, by passive declarations (SPEC 16.2).

A passive declaration needs no management plugin, changes nothing, and names a queue's messages that
are ready and its consumers. A queue that does not exist closes the channel, and is left out.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from keyturn.publisher.connection import (
    BrokerConnection,
    close_quietly,
    describe_broker_failure,
    normalize_connection_errors,
)
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.model import Model, QueueDepth, QueueSnapshot
from keyturn_workers.console.model.workers import WATCHED_QUEUES

_log = logging.getLogger(__name__)

VIEWED_S: Final = 5.0
UNVIEWED_S: Final = 60.0
_TIMEOUT_S: Final = 20.0
_PREFETCH: Final = 1


class QueueWatcher:
    """Asks the broker about the queues, again and again.

    Args:
        connection: A connection of its own.
        model: Takes the counts.
        state: Of the feed.
        queues: Their names.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        model: Model,
        state: FeedState,
        *,
        queues: Sequence[str] = WATCHED_QUEUES,
    ) -> None:
        self._connection = connection
        self._model = model
        self._state = state
        self._queues = queues
        self._channel: AbstractChannel | None = None
        self._now_wanted = asyncio.Event()

    def look(self) -> None:
        """Ask now: a person has opened a page."""
        self._now_wanted.set()

    async def run(self, is_viewed: Callable[[], bool]) -> None:
        """Ask forever: every few seconds while a page is viewed, and after a failure."""
        while True:
            self._now_wanted.clear()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    snapshot = await self._snapshot()
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
                self._channel, has_failed = None, True
                self._state.failed(
                    f"the broker does not report queue depths ({describe_broker_failure(exc)})"
                )
            else:
                has_failed = False
                self._state.attached()
                self._state.caught_up()
                self._state.seen(snapshot.at, 0)
                self._state.publish()
                self._model.apply_queues(snapshot)
            await self._pause(VIEWED_S if is_viewed() or has_failed else UNVIEWED_S)

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._now_wanted.wait()

    async def _snapshot(self) -> QueueSnapshot:
        at = self._model.now()
        depths = [found for name in self._queues if (found := await self._look_at(name))]
        return QueueSnapshot(at, tuple(depths))

    async def _open_channel(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(_PREFETCH)
        return self._channel

    async def _look_at(self, name: str) -> QueueDepth | None:
        channel = await self._open_channel()
        try:
            with normalize_connection_errors():
                declared = (await channel.get_queue(name, ensure=True)).declaration_result
        except (ChannelNotFoundEntity, ChannelAccessRefused) as exc:
            _log.debug("no count of %s (%s)", name, type(exc).__name__)
            await close_quietly(channel.close())
            self._channel = None
            return None
        return QueueDepth(name, declared.message_count or 0, declared.consumer_count or 0)
