"""The broker's streams and depths that control workers read for reports (SPEC 16.1).

A stream is followed from the first request that needs it until ten minutes after the last one, on
a connection of its own: a message that cannot be decoded breaks it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from keyturn.crypto.signatures import EventVerifier, VerifyKey
from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn.publisher.connection import (
    Broker,
    BrokerConnection,
    close_quietly,
    describe_broker_failure,
    normalize_connection_errors,
)
from keyturn.publisher.event_stream import Start, StreamRecord, Verifier, follow, last_offset
from keyturn.topology import AUDIT_STREAM, DEAD_LOCK, DEAD_QUEUES, WORKERS_STREAM
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.reports.status.audit import MAX_RECORDS, AuditBook
from keyturn_workers.reports.status.dead_letters import DeadLetterView
from keyturn_workers.reports.status.workers import HISTORY, WATCHED_QUEUES, QueueDepth, WorkerBook

FOLLOWED_FOR_S: Final = 600.0
"""How long a stream is followed after the last request for it."""
_SILENCE_S: Final = 1.0
"""A stream that delivers nothing for this long has been read to its end."""
_FIRST_SILENCE_S: Final = 3.0  # it has to connect first
_PREFETCH: Final = 1
_TIMEOUT_S: Final = 20.0
DEPTHS_FOR_S: Final = 2.0
"""Depths are read again once they are this old."""
_YIELD_EVERY: Final = 64
_DEPTHS_KEPT: Final = 150
_COUNTS_WHILE_READ: Final = 10
_READ_AGAIN_S: Final = 0.2

_log = structlog.get_logger()


class StreamFollower:
    """Follows one stream while it is requested.

    `begin` is called at each start, and returns the consumer of the records. The stream is followed
    for `followed_for_s` after the last request.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        start: Callable[[BrokerConnection], Awaitable[Start]],
        begin: Callable[[], Callable[[StreamRecord], object]],
        *,
        followed_for_s: float = FOLLOWED_FOR_S,
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._start = start
        self._begin = begin
        self._followed_for_s = followed_for_s
        self._task: asyncio.Task[None] | None = None
        self._until: asyncio.Timeout | None = None
        self._settled = asyncio.Event()
        self._problem: str | None = None

    async def wait(self, wait_s: float | None) -> bool:
        """Have the stream followed; return True if it has been read to its end.

        It waits for that for `wait_s`; None waits until it is so.

        Raises:
            StorageUnavailableError: the stream cannot be read.
        """
        if self._task is None or self._task.done():
            self._settled.clear()
            self._problem = None
            self._task = asyncio.create_task(self._follow(self._begin()))
        elif self._until is not None and not self._until.expired():
            now_s = asyncio.get_running_loop().time()
            self._until.reschedule(now_s + self._followed_for_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._settled.wait()
        if self._problem is not None:
            raise StorageUnavailableError(f"{self._stream} cannot be read: {self._problem}")
        return self._settled.is_set()

    async def close(self) -> None:
        """Stop following the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _follow(self, take: Callable[[StreamRecord], object]) -> None:
        connection = BrokerConnection(self._broker, publish_timeout_s=_TIMEOUT_S)
        try:
            async with asyncio.timeout(self._followed_for_s) as self._until:
                await self._read(connection, take)
        except TimeoutError:
            pass  # no one has asked for a while
        except EventsUnavailableError as exc:
            self._problem = str(exc)
        finally:
            self._until = None
            self._settled.set()
            await close_quietly(connection.close())

    async def _read(
        self, connection: BrokerConnection, take: Callable[[StreamRecord], object]
    ) -> None:
        loop = asyncio.get_running_loop()
        start = await self._start(connection)
        silence = loop.call_later(_FIRST_SILENCE_S, self._settled.set)
        following = follow(connection, start, self._stream, note_problem=self._note)
        try:
            async with aclosing(following) as records:
                async for record in records:
                    try:
                        take(record)
                    except Exception:  # noqa: BLE001  # one message must not hide all that follow
                        _log.exception("skipped an unreadable message", stream=self._stream)
                    if not self._settled.is_set():
                        silence.cancel()
                        silence = loop.call_later(_SILENCE_S, self._settled.set)
                    if record.offset % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
        finally:
            silence.cancel()

    def _note(self, problem: str | None) -> None:
        self._problem = problem


@dataclass(frozen=True, slots=True)
class Depths:
    """The broker's counts for the queues at one moment; a queue that is missing does not exist."""

    at: datetime
    queues: Mapping[str, QueueDepth]


class QueueDepths:
    """Depth and consumers of the queues, by passive declarations.

    A passive declaration needs no management plugin, changes nothing, and returns the numbers of a
    queue's ready messages and consumers. A queue that does not exist closes the channel.

    While a worker or a command reads dead letters, their queues look empty to others. So the first
    depth, or one that fell, is believed only if no process reads them: see `exclusive` in
    `dead_letters`. `seen` has the depths of the last minutes, the oldest first.
    """

    def __init__(
        self,
        broker: Broker,
        now: Callable[[], datetime],
        queues: Sequence[str] = WATCHED_QUEUES,
    ) -> None:
        self._connection = BrokerConnection(broker, publish_timeout_s=_TIMEOUT_S)
        self._now = now
        self._queues = queues
        self._turn = asyncio.Lock()
        self._read_s = -DEPTHS_FOR_S
        self.seen: deque[Depths] = deque(maxlen=_DEPTHS_KEPT)

    async def read(self) -> Depths:
        """Return the depths, at most two seconds old.

        Raises:
            StorageUnavailableError: the broker cannot be reached.
        """
        async with self._turn:
            if time.monotonic() - self._read_s >= DEPTHS_FOR_S:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        self.seen.append(await self._ask())
                except (TimeoutError, *CONNECTION_EXCEPTIONS) as exc:
                    problem = describe_broker_failure(exc)
                    raise StorageUnavailableError(
                        f"the broker does not report queue depths: {problem}"
                    ) from exc
                self._read_s = time.monotonic()
            return self.seen[-1]

    def of_queue(self, queue: str) -> Sequence[tuple[datetime, int]]:
        """Return the depths of a queue that were seen lately, by time."""
        return [(each.at, each.queues[queue].depth) for each in self.seen if queue in each.queues]

    async def close(self) -> None:
        """Disconnect."""
        await close_quietly(self._connection.close())

    async def _ask(self) -> Depths:
        for _ in range(_COUNTS_WHILE_READ):
            counted = await self._count()
            last = self.seen[-1].queues if self.seen else {}
            fallen = {
                name: last.get(name)
                for name, now in counted.queues.items()
                if name in DEAD_QUEUES and (name not in last or now.depth < last[name].depth)
            }
            if not fallen:
                return counted
            if not await self._are_letters_read():
                return await self._count()
            known = {name: depth for name, depth in fallen.items() if depth is not None}
            if len(known) == len(fallen):
                return replace(counted, queues={**counted.queues, **known})
            await asyncio.sleep(_READ_AGAIN_S)
        return counted

    async def _are_letters_read(self) -> bool:
        """Check if a process has the lock of the dead letters."""
        channel = await self._connection.channel(_PREFETCH)
        try:
            with normalize_connection_errors():
                await channel.get_queue(DEAD_LOCK, ensure=True)
        except ChannelLockedResource:
            return True
        except (ChannelNotFoundEntity, ChannelAccessRefused):
            return False
        finally:
            await close_quietly(channel.close())
        return True

    async def _count(self) -> Depths:
        at, found = self._now(), dict[str, QueueDepth]()
        channel = await self._connection.channel(_PREFETCH)
        for name in self._queues:
            try:
                with normalize_connection_errors():
                    queue = await channel.get_queue(name, ensure=True)
            except (ChannelNotFoundEntity, ChannelAccessRefused):
                await close_quietly(channel.close())
                channel = await self._connection.channel(_PREFETCH)
                continue
            declared = queue.declaration_result
            found[name] = QueueDepth(declared.message_count or 0, declared.consumer_count or 0)
        await close_quietly(channel.close())
        return Depths(at, found)


class BrokerFeeds:
    """The broker's streams and depths, for reports."""

    def __init__(
        self,
        broker: Broker,
        deployment: str,
        event_keys: Sequence[VerifyKey],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._now = now
        self._signatures = EventVerifier(deployment, event_keys)
        self._verifier = Verifier(deployment, event_keys)
        self.dead_letters = DeadLetterView(broker, now)
        self.workers = WorkerBook(now)
        self.audit = AuditBook(self._signatures)
        self.depths = QueueDepths(broker, now)
        self._of_workers = StreamFollower(
            broker, WORKERS_STREAM, self._hour_ago, self._begin_workers
        )
        self._of_audit = StreamFollower(broker, AUDIT_STREAM, _newest, self._begin_audit)

    async def read_workers(self, wait_s: float | None) -> bool:
        """Have `workers` follow the reports; return True if the last hour has been read.

        Errors as `StreamFollower.wait`.
        """
        return await self._of_workers.wait(wait_s)

    async def read_audit(self, wait_s: float | None) -> bool:
        """Have `audit` follow the trail; return True if its newest records have been read.

        Errors as `StreamFollower.wait`.
        """
        return await self._of_audit.wait(wait_s)

    async def close(self) -> None:
        """Stop reading."""
        await self._of_workers.close()
        await self._of_audit.close()
        await self.depths.close()

    def _begin_workers(self) -> Callable[[StreamRecord], object]:
        book = self.workers = WorkerBook(self._now)

        def take(record: StreamRecord) -> None:
            report = self._verifier.worker_report(record)
            if report is not None:
                book.apply(report)

        return take

    def _begin_audit(self) -> Callable[[StreamRecord], object]:
        book = self.audit = AuditBook(self._signatures)
        return book.apply

    async def _hour_ago(self, connection: BrokerConnection) -> Start:
        del connection
        return self._now() - HISTORY


async def _newest(connection: BrokerConnection) -> Start:
    """Return where the newest records that are kept begin."""
    last = await last_offset(connection, AUDIT_STREAM)
    return "first" if last is None else max(0, last - MAX_RECORDS + 1)
