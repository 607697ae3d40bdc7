"""Queries of state from control workers, and the last answer to each (SPEC 16.1).

    answer = await asker.ask(Query("projects", order="project"))
    answer.report   # the last report that could be read, or None
    answer.at       # when its reading began: the age of what is shown
        answer.problem  # why there is no newer answer, and `answer.since` since when

Equal queries share one request, and an answer of the last second serves every page. If no newer
answer comes soon, the page shows the last one with its age, and the browser asks again a moment
later. An answer is forgotten a minute after the last page that asked for it, the oldest also beyond
`MAX_KEPT`.

If control workers do not answer, requests pause, longer and longer, so that no pile of stale
requests awaits their return. A person who opens a page does not wait for the end of a pause.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

import structlog
from pydantic import ValidationError

from keyturn.errors import (
    BrokerUnavailableError,
    CodedError,
    PublisherError,
    TooManyRequestsError,
    WaitTimeoutError,
)
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.events import StatusRejected, StatusReported
from keyturn.messages.status import STATUS_LIMIT, StatusFilter, StatusView
from keyturn.publisher.client import Publisher

MAX_KEPT: Final = 100
KEEP_S: Final = 60.0
FRESH_S: Final = 1.0
FIRST_WAIT_S: Final = 2.0
"""A page waits this long for the first answer to a query."""
NEWER_WAIT_S: Final = 0.25
"""A page waits this long for a newer answer, if it has one or expects none."""
TIMEOUT_S: Final = 15.0
PAUSES_S: Final = (5.0, 15.0, 30.0, 60.0)
"""Between requests that control workers do not answer."""
_BROKER_PAUSE_S: Final = 2.0
"""Between attempts to reach the broker: a failed attempt leaves no message."""
_CONNECT_TIMEOUT_S: Final = 3.0
REFUSED_PAUSE_S: Final = 60.0
"""Until a refused query is retried automatically: each refusal is a dead letter."""
MAX_WAITING: Final = 50
"""Queries that await answers at once; others are asked when their page is next opened."""
PAGE_ROWS: Final = 100
"""Rows of one page of a table."""
MAX_UNDER_WAY: Final = 4
"""Requests at once, of all queries: a control worker reads two at a time and queues six."""
_BUSY_TRIES: Final = 3
_BUSY_PAUSE_S: Final = 0.3

FilterValue = str | bool
T = TypeVar("T")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Query:
    """A query as in `status.requested`; two equal ones have one answer."""

    view: StatusView
    project: str = ALL_PROJECTS
    sweep_id: str | None = None
    filter: tuple[tuple[str, FilterValue], ...] = ()
    order: str | None = None
    page: int = 1
    limit: int = STATUS_LIMIT
    after: str | None = None


def filled(**values: FilterValue | None) -> tuple[tuple[str, FilterValue], ...]:
    """Return a filter of the non-empty values."""
    return tuple((name, value) for name, value in values.items() if value)


@dataclass(frozen=True, slots=True)
class Answer:
    """The state of a query.

    Attributes:
        report: The last report with rows; None before there is one.
        problem: Why there is no newer report, as a sentence; empty if nothing is wrong.
        since: When the problem began.
        is_silent: True if no query is answered: the problem is that of every page.
    """

    report: StatusReported | None = None
    problem: str = ""
    since: datetime | None = None
    is_silent: bool = False

    @property
    def at(self) -> datetime | None:
        """The time at which the reading of the report began."""
        return None if self.report is None else parse_time(self.report.at)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a table, numbered from 1.

    `size` counts the rows of a full page, `total` all rows that match the filter, and `of_all` the
    rows without the filter. `is_complete` is true if no bound was reached and everything has been
    read.
    """

    rows: Sequence[T]
    number: int
    size: int
    total: int
    of_all: int
    is_complete: bool

    @property
    def pages(self) -> int:
        """The number of pages, at least 1."""
        return max(1, -(-self.total // self.size))


def page_of(report: StatusReported, rows: Sequence[T] | None, query: Query) -> Page[T]:
    """Return a report's page, with its rows."""
    shown = rows or ()
    total = len(shown) if report.total is None else report.total
    return Page(
        shown,
        report.page or query.page,
        query.limit,
        total,
        total if report.of_all is None else report.of_all,
        is_complete=report.is_complete is not False,
    )


@dataclass(slots=True)
class _Entry:
    answer: Answer = field(default_factory=Answer)
    asked_at: float = 0.0
    answered_at: float | None = None
    is_refused: bool = False
    task: asyncio.Task[None] | None = None

    def note_problem(self, problem: str) -> None:
        known = self.answer
        since = known.since if known.problem else datetime.now(UTC)
        self.answer = Answer(known.report, problem, since)


@dataclass(slots=True)
class _Silence:
    """The unanswered requests in a row, when and why that began, and when the pause ends."""

    failures: int = 0
    until: float = 0.0
    problem: str = ""
    since: datetime | None = None


class Asker:
    """Asks control workers, and keeps the last answers. Used from one event loop.

    `publisher` may be disconnected. A request counts as unanswered after `timeout_s`; `ask` waits
    `first_wait_s` for a first answer. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        timeout_s: float = TIMEOUT_S,
        first_wait_s: float = FIRST_WAIT_S,
        newer_wait_s: float = NEWER_WAIT_S,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._timeout_s = timeout_s
        self._first_wait_s = first_wait_s
        self._newer_wait_s = newer_wait_s
        self._pauses_s = pauses_s
        self._clock = clock
        self._entries: dict[Query, _Entry] = {}
        self._slots = asyncio.Semaphore(MAX_UNDER_WAY)
        self._silence = _Silence()

    def peek(self, query: Query) -> Answer:
        """Return the answer known now, without a request."""
        entry = self._entries.get(query)
        return self._shown(Answer() if entry is None else entry.answer)

    async def ask(self, query: Query, *, is_eager: bool = True, is_brief: bool = False) -> Answer:
        """Return the newest answer that comes soon, or the last one.

        Args:
            query: The query.
            is_eager: True if a person opens a page: then it does not wait for the end of a pause.
            is_brief: True if the page is as good without the answer.
        """
        entry = self._entry(query)
        if entry.task is None and self._is_due(entry, is_eager=is_eager):
            entry.task = asyncio.create_task(self._run(query, entry))
        if entry.task is not None:
            is_known = entry.answer.report is not None or bool(self._shown(entry.answer).problem)
            wait_s = self._newer_wait_s if is_known or is_brief else self._first_wait_s
            await asyncio.wait({entry.task}, timeout=wait_s)
        return self._shown(entry.answer)

    async def read(
        self, query: Query, *, actor: str | None = None
    ) -> StatusReported | StatusRejected:
        """Return the answer to a query, without keeping it.

        `actor` is the person who started this; the audit trail names them.

        Raises:
            PublisherError: the request could not be sent, or was not answered in time.
            MalformedRequestError: the query is invalid.
        """
        async with self._slots:
            for _ in range(_BUSY_TRIES):
                event = await self._request(query, actor)
                if event.code != TooManyRequestsError.code:
                    break
                await asyncio.sleep(_BUSY_PAUSE_S)
            return event

    async def close(self) -> None:
        """Abandon the requests under way."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _entry(self, query: Query) -> _Entry:
        now = self._clock()
        entry = self._entries.pop(query, None) or _Entry()
        entry.asked_at = now
        for other, kept in tuple(self._entries.items()):
            is_over = kept.asked_at < now - KEEP_S or len(self._entries) >= MAX_KEPT
            if kept.task is None and is_over:
                del self._entries[other]
        self._entries[query] = entry
        return entry

    def _is_due(self, entry: _Entry, *, is_eager: bool) -> bool:
        now = self._clock()
        if sum(other.task is not None for other in self._entries.values()) >= MAX_WAITING:
            return False
        fresh_s = REFUSED_PAUSE_S if entry.is_refused and not is_eager else FRESH_S
        if entry.answered_at is not None and now - entry.answered_at < fresh_s:
            return False
        if is_eager or not self._silence.problem:
            return True
        if now < self._silence.until:
            return False
        self._silence.until = now + self._timeout_s  # one request finds out for all
        return True

    async def _run(self, query: Query, entry: _Entry) -> None:
        try:
            event = await self.read(query)
        except PublisherError as exc:
            self._note_silence(exc)
        except (CodedError, ValidationError) as exc:
            words = str(exc) if isinstance(exc, CodedError) else "the filter is malformed"
            entry.note_problem(f"It cannot be requested: {words}.")
        else:
            self._note_answer()
            detail = f" ({event.detail})" if event.detail else ""
            entry.is_refused = isinstance(event, StatusRejected)
            if isinstance(event, StatusRejected):
                entry.note_problem(f"Control workers refuse it: {event.code}{detail}.")
            elif event.code is not None:
                entry.note_problem(f"It cannot be read: {event.code}{detail}.")
            else:
                entry.answer = Answer(event)
        finally:
            entry.answered_at = self._clock()
            entry.task = None

    async def _request(self, query: Query, actor: str | None) -> StatusReported | StatusRejected:
        # A publish waits half a minute for an unavailable broker; a page should say so at once.
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._publisher.connect()
        except TimeoutError as exc:
            raise BrokerUnavailableError("the broker does not respond") from exc
        request_id = await self._publisher.status(
            query.view,
            query.project,
            sweep_id=query.sweep_id,
            filter=StatusFilter.model_validate(dict(query.filter)) if query.filter else None,
            order=query.order,
            page=query.page,
            limit=query.limit,
            after=query.after,
            actor=actor,
        )
        event = await self._publisher.wait(request_id, timeout_s=self._timeout_s)
        if not isinstance(event, StatusReported | StatusRejected):  # the waiter matches types
            raise PublisherError(f"unexpected response {event.type}")
        return event

    def _shown(self, answer: Answer) -> Answer:
        """Return the answer; while no query is answered at all, with the reason."""
        if not self._silence.problem:
            return answer
        return Answer(answer.report, self._silence.problem, self._silence.since, is_silent=True)

    def _note_silence(self, error: PublisherError) -> None:
        silence, problem = self._silence, _words(error)
        if problem != silence.problem:
            _log.warning("control workers do not respond", problem=problem)
        pause_s, failures = _BROKER_PAUSE_S, silence.failures
        if isinstance(error, WaitTimeoutError):
            pause_s = self._pauses_s[min(failures, len(self._pauses_s) - 1)]
            failures += 1
        self._silence = _Silence(
            failures,
            self._clock() + pause_s,
            problem,
            silence.since or datetime.now(UTC),
        )

    def _note_answer(self) -> None:
        if self._silence.problem:
            _log.info("control workers respond again")
        self._silence = _Silence()


def _words(error: PublisherError) -> str:
    """Return why no answer came, as a sentence for a page."""
    if isinstance(error, WaitTimeoutError):
        return "No control worker responds."
    text = str(error)
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."
