"""Waiting for the event that answers a request (SPEC 6.7).

One reader of the stream serves every wait for what this publisher itself has sent. It begins
a little before the publish, so that it also finds an event that is published before anyone
waits. A wait for another process's request reads the stream by itself.

Most requests have one event, which answers and ends them. A rotation is answered by
`rotation.accepted` and ended by `rotation.completed`; `sweep.progressed` answers nothing.

A request that is sent again under its id is a new attempt with its own answer. A wait accepts
the answer to the attempt that was the newest when the wait began, and considers others only
while it is unknown whether that one is on its queue.

Memory is bounded: of at most `max_tracked` requests the time of sending and the answer are
remembered. The oldest are forgotten first; a wait for a forgotten one is like a wait for
another process's request. Reports of status are large and requested all the time: a request for
one is forgotten as soon as a wait for it ends, be it without an answer.

It must never accept an event by its id alone: the signature is checked first, then everything
else that `EventMatcher` requires.
"""

import asyncio
import enum
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from keyturn.errors import NotDeliveredError, NotSentHereError, PublisherError, WaitTimeoutError
from keyturn.messages import (
    Event,
    Failed,
    Rejected,
    Request,
    RotationAccepted,
    id_field,
    parse_event,
)
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_matcher import EventMatcher, RequestType, is_answer, is_end
from keyturn.publisher.event_stream import Start, StreamRecord, Verifier, follow
from keyturn.topology import PUBLISHER_EVENTS, UNSIGNED_DEAD_QUEUE, publisher_stream

MAX_TRACKED: Final = 100_000
# The stream's times are the broker's, to the second; ours may run ahead of them.
CLOCK_TOLERANCE_S: Final = 30
_LOOK_BACK: Final = timedelta(minutes=15)
_MAX_CONCURRENT_SCANS: Final = 64
_MAX_ATTEMPTS: Final = 8
_ID_FIELDS: Final = {event_type: id_field(event_type) for event_type in PUBLISHER_EVENTS}
# Their answers are large, and stale once they were read.
_FORGOTTEN_REQUESTS: Final = ("status.requested",)


class _Delivery(enum.Enum):
    """Whether an attempt is on its queue."""

    IN_FLIGHT = enum.auto()
    CONFIRMED = enum.auto()
    UNKNOWN = enum.auto()
    NONE = enum.auto()


@dataclass(slots=True, eq=False)
class _Attempt:
    """One sending of a request, and what is known of its answer.

    Attributes:
        matcher: Which events belong to it.
        at: When it was sent.
        earlier: The attempt before it, as long as this one may not have arrived.
        over: The ends of earlier attempts, as bytes: published again, they end nothing.
        delivery: Whether it is on its queue.
    """

    matcher: EventMatcher
    at: datetime
    earlier: "_Attempt | None" = None
    over: tuple[bytes, ...] = ()
    delivery: _Delivery = _Delivery.IN_FLIGHT
    # The bodies of events whose signatures were checked.
    accepted: bytes | None = None
    end: bytes | None = None
    is_refused: bool = False
    is_failed: bool = False

    @property
    def is_uncertain(self) -> bool:
        """Whether it may not be on its queue, although its publish has ended."""
        return self.delivery in (_Delivery.UNKNOWN, _Delivery.NONE)

    @property
    def candidates(self) -> "Iterator[_Attempt]":
        """This attempt, and earlier ones as long as the later ones may not have arrived."""
        for one in self.all:
            yield one
            if not one.is_uncertain:
                return

    @property
    def all(self) -> "Iterator[_Attempt]":
        """This attempt and all earlier ones that are kept."""
        one: _Attempt | None = self
        while one is not None:
            yield one
            one = one.earlier

    def is_answered_by(self, event: Event, body: bytes) -> bool:
        """Whether this event belongs to this attempt."""
        return self.matcher.matches(event) and body not in self.over

    def record(self, event: Event, body: bytes) -> None:
        """Keep the event that answers this attempt, and the one that ends it."""
        if not self.is_answered_by(event, body):
            return
        if isinstance(event, RotationAccepted):
            self.accepted = body
            if self.is_refused or self.is_failed:  # an operator replayed it: it goes on
                self.end, self.is_refused, self.is_failed = None, False, False
        elif isinstance(event, Rejected):
            # The same bytes, delivered twice: a refusal of the copy undoes nothing.
            if self.accepted is None and (self.end is None or self.is_refused):
                self.end, self.is_refused = body, True
        elif is_end(event):
            self.end, self.is_refused, self.is_failed = body, False, isinstance(event, Failed)

    def outcome(self, *, ended: bool) -> bytes | None:
        """The event that a wait for the answer, or for the end, gets; None if there is none yet."""
        return self.end if ended else self.accepted or self.end

    def ends(self) -> tuple[bytes, ...]:
        """The ends of this attempt and of earlier ones, which the next attempt ignores."""
        if self.end is None or self.is_refused:
            return self.over
        return (*self.over, self.end)[-_MAX_ATTEMPTS:]


@dataclass(slots=True, eq=False)
class _Wait:
    """A caller that waits for the shared reader, and the attempts whose answers count."""

    future: asyncio.Future[Event]
    ended: bool
    attempts: list[_Attempt] = field(default_factory=list)

    def add(self, attempts: Iterable[_Attempt]) -> None:
        """Let answers to these attempts count too."""
        self.attempts.extend(one for one in attempts if one not in self.attempts)

    def resolve(self) -> None:
        """End the wait if there is an outcome."""
        answers = (one.outcome(ended=self.ended) for one in self.attempts)
        body = next((answer for answer in answers if answer is not None), None)
        if body is not None and not self.future.done():
            self.future.set_result(parse_event(body))


class EventWaiter:
    """Waits for the events of requests.

    Args:
        connection: The broker.
        verifier: Decides which events are believed.
        publisher: The name under which requests are signed here.
        max_tracked: How many requests are remembered with their answers.
        on_answer: Called with each answer to a request of this publisher, and the header
            `traceparent` that came with it.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        verifier: Verifier,
        publisher: str,
        *,
        max_tracked: int = MAX_TRACKED,
        on_answer: Callable[[Event, str], None] | None = None,
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._publisher = publisher
        self._stream = publisher_stream(publisher)
        self._max_tracked = max_tracked
        self._on_answer = on_answer
        self._opened_at = datetime.now(UTC)
        self._sent: OrderedDict[str, _Attempt] = OrderedDict()
        self._waiting: dict[str, set[_Wait]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._reader_from = self._opened_at
        self._scans = asyncio.Semaphore(_MAX_CONCURRENT_SCANS)

    @contextmanager
    def sending(self, request: Request, body: bytes) -> Iterator[None]:
        """Track an attempt while the block publishes the request that was signed as `body`."""
        one = self._begin(EventMatcher.of(self._publisher, request, body))
        try:
            yield
        except NotDeliveredError:
            self._settle(one, _Delivery.NONE)
            raise
        except BaseException:  # cancelled, too: it may be on its queue, or may not
            self._settle(one, _Delivery.UNKNOWN)
            raise
        self._settle(one, _Delivery.CONFIRMED)

    def _begin(self, matcher: EventMatcher) -> _Attempt:
        request_id = matcher.request_id
        earlier = self._sent.pop(request_id, None)
        if earlier is not None and not _is_same_request(earlier.matcher, matcher):
            earlier = None  # a waiter for that other request keeps its own matcher
        one = _Attempt(matcher, datetime.now(UTC), earlier)
        if earlier is not None:
            one.over = earlier.ends()
            _cut_short(one)
        self._sent[request_id] = one
        while len(self._sent) > self._max_tracked:
            self._sent.popitem(last=False)
        for wait in self._waiting.get(request_id, ()):
            if any(t.is_uncertain and _is_same_request(t.matcher, matcher) for t in wait.attempts):
                wait.add((one,))
        return one

    def _settle(self, one: _Attempt, delivery: _Delivery) -> None:
        """Note the outcome of a publish; if it may not have arrived, other attempts count too."""
        request_id = one.matcher.request_id
        one.delivery = delivery
        if delivery is _Delivery.CONFIRMED:
            one.earlier = None
            return
        newest = self._sent.get(request_id)
        if newest is None or not _is_same_request(newest.matcher, one.matcher):
            newest = one  # forgotten, or its id was used for something else
        newer = [*itertools.takewhile(lambda t: t is not one, newest.all)]
        for wait in self._waiting.get(request_id, ()):
            if one in wait.attempts:
                wait.add((*one.candidates, *newer))
                wait.resolve()
        if delivery is _Delivery.NONE and one.earlier is not None:
            if newer and newer[-1].earlier is one:
                newer[-1].earlier = one.earlier
            elif self._sent.get(request_id) is one:
                self._sent[request_id] = one.earlier

    async def wait(
        self,
        request_id: str,
        *,
        project: str | None = None,
        request_type: RequestType | None = None,
        since: datetime | None = None,
        timeout_s: float,
        ended: bool = False,
    ) -> Event:
        """The event that answers this request, or with `ended` the one that ends it.

        Raises:
            WaitTimeoutError: nothing was published in time.
            NotSentHereError: it was not sent here, and project or type is missing.
            EventsUnavailableError: there is no stream to read.
        """
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                sent = self._sent_here(request_id, project, request_type)
                if sent is not None and self._covers(sent):
                    return await self._answer(sent, ended=ended)
                events = self.progress(
                    request_id, project=project, request_type=request_type, since=since
                )
                return await _first(events, ended=ended)
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            raise WaitTimeoutError(self._no_event(request_id, timeout_s)) from exc

    def _no_event(self, request_id: str, timeout_s: float) -> str:
        """What silence can mean: no event answers a request that no publisher signed (SPEC 6.3)."""
        ignored = self._verifier.refused
        return (
            f"no event of {request_id} in {timeout_s:g} s: no worker has served the request yet, "
            f"or the workers do not know publisher {self._publisher!r} with this key in deployment "
            f"{self._verifier.deployment!r}. In that case the request is in "
            f"{UNSIGNED_DEAD_QUEUE}: see `keyturn dead list`"
        ) + (f". {ignored} events were ignored: no event key verifies them" if ignored else "")

    async def progress(
        self,
        request_id: str,
        *,
        project: str | None = None,
        request_type: RequestType | None = None,
        since: datetime | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Every event of this request up to its end, read from the stream by a separate reader.

        Raises:
            NotSentHereError: it was not sent here, and project or type is missing.
            EventsUnavailableError: there is no stream to read.
        """
        sent = self._sent_here(request_id, project, request_type)
        if sent is not None:
            attempts = tuple(sent.candidates)
            begin = since or _earliest(sent)
        else:
            begin = since or self._opened_at
            attempts = (_Attempt(self._matcher(request_id, project, request_type), begin),)
        has_begun = False
        following = follow(self._connection, _before(begin), self._stream)
        async with self._scans, aclosing(following) as stream:
            async for record in stream:
                if _claimed_id(record.body) != request_id:
                    continue
                event = self._verifier.event(record)
                if event is None or not any(
                    one.is_answered_by(event, record.body) for one in attempts
                ):
                    continue
                if has_begun and isinstance(event, Rejected):
                    continue  # it answers another attempt: what has begun continues
                has_begun = True
                yield event
                if is_end(event):
                    return
        raise PublisherError("the stream of events ended")  # it never does

    async def close(self) -> None:
        """Stop reading; waits that are under way end with an error."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail(PublisherError("the publisher was closed"))

    def _sent_here(
        self, request_id: str, project: str | None, request_type: RequestType | None
    ) -> _Attempt | None:
        one = self._sent.get(request_id)
        if one is None or project not in (None, one.matcher.project):
            return None
        return one if request_type in (None, one.matcher.request_type) else None

    def _matcher(
        self, request_id: str, project: str | None, request_type: RequestType | None
    ) -> EventMatcher:
        if project is None or request_type is None:
            raise NotSentHereError(
                f"{request_id} was not sent by this publisher, or too long ago: "
                "name its project and request_type"
            )
        return EventMatcher(self._publisher, project, request_type, request_id)

    def _covers(self, sent: _Attempt) -> bool:
        """Whether the shared reader has read, or will read, the answer to this request."""
        at = _earliest(sent)
        if self._reader is None or self._reader.done():
            recent = next((s.at for s in self._sent.values() if s.at >= at - _LOOK_BACK), at)
            self._reader_from = min(recent, at)
            self._reader = asyncio.create_task(self._read(_before(self._reader_from)))
        return at >= self._reader_from

    async def _answer(self, sent: _Attempt, *, ended: bool) -> Event:
        wait = _Wait(asyncio.get_running_loop().create_future(), ended)
        wait.add(sent.candidates)
        wait.resolve()
        request_id = sent.matcher.request_id
        waiting = self._waiting.setdefault(request_id, set())
        waiting.add(wait)
        try:
            return await wait.future
        finally:
            waiting.discard(wait)
            if not waiting and self._waiting.get(request_id) is waiting:
                del self._waiting[request_id]
                if sent.matcher.request_type in _FORGOTTEN_REQUESTS:
                    self._forget(request_id, wait)

    def _forget(self, request_id: str, wait: _Wait) -> None:
        """Forget a request that a wait was for, unless it was sent once more since."""
        if self._sent.get(request_id) in wait.attempts:
            del self._sent[request_id]

    async def _read(self, start: Start) -> None:
        """The shared reader: ends only with the publisher, or where there is no stream."""
        try:
            async with aclosing(follow(self._connection, start, self._stream)) as stream:
                async for record in stream:
                    self._handle(record)
        except PublisherError as exc:
            self._fail(exc)
        except Exception as exc:  # a reader that fails must leave no caller waiting
            self._fail(PublisherError(f"reading events failed ({type(exc).__name__})"))
            raise

    def _handle(self, record: StreamRecord) -> None:
        request_id = _claimed_id(record.body)
        if request_id is None:
            return
        newest = self._sent.get(request_id)
        waiting = self._waiting.get(request_id, ())
        # A wait may be for an attempt that was forgotten or superseded by a later one.
        attempts = {t for wait in waiting for t in wait.attempts}
        if newest is not None:
            attempts.update(newest.all)
        if not attempts or (event := self._verifier.event(record)) is None:
            return
        if (
            self._on_answer is not None
            and is_answer(event)
            and any(attempt.is_answered_by(event, record.body) for attempt in attempts)
        ):
            self._on_answer(event, record.traceparent)
        for attempt in attempts:
            attempt.record(event, record.body)
        for wait in waiting:
            wait.resolve()

    def _fail(self, error: PublisherError) -> None:
        for waiting in self._waiting.values():
            for wait in waiting:
                if not wait.future.done():
                    wait.future.set_exception(error)


async def _first(events: AsyncGenerator[Event, None], *, ended: bool) -> Event:
    """The first event that answers, or with `ended` that ends."""
    async with aclosing(events):
        async for event in events:
            if is_end(event) if ended else is_answer(event):
                return event
    raise PublisherError("the stream of events ended")  # it never does


def _is_same_request(one: EventMatcher, other: EventMatcher) -> bool:
    """Whether these, whose ids are equal, are attempts of one request."""
    return (one.request_type, one.project) == (other.request_type, other.project)


def _cut_short(newest: _Attempt) -> None:
    """Forget all but the last few attempts."""
    for oldest in itertools.islice(newest.all, _MAX_ATTEMPTS - 1, None):
        oldest.earlier = None
        return


def _earliest(sent: _Attempt) -> datetime:
    return min(one.at for one in sent.candidates)


def _before(moment: datetime) -> datetime:
    return moment - timedelta(seconds=CLOCK_TOLERANCE_S)


def _claimed_id(body: bytes) -> str | None:
    """The request id that an unverified event names."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or not isinstance(kind := document.get("type"), str):
        return None
    value = document.get(_ID_FIELDS.get(kind, ""))
    return value if isinstance(value, str) else None
