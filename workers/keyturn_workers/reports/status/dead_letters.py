"""The view `dead_letters`: the oldest letters of each dead-letter queue (SPEC 16.1).

To read a queue, all its letters are received and returned, and no other process can read them
meanwhile. So a process keeps a reading for a few seconds, or longer if reading takes long. A report
has the time of its reading.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn.errors import MalformedRequestError, StorageUnavailableError
from keyturn.identifiers import format_time, parse_time
from keyturn.messages.requests import UNKNOWN_CODE, StatusRequested
from keyturn.messages.status import CodeCount, DeadLetterStatus, DeadQueueStatus
from keyturn.publisher.connection import Broker, describe_broker_failure
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.reports.dead_letters.letters import (
    describe,
    json_headers,
    redacted_body,
    work_queue,
)
from keyturn_workers.reports.dead_letters.queue import (
    LockedError,
    UnknownQueueError,
    UnreadableQueueError,
    open_letters,
    read_letters,
)
from keyturn_workers.reports.status.index import WAIT_S
from keyturn_workers.reports.status.query import contains_words, select

READ_PER_QUEUE: Final = 1000
"""Letters of a queue that are shown: the oldest."""
_FRESH_S: Final = 5.0
_SHARE: Final = 10
"""The part of the time that is spent on reading is one in this number."""
_LOCK_TIMEOUT_S: Final = 2.0
# Workers write the codes, of which there are few; a broker writer can make up any number.
_MAX_CODES: Final = 500
_WORD_MAX_CHARACTERS: Final = 64
_DETAIL_MAX_CHARACTERS: Final = 300
_KEY_MAX_CHARACTERS: Final = 900
_TEXT_MAX_CHARACTERS: Final = 2000
_SEARCHED: Final = (
    "letter",
    "message_id",
    "type",
    "project",
    "code",
    "detail",
    "publisher",
    "text",
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reading:
    """The contents of the queues at one time.

    `at` is when reading began. `letters` are the oldest of each queue, the newest of these first.
    """

    at: datetime
    letters: tuple[DeadLetterStatus, ...]
    queues: tuple[DeadQueueStatus, ...]

    @property
    def codes(self) -> tuple[CodeCount, ...]:
        """The number of letters by queue and code; of very many codes, the most frequent."""
        numbers = Counter((row.queue, row.code or UNKNOWN_CODE) for row in self.letters)
        return tuple(
            CodeCount(code=code, count=count, queue=queue)
            for (queue, code), count in sorted(numbers.most_common(_MAX_CODES))
        )


class DeadLetterView:
    """Reads dead letters for reports.

    `clock_s` is monotonic. A report waits for a reading for `wait_s`.
    """

    def __init__(
        self,
        broker: Broker,
        now: Callable[[], datetime] = utc_now,
        clock_s: Callable[[], float] = time.monotonic,
        wait_s: float = WAIT_S,
    ) -> None:
        self._broker = broker
        self._now = now
        self._clock_s = clock_s
        self._wait_s = wait_s
        self._reading: asyncio.Task[None] | None = None
        self._last: Reading | None = None
        self._problem: str | None = None
        self._fresh_until_s = 0.0

    async def page(self, request: StatusRequested) -> dict[str, Any]:
        """Return the fields of the report that answers the request; errors as `read`."""
        return _page(await self.read(), request)

    async def read(self) -> Reading:
        """Return the newest reading.

        It waits for a reading that is due, but not for long: a queue of 100,000 letters takes most
        of a minute. Meanwhile it returns the reading before, or an empty one without queues.

        Raises:
            StorageUnavailableError: the broker cannot be reached.
        """
        is_read = self._reading is None or self._reading.done()
        if is_read and self._clock_s() >= self._fresh_until_s:
            self._reading = asyncio.create_task(self._read(), name="dead letters")
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=self._wait_s)
        if self._problem is not None:
            raise StorageUnavailableError(f"the dead letters cannot be read: {self._problem}")
        return self._last or Reading(self._now(), (), ())

    async def _read(self) -> None:
        began_s, at = self._clock_s(), self._now()
        letters: list[DeadLetterStatus] = []
        queues: list[DeadQueueStatus] = []
        try:
            async with open_letters(self._broker, _LOCK_TIMEOUT_S) as opened:
                for queue in DEAD_QUEUES:
                    try:
                        found, depth = await read_letters(opened, queue, _row, READ_PER_QUEUE)
                    except UnreadableQueueError as exc:
                        _log.warning("dead letters not read", queue=queue, detail=str(exc))
                        found, depth = [], exc.depth
                    letters += found
                    queues.append(DeadQueueStatus(queue=queue, depth=depth, read=len(found)))
        except LockedError:
            return  # the reading before says how old it is
        except (UnknownQueueError, AMQPException, OSError, *CONNECTION_EXCEPTIONS) as exc:
            self._problem = describe_broker_failure(exc)
            return
        except Exception as exc:  # noqa: BLE001  # no report may show letters as if there were none
            _log.exception("dead letters not read")
            self._problem = f"internal failure: {type(exc).__name__}"
            return
        letters.reverse()  # those of one second, too
        letters.sort(key=lambda row: row.dead_at or "", reverse=True)
        self._problem = None
        self._last = Reading(at, tuple(letters), tuple(queues))
        ended_s = self._clock_s()
        self._fresh_until_s = ended_s + max(_FRESH_S, _SHARE * (ended_s - began_s))


def _page(reading: Reading, request: StatusRequested) -> dict[str, Any]:
    matching = [row for row in reading.letters if _matches(row, request)]
    selected = select(matching, request.page, request.limit, of_all=len(reading.letters))
    codes = reading.codes
    return {
        "at": format_time(reading.at),
        "dead_letters": selected.rows,
        "dead_queues": reading.queues,
        "codes": codes,
        "total": selected.total,
        "of_all": selected.of_all,
        "is_complete": selected.is_complete
        and bool(reading.queues)
        and sum(each.count for each in codes) == len(reading.letters)
        and all(queue.depth == queue.read for queue in reading.queues),
    }


def _matches(row: DeadLetterStatus, request: StatusRequested) -> bool:
    wanted = request.filter
    if wanted is None:
        return True
    if wanted.queue is not None and row.queue != wanted.queue:
        return False
    if wanted.code is not None and (row.code or UNKNOWN_CODE) != wanted.code:
        return False
    return contains_words(wanted.text, (getattr(row, name) for name in _SEARCHED))


def _row(message: AbstractIncomingMessage, queue: str) -> DeadLetterStatus:
    letter = describe(message, queue)
    try:
        to = work_queue(message.body, queue)
    except MalformedRequestError:
        to = None
    shown = {"headers": json_headers(message.headers), "body": redacted_body(message.body)}
    return DeadLetterStatus(
        queue=queue,
        letter=letter.request,
        message_id=letter.message_id,
        type=_cut(letter.type),
        project=_cut(letter.project),
        object_key=_cut(letter.object_key, _KEY_MAX_CHARACTERS),
        code=letter.code,
        detail=_cut(letter.detail, _DETAIL_MAX_CHARACTERS),
        publisher=_cut(letter.publisher),
        requested_at=_time(letter.requested_at),
        dead_at=None if letter.dead_at is None else format_time(letter.dead_at),
        size_bytes=letter.size_bytes,
        work_queue=to,
        obstacle=letter.obstacle,
        text=_cut(json.dumps(shown, indent=2, ensure_ascii=False), _TEXT_MAX_CHARACTERS),
    )


def _cut(text: str | None, limit: int = _WORD_MAX_CHARACTERS) -> str | None:
    return None if text is None else text[:limit]


def _time(text: str | None) -> str | None:
    try:
        return None if text is None else format_time(parse_time(text))
    except ValueError:
        return None
